"""Train RAVE: a variational autoencoder (phase 1), then its decoder adversarially with a frozen encoder (phase 2)."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from soundmill import terminal
from soundmill.errors import UserError
from soundmill.models.components.rave.discriminators import Discriminators
from soundmill.models.components.rave.losses import discriminator_loss, distance, features_loss, generator_loss, kl_divergence
from soundmill.models.components.rave.network import RaveNet
from soundmill.models.components.rave.params import WeightsParams
from soundmill.training.device import evaluating
from soundmill.training.loader import Batch
from soundmill.training.module import rate_factor
from soundmill.training.phases import Phase, PhasedModule, Turn


class RaveModule(PhasedModule):
    """A batch: waves [b, 1, T].

    The generator's learning rate decays over phase 1 and stays in phase 2, over which the discriminators' rate decays.
    """

    def __init__(self, params: WeightsParams, net: RaveNet):
        discriminators = params.discriminators
        adversaries = {"discriminators": (Discriminators(discriminators), discriminators.optimiser)}
        super().__init__(net, adversaries, params, params.steps)
        self.ends = net.receptive_field() if params.valid_signal_crop else (0, 0)  # band frames affected by padding
        left = params.num_samples // net.pqmf.bands - sum(self.ends)
        if left < min(params.scales):
            raise UserError(
                f"weights.valid_signal_crop leaves {max(0, left)} band frames of a crop, fewer than the shortest of weights.scales "
                f"({min(params.scales)}): raise weights.num_samples, or set weights.valid_signal_crop to false"
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
        """Phase 1: the spectral distance plus the weighted KL divergence."""
        bands = self.net.pqmf.analysis(batch.values[0])
        mean, deviation = self.net.posterior(bands)
        latents = self._sample(mean, deviation, step)
        decoded = self.net.decoder(latents, self._noise(latents, step) if self.net.pca is not None else None)
        divergence = kl_divergence(mean.float(), deviation.float())
        yield self._distance(decoded, bands, batch.values[0]) + self.params.kl.weight(step) * divergence

    def oppose(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        """Phase 2: each batch trains either the discriminators or the generator, which keeps the spectral distance."""
        if step == self.params.phase_1_steps and self.rank == 0:
            terminal.say(f"phase 2 begins at step {step} of {self.steps}: the encoder is frozen")
        (waves,) = batch.values
        bands = self.net.pqmf.analysis(waves)
        with torch.no_grad(), evaluating(self.net.encoder):
            latents = self._sample(*self.net.posterior(bands), step)
        for name in nets:
            with torch.set_grad_enabled(name == "net"):
                decoded = self.net.decoder(latents, self._noise(latents, step))
                sounds = self.net.pqmf.synthesis(decoded)
            real_maps, fake_maps = self.discriminators(waves), self.discriminators(sounds)
            if name == "discriminators":
                yield discriminator_loss([maps[-1] for maps in real_maps], [maps[-1] for maps in fake_maps])
            else:
                features = features_loss(real_maps, fake_maps, self.params.features)
                adversarial = generator_loss([maps[-1] for maps in fake_maps])
                yield self._distance(decoded, bands, waves, sounds) + adversarial + self.params.features.weight * features

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """The spectral distance with posterior means; adversarial losses are not comparable between steps."""
        (waves,) = batch.values
        bands = self.net.pqmf.analysis(waves)
        mean, _ = self.net.posterior(bands)
        noisy = self.step > self.params.phase_1_steps or self.net.pca is not None
        noise = self._noise(mean, step) if noisy else None
        return self._distance(self.net.decoder(mean, noise), bands, waves)

    def _distance(self, decoded: Tensor, bands: Tensor, waves: Tensor, sounds: Tensor | None = None) -> Tensor:
        """Spectral distance of decoded from real bands, without their ends (`valid_signal_crop`), plus that of the whole waves."""
        sounds = self.net.pqmf.synthesis(decoded) if sounds is None else sounds
        valid = slice(self.ends[0], bands.shape[2] - self.ends[1])
        band_distance = self._spectral(decoded[..., valid], bands[..., valid])
        return band_distance + self._spectral(sounds, waves)

    def _spectral(self, fake: Tensor, real: Tensor) -> Tensor:
        return distance(fake, real, self.params.scales, self.params.log_epsilon)

    def _sample(self, mean: Tensor, deviation: Tensor, step: int) -> Tensor:
        return mean + deviation * self.noise_like(mean, self.rng("posterior", step))

    def _noise(self, latents: Tensor, step: int) -> Tensor | None:
        all_devices = latents.repeat(self.world_size, 1, 1)
        noise = self.net.draw_noise(all_devices, self.rng("noise", step))
        return None if noise is None else self.share(noise)


def describe_training(minutes: float, clips: int, params: WeightsParams, sample_rate: int) -> list[str]:
    """Lines to print before training: how much sound there is, how often each second is used, and when phase 2 begins."""
    crop = params.num_samples / sample_rate
    times = params.steps * params.batch_size * crop / (60 * minutes)
    sound = f"{minutes:.1f} minutes of sound: {clips} crops of {crop:.2f} s an epoch, one of each clip; in {params.steps} steps of "
    sound += f"{params.batch_size} each second is used {times:.3g} times"
    if params.phase_1_steps == params.steps:
        return [sound, f"phase 1 only, without discriminators: phase_1_steps {params.phase_1_steps} equals steps"]
    phase_2 = f"phase 2 (encoder frozen, against discriminators) begins at step {params.phase_1_steps} of {params.steps}"
    return [sound, phase_2]


def phase_of(params: WeightsParams, facts: dict[str, Any]) -> int:
    """The phase in which the used weights were trained; `facts` are those of `Fitted`."""
    used = params.use if isinstance(params.use, int) else facts["weights"][params.use]["step"]
    return 2 if used > params.phase_1_steps else 1
