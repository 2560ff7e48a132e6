"""Train RAVE: first what sounds are like (phase 1), then, with the encoder as it is, against discriminators (phase 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from soundmill.errors import UserError
from soundmill.models.components.rave.discriminators import Discriminators
from soundmill.models.components.rave.losses import distance, features_loss, fooling_loss, judges_loss, kl_divergence
from soundmill.models.components.rave.network import RaveNet
from soundmill.models.components.rave.params import WeightsParams
from soundmill.training.device import evaluating
from soundmill.training.loader import Batch
from soundmill.training.module import rate_factor
from soundmill.training.phases import Phase, PhasedModule, Turn


class RaveModule(PhasedModule):
    """A batch: waves [b, 1, T]. The generator's rate falls over phase 1, and stays in phase 2, whose rate is the judges' own."""

    def __init__(self, params: WeightsParams, net: RaveNet):
        judges = params.discriminators
        super().__init__(net, {"discriminators": (Discriminators(judges), judges.optimiser)}, params, params.steps)
        self.ends = net.receptive_field() if params.valid_signal_crop else (0, 0)  # frames of bands
        left = params.num_samples // net.pqmf.bands - sum(self.ends)
        if left < min(params.scales):
            raise UserError(
                f"weights.valid_signal_crop leaves {max(0, left)} frames of a crop's bands, and the shortest of weights.scales has "
                f"{min(params.scales)}: raise weights.num_samples, or set weights.valid_signal_crop to false"
            )

    def share_of_rate(self, net: str, step: int) -> float:
        first, kept = self.params.phase_1_steps, self.optimised[net]
        if net == "discriminators":
            return rate_factor(max(0, step - first), max(1, self.steps - first), kept)
        return rate_factor(step, first, kept)

    def phases(self) -> list[Phase]:
        every = self.params.discriminator_every
        turns = Turn("discriminators", lambda step: step % every == 0), Turn("net", lambda step: step % every != 0)
        return [
            Phase((Turn("net"),), self.represent, steps=self.params.phase_1_steps),
            Phase(turns, self.oppose, frozen=("net.encoder",)),
        ]

    def represent(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        """Phase 1: the spectral distance, and the divergence by its weight."""
        bands = self.net.pqmf.analysis(batch.values[0])
        mean, deviation = self.net.posterior(bands)
        made = self.net.decoder(self._drawn(mean, deviation, step), None)
        divergence = kl_divergence(mean.float(), deviation.float())
        yield self._distance(made, bands, batch.values[0]) + self.params.kl.weight(step) * divergence

    def oppose(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        """Phase 2: a batch is the discriminators' or the generator's, which keeps the spectral distance."""
        if step == self.params.phase_1_steps and self.rank == 0:
            print(f"phase 2 begins, at step {step} of {self.steps}: the encoder stays as it is", flush=True)
        (waves,) = batch.values
        bands = self.net.pqmf.analysis(waves)
        with torch.no_grad(), evaluating(self.net.encoder):
            latents = self._drawn(*self.net.posterior(bands), step)
        for name in nets:
            with torch.set_grad_enabled(name == "net"):
                made = self.net.decoder(latents, self._noise(latents, step))
                sounds = self.net.pqmf.synthesis(made)
            of_real, of_made = self.discriminators(waves), self.discriminators(sounds)
            if name == "discriminators":
                yield judges_loss([maps[-1] for maps in of_real], [maps[-1] for maps in of_made])
            else:
                features = features_loss(of_real, of_made, self.params.features)
                fooled = fooling_loss([maps[-1] for maps in of_made])
                yield self._distance(made, bands, waves, sounds) + fooled + self.params.features.weight * features

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """The spectral distance from posterior means: what discriminators say is not comparable between steps."""
        (waves,) = batch.values
        bands = self.net.pqmf.analysis(waves)
        mean, _ = self.net.posterior(bands)
        noise = self._noise(mean, step) if self.step > self.params.phase_1_steps else None
        return self._distance(self.net.decoder(mean, noise), bands, waves)

    def _distance(self, made: Tensor, bands: Tensor, waves: Tensor, sounds: Tensor | None = None) -> Tensor:
        """Of the made bands from the real ones, without their ends (`valid_signal_crop`), and of their waves, whole."""
        sounds = self.net.pqmf.synthesis(made) if sounds is None else sounds
        valid = slice(self.ends[0], bands.shape[2] - self.ends[1])
        of_bands = distance(made[..., valid], bands[..., valid], self.params.scales)
        return of_bands + distance(sounds, waves, self.params.scales)

    def _drawn(self, mean: Tensor, deviation: Tensor, step: int) -> Tensor:
        return mean + deviation * self.noise_like(mean, self.rng("posterior", step))

    def _noise(self, latents: Tensor, step: int) -> Tensor | None:
        whole = latents.repeat(self.world_size, 1, 1)
        noise = self.net.draw_noise(whole, self.rng("noise", step))
        return None if noise is None else self.share(noise)


def told_before(minutes: float, clips: int, params: WeightsParams, sample_rate: int) -> list[str]:
    """What somebody would like to know before it starts: how much sound there is, how often it is seen, when phase 2 begins."""
    crop = params.num_samples / sample_rate
    times = params.steps * params.batch_size * crop / (60 * minutes)
    sound = f"{minutes:.1f} minutes of sound: {clips} crops of {crop:.2f} s an epoch, one of each clip; in {params.steps} steps of "
    sound += f"{params.batch_size} each second is heard {times:.3g} times"
    if params.phase_1_steps == params.steps:
        return [sound, f"there is phase 1 alone (phase_1_steps {params.phase_1_steps} are all): no discriminator"]
    begins = f"phase 2 (encoder frozen, against discriminators) begins at step {params.phase_1_steps} of {params.steps}"
    return [sound, begins]


def phase_of(params: WeightsParams, facts: dict[str, Any]) -> int:
    """The phase that the weights in use are of; `facts` as `Fitted` has them."""
    used = params.use if isinstance(params.use, int) else facts["weights"][params.use]["step"]
    return 2 if used > params.phase_1_steps else 1
