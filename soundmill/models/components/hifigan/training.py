"""Train HiFi-GAN on the training clips.

Losses, sizes and rates are those of HiFi-GAN (Kong, Kim & Bae 2020, arXiv:2010.05646). What it hears of real clips is what their
log-mels were made of: `MelSpec.peak` holds for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from soundmill import shards
from soundmill.audio import mel
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.catalog import choose_by_hash
from soundmill.models.components import vocoder_errors
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.hifigan import vocoder
from soundmill.models.components.hifigan.discriminators import Discriminators
from soundmill.models.components.hifigan.params import HifiGanParams, TrainedParams
from soundmill.models.components.hifigan.vocoder import HifiGan, build_vocoder, synthesise
from soundmill.models.components.log_mels.source import gather_log_mels
from soundmill.models.components.waves.source import Pairs, gather_waves
from soundmill.models.samples import sampling
from soundmill.training.device import pick_device, use_threads
from soundmill.training.loader import Batch, Order, crop_places
from soundmill.training.module import Fitted, fit_averaged
from soundmill.training.phases import Phase, PhasedModule, Turn, discriminator_loss, feature_loss, generator_loss
from soundmill.training.starting import compare
from soundmill.training.validation import HeldOut


class LogMel(nn.Module):
    """`mel.log_mel` of waves [B, T] that are already at their peak, with a gradient."""

    def __init__(self, spec: MelSpec):
        super().__init__()
        self.spec = spec
        self.mel = mel.mel_spectrogram(spec)

    def forward(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):
            return self.mel(wave.float()).clamp_min(self.spec.floor).log()


class VocoderModule(PhasedModule):
    """A batch: crops of clips, made anew from their log-mels, beside what they were."""

    def __init__(self, params: TrainedParams, net: nn.Module, spec: MelSpec):
        discriminator = Discriminators(params.discriminator_width)
        super().__init__(net, {"discriminator": (discriminator, params.optimiser)}, params, params.steps)
        self.log_mel = LogMel(spec)

    def phases(self) -> list[Phase]:
        return [Phase((Turn("discriminator"), Turn("net")), self.losses)]

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """The weighted error of log-mels: what discriminators say is not comparable between steps."""
        log_mel, real = batch.values
        return self.params.mel_weight * self._spectral(synthesise(self.net, log_mel.float(), self.log_mel.spec.hop_length), real)

    def _spectral(self, made: Tensor, real: Tensor) -> Tensor:
        return (self.log_mel(made) - self.log_mel(real)).abs().mean()

    def losses(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        log_mel, real = batch.values
        made = synthesise(self.net, log_mel.float(), self.log_mel.spec.hop_length)
        of_real, of_made = self.discriminator(real), self.discriminator(made.detach())
        yield discriminator_loss([scores for scores, _ in of_real], [scores for scores, _ in of_made])

        of_real, of_made = self.discriminator(real), self.discriminator(made)
        features = feature_loss([maps for _, maps in of_real], [maps for _, maps in of_made])
        fooled = generator_loss([scores for scores, _ in of_made])
        yield fooled + self.params.feature_weight * features + self.params.mel_weight * self._spectral(made, real)


def train(
    params: HifiGanParams,
    ctx: Any,
    spec: MelSpec,
    clips: Path,
    mels: Path,
    weights_of_clips: Mapping[str, float],
    valid: Sequence[str],
) -> tuple[HifiGan, Fitted, dict[str, Any]]:
    """The trained vocoder, its training, and facts of it; `weights_of_clips` as `Order` takes them, `valid` are held out."""
    wanted = params.weights
    check_crop(wanted.crop_frames, spec)

    def pairs_of(clip_ids: Sequence[str]) -> Pairs:
        waves = gather_waves(clips, clip_ids, ctx.scratch, partial(mel.levelled, spec=spec))
        return Pairs(gather_log_mels(mels, clip_ids, ctx.scratch), waves, wanted.crop_frames, spec)

    pairs = pairs_of(list(weights_of_clips))
    log_mels = pairs.log_mels
    unseen = pairs_of(choose_by_hash(valid, wanted.validate_batches * wanted.batch_size)) if valid else None
    use_threads(params.hardware.threads)
    torch.manual_seed(wanted.seed)
    net = build_vocoder(params.network, spec.n_mels, spec.sample_rate)
    parameters = sum(weight.numel() for weight in net.parameters())
    print(
        f"{ctx.name}: {len(log_mels)} clips, {parameters:,} parameters, {wanted.steps} steps of {wanted.batch_size} crops of "
        f"{wanted.crop_frames * spec.hop_length / spec.sample_rate:g} s",
        flush=True,
    )
    if wanted.start_from is None:
        started_from = None
        start_anew(net)
    else:
        where = ctx.home / wanted.start_from
        start = vocoder.load(where, spec)
        compare(str(where), {"network": start.network.model_dump()}, {"network": params.network.model_dump()})
        started_from = shards.file_digest(where / vocoder.WEIGHTS)
        net.load_state_dict(start.net.state_dict())
        print(f"{ctx.name}: starts from {wanted.start_from}, its discriminators from nothing", flush=True)
    with_norms(net)
    module = VocoderModule(wanted, net, spec)
    device = pick_device(params.hardware.accelerator)
    ways = {"by the vocoder": HifiGan(params.network, spec, net), "by Griffin-Lim": GriffinLim(spec, params)}
    fitted = fit_averaged(
        module,
        pairs,
        Order(wanted.seed, weights_of_clips, wanted.batch_size),
        partial(crop_places, wanted.seed, wanted.batch_size),
        params.hardware,
        ctx,
        held_out=unseen and HeldOut(unseen, len(unseen.log_mels)),
        started_from=started_from,
        callbacks=sampling(
            wanted.samples_every_steps, ctx, partial(vocoder_errors.samples, ways, (unseen or pairs).log_mels, device)
        ),
    )
    fitted.take(module, wanted.use)
    begun = {"started_from": started_from} if started_from else {}
    facts = {**begun, **fitted.facts, "use": wanted.use, "steps": wanted.steps, "clips": len(log_mels), "parameters": parameters}
    return HifiGan(params.network, spec, without_norms(net).eval()), fitted, facts


def check_crop(frames: int, spec: MelSpec) -> None:
    """UserError where a crop is shorter than what the centred transform mirrors at its ends."""
    if frames * spec.hop_length <= spec.n_fft // 2:
        raise UserError(
            f"vocoder.weights.crop_frames {frames} of {spec.hop_length} samples must be more than half of n_fft {spec.n_fft}"
        )


def convolutions(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]


def start_anew(net: nn.Module) -> None:
    """Torch's own first weights: transformers' fit 512 channels, and a narrow net would begin in silence."""
    for layer in convolutions(net):
        layer.reset_parameters()


def with_norms(net: nn.Module) -> nn.Module:
    """The net with length and direction of its kernels apart (Salimans & Kingma 2016), as it is trained."""
    for layer in convolutions(net):
        weight_norm(layer)
    return net


def without_norms(net: nn.Module) -> nn.Module:
    """The net with its kernels as they are."""
    for layer in convolutions(net):
        parametrize.remove_parametrizations(layer, "weight")
    return net
