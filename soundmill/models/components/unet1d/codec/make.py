"""Make the diffusion autoencoder for its stage: train it on the training clips, and measure its latents."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundmill import terminal
from soundmill.audio.log_mels import read_spec
from soundmill.diffusion.paths import Net
from soundmill.errors import UserError
from soundmill.models.catalog import beginnings, choose_by_hash, read_weights, waves_of
from soundmill.models.components.contracts import save_codec
from soundmill.models.components.making import MadeComponent, fit_crops, size, starting
from soundmill.models.components.unet1d.codec import AutoencoderParams
from soundmill.models.components.unet1d.codec import codec as codecs
from soundmill.models.components.unet1d.codec.codec import AutoencoderNet, DiffusionCodec
from soundmill.models.components.unet1d.network import PathModule
from soundmill.models.components.waves.samples import beside_real
from soundmill.models.components.waves.source import WaveCrops, gather_waves, wave_deviation
from soundmill.models.samples import Samples
from soundmill.training.device import evaluating, pick_device, use_threads
from soundmill.training.loader import Batch
from soundmill.training.monitoring import HeldOut

SHOWN, SCALING_CLIPS = 4, 64


class AutoencoderModule(PathModule):
    """A batch: waves [b, channels, T]; encoder and U-Net are trained jointly."""

    def target(self, step: int, batch: Batch) -> tuple[Net, Tensor]:
        (waves,) = batch.values
        latents = self.net.encoder(waves)
        return lambda xt, level: self.net(xt, level, latents), waves


def make(params: AutoencoderParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    splits, spec, weights = read_weights(catalog), read_spec(mels), params.weights
    params.check_spec(spec)
    use_threads(params.hardware.threads)
    _, (wave, rate) = next(waves_of(clips, set(splits["train"])))
    if rate != spec.sample_rate:
        raise UserError(f"{clips} has {rate} Hz, but the autoencoder's mels have {spec.sample_rate}; make them agree")

    def source_of(clip_ids: Sequence[str]) -> WaveCrops:
        return WaveCrops(gather_waves(clips, clip_ids, ctx.scratch, channels=len(wave)), weights.num_samples)

    torch.manual_seed(weights.seed)
    net = AutoencoderNet(params, spec, len(wave))
    model = DiffusionCodec(params, spec, len(wave), net)
    parameters, count = size(net), len(splits["train"])
    terminal.say(f"{ctx.name}: {count} clips, {parameters:,} parameters, {weights.steps} steps of {weights.batch_size}")
    module = AutoencoderModule(net, weights, weights.steps)
    started_from = None
    if weights.start_from:
        where = params.check_start(ctx.home, mel_spec=spec)
        start = codecs.load(where)
        module.start_from(start.net.state_dict(), weights.start_from)
        model.sigma_data = start.sigma_data
        started_from = starting(where, params, ctx)
    train, valid = list(splits["train"]), choose_by_hash(list(splits["valid"]), weights.validate_batches * weights.batch_size)
    if weights.unit_variance and not started_from:
        model.sigma_data = wave_deviation(source_of(train).waves, "autoencoder.weights.unit_variance")
    module.sigma_data = model.sigma_data
    if params.encoder.pca and not started_from:
        net.start_from_components(source_of(train).whole(), model.sigma_data, "autoencoder.encoder.pca")
    draw = partial(samples, model, clips, valid or train, pick_device(params.hardware.accelerator))
    fitted = fit_crops(
        module,
        source_of(train),
        HeldOut(source_of(valid), len(valid)) if valid else None,
        splits["train"],
        params,
        ctx,
        draw,
        item_seconds=weights.num_samples / rate,
        started_from=started_from,
    )
    net.eval()
    model.to(pick_device(params.hardware.accelerator))
    model.scaling_factor = round(1 / deviation(model, source_of(choose_by_hash(train, SCALING_CLIPS))), 6)
    facts = fitted.codec_facts(weights, started_from, len(train), parameters)
    metrics = {
        "parameters": parameters,
        "scaling_factor": model.scaling_factor,
        "latent_rate": model.latent_rate,
        "latent_values_per_second": model.latent_rate * model.latent_channels,
    }
    return MadeComponent(partial(save_codec, model, source=facts), metrics, draw, fitted)


@torch.no_grad()
def deviation(model: DiffusionCodec, source: WaveCrops) -> float:
    """Standard deviation of the unscaled latents of each whole clip."""
    device = next(model.net.parameters()).device
    latents = [model.net.encoder(crops.to(device)).flatten() for crops in source.whole()]
    return max(float(torch.cat(latents).double().std()), 1e-6)


def samples(model: DiffusionCodec, clips: Path, clip_ids: Sequence[str], device: torch.device, step: int) -> Samples:
    """Real clips and their reconstructions."""
    stride = model.params.network.stride
    waves = torch.from_numpy(beginnings(clips, clip_ids, SHOWN))
    waves = waves[..., : max(stride, min(waves.shape[2], 4 * model.params.weights.num_samples) // stride * stride)]
    waves = torch.nn.functional.pad(waves, (0, -waves.shape[2] % stride))
    model.to(device)
    with evaluating(model.net):
        decoded = model.decode(model.encode(waves.to(device))).cpu()
    return beside_real(waves, decoded, model.sample_rate, step)
