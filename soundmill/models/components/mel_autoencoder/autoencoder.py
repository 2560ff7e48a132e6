"""The autoencoder of log-mels: diffusers' AutoencoderKL, alone or on top of principal components, and its constants.

Its weights have diffusers' names, below `residual.` if there are components.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from soundmill import hub, terminal
from soundmill.audio import figures
from soundmill.audio.log_mels import read_spec
from soundmill.audio.mel import MelSpec, levelled, log_mel
from soundmill.audio.tags import CHANGED
from soundmill.errors import UserError
from soundmill.models.catalog import choose_by_hash, read_weights
from soundmill.models.components import contracts, making, vocoding
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.log_mels.source import Crops, LogMels, gather_log_mels
from soundmill.models.components.mel_autoencoder import AutoencoderNetParams, AutoencoderParams, TrainedParams
from soundmill.models.components.pca import Pca
from soundmill.training.device import evaluating, pick_device, use_threads
from soundmill.training.fitting import Fitted
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule

LOG_VARIANCE = -8.0  # of the posterior, before training with principal components, whose own variance is 1


def network(params: AutoencoderParams, spec: MelSpec, channels: int) -> Any:
    return build_autoencoder(params.network)


def build_autoencoder(params: AutoencoderNetParams) -> Any:
    """The network on images [B, 1, frames, n_mels], initialised from torch's global generator; attention only in the middle block.

    It has 55,376,873 parameters at AudioLDM's sizes.
    """
    levels = len(params.widths)
    net = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=params.widths,
        layers_per_block=params.blocks,
        latent_channels=params.latent_channels,
        norm_num_groups=params.groups,
    )
    return PcaAutoencoder(net, params) if params.pca else net


class PcaAutoencoder(nn.Module):
    """An AutoencoderKL that learns what the principal components of patches lack; it is called like an AutoencoderKL.

    A patch has `factor` frames and `factor` bands. Untrained, the posterior's mean is the components of each patch, and the decoder
    inverts them.
    """

    def __init__(self, residual: Any, params: AutoencoderNetParams):
        super().__init__()
        self.residual, self.factor = residual, params.factor
        self.pca = Pca(params.factor, params.factor, params.latent_channels)
        for last in (residual.quant_conv, residual.decoder.conv_out):
            nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        residual.quant_conv.bias.data[params.latent_channels :] = LOG_VARIANCE

    def rows(self, picture: Tensor) -> Tensor:
        """Rows of patches [B · n_mels / factor, factor, frames] of pictures [B, 1, frames, n_mels]."""
        return picture[:, 0].transpose(1, 2).unflatten(1, (-1, self.factor)).flatten(0, 1)

    def encode(self, picture: Tensor) -> Any:
        encoded = self.residual.encode(picture)
        components = self.pca.encode(self.rows(picture)).unflatten(0, (len(picture), -1))  # [B, bands, channels, frames]
        encoded.latent_dist.mean = encoded.latent_dist.mean + components.permute(0, 2, 3, 1)
        return encoded

    def decode(self, latents: Tensor) -> Any:
        decoded = self.residual.decode(latents)
        rows = self.pca.decode(latents.permute(0, 3, 1, 2).flatten(0, 1)).unflatten(0, (len(latents), -1))
        decoded.sample = decoded.sample + rows.flatten(1, 2).transpose(1, 2)[:, None]
        return decoded


class AutoencoderConfig(contracts.CodecConfig):
    """Architecture, mel spec and standardisation of the log-mels."""

    kind: Literal["mel_autoencoder"] = "mel_autoencoder"
    network: AutoencoderNetParams
    mel_spec: MelSpec
    mean: float  # of log-mels: the network's input is (log_mel − mean) / deviation
    deviation: float
    residual: list[float]  # standard deviation of the reconstruction error per band


@dataclass
class Autoencoder(contracts.Saved):
    config, channels = AutoencoderConfig, 1

    network: AutoencoderNetParams
    spec: MelSpec
    net: nn.Module
    mean: float
    deviation: float
    scaling_factor: float
    residual: list[float] = field(default_factory=list)  # per band; set by `measure`
    digest: str = ""  # set when saved

    @property
    def factor(self) -> int:
        return self.network.factor

    @property
    def samples_per_frame(self) -> int:
        return self.spec.hop_length

    @property
    def silence(self) -> float:
        """The log-mel of silence."""
        return math.log(self.spec.floor)

    def latent_shape(self, frames: int) -> tuple[int, int, int]:
        """Shape (channels, frames, bands) of the latent of a log-mel of `frames` frames."""
        return self.network.latent_channels, frames // self.factor, self.spec.n_mels // self.factor

    @property
    def sample_rate(self) -> int:
        return self.spec.sample_rate

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py, of their log-mels: num_samples / hop_length frames."""
        per_latent = self.spec.hop_length * self.factor
        if num_samples % per_latent:
            raise UserError(f"num_samples {num_samples} must be a multiple of {per_latent}, hop_length · {self.factor}")
        log_mels = torch.from_numpy(np.stack([padded_log_mel(wave, self.spec, num_samples) for wave in waves]))
        device = next(self.net.parameters()).device
        return torch.stack(self.encode(log_mels.to(device)), 1)

    def sounding(self, vocoder: contracts.Vocoder | None, frames: int, grain: float, device: torch.device) -> "MelCodec":
        """See components/contracts.py."""
        return MelCodec(self, vocoder, frames, grain, device)

    @torch.no_grad()
    def encode(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and ln variance of the posterior, [B, channels, frames / factor, n_mels / factor], of log-mels [B, n_mels, frames].

        `frames` must be a multiple of `factor`. The results are not scaled.
        """
        posterior = self.net.encode(to_picture(log_mel, self.mean, self.deviation)).latent_dist
        return posterior.mean.float(), posterior.logvar.float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Log-mels [B, n_mels, frames], at least the spec's floor, from scaled latents [B, channels, frames / factor, bands]."""
        picture = self.net.decode(x0 / self.scaling_factor).sample.float()
        return (picture[:, 0].transpose(1, 2) * self.deviation + self.mean).clamp_min(self.silence)


def padded_log_mel(wave: np.ndarray, spec: MelSpec, num_samples: int) -> np.ndarray:
    """Log-mel float32 [n_mels, num_samples / hop_length] of a wave [channels, T], cut or padded with silence to `num_samples`.

    The level is that of the whole wave: it is set before cutting or padding.
    """
    mono = levelled(wave.mean(0), spec)[:num_samples]
    mono = np.pad(mono, (0, num_samples - len(mono)))
    return log_mel(mono, spec.model_copy(update={"peak": None}))[:, : num_samples // spec.hop_length]


def to_picture(log_mel: Tensor, mean: float, deviation: float) -> Tensor:
    """The network's input [B, 1, frames, n_mels] from log-mels [B, n_mels, frames]."""
    return ((log_mel - mean) / deviation).transpose(1, 2)[:, None]


load = partial(contracts.restore_codec, Autoencoder, network)


FILES = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")
POOLED = (2, 4, 8)  # sides of the squares of the pooled errors
CONTRASTED = (4, 8, 16)  # sides of the squares of the contrast errors
SCALING_CLIPS = 64  # at most, to measure the scaling factor
MEASURED_CLIPS = 64  # held-out clips, at most
DRAWN_CLIPS = 4
AUDIBLE = contracts.GriffinLimParams(griffin_lim_iterations=16, griffin_lim_momentum=0.0)  # for the samples


def make(params: AutoencoderParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> making.MadeComponent:
    splits, weights, spec, fitted = read_weights(catalog), params.weights, read_spec(mels), None
    use_threads(params.hardware.threads)
    params.check_spec(spec)
    if taken := weights.kind == "train" and not weights.steps:
        model, facts = read_start(params, spec, ctx.home), {"taken_from": weights.start_from}
    elif weights.kind == "train":
        model, fitted, facts = train(params, ctx, mels, splits)
    else:
        model, facts = load_published(weights, params.network, spec, ctx.home, ctx.digests)
        terminal.say(f"{ctx.name}: {making.LICENCE}")
    model.to(pick_device(params.hardware.accelerator))

    split = "valid" if splits["valid"] else "train"
    log_mels = gather_log_mels(mels, choose_by_hash(list(splits[split]), MEASURED_CLIPS), ctx.scratch)
    residual = model.residual
    measured = measure(model, log_mels)
    if taken:
        model.residual = residual  # a constant of the codec, whose digest must stay that of its source
    metrics = {
        "parameters": making.size(model.net),
        "scaling_factor": model.scaling_factor,
        "measured_clips": len(log_mels),
        f"{split}_l1_db": measured["l1_db"],
        "kl": measured["kl"],
        "latent_std": measured["latent_std"],
    }
    save = partial(contracts.save_codec, model, source={"kind": weights.kind, **facts})
    return making.MadeComponent(save, metrics, partial(samples, model, log_mels), fitted)


def load_published(
    weights: contracts.LoadedParams, network: AutoencoderNetParams, spec: MelSpec, home: Path, digests: Path | None = None
) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder that `weights` names (see hub.find), and the identity of its files.

    Its log-mels are not standardised. UserError if its architecture differs from `network`.
    """
    directory, facts = making.find(weights, FILES, "autoencoder", home, digests)
    scaling_factor = _check_config(directory / "vae", network)
    return Autoencoder(network, spec, making.pretrained(AutoencoderKL, directory / "vae"), 0.0, 1.0, scaling_factor), facts


def scaling_in(file: Path, config: Any, key: str) -> float:
    """The scaling factor that a configuration has under `key`; UserError unless it is a number above 0."""
    found = config.get(key) if isinstance(config, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
        raise UserError(f"{file}: {key} must be a number above 0, found {found!r}; download it again")
    return float(found)


def _check_config(directory: Path, network: AutoencoderNetParams, spec: MelSpec | None = None) -> float:
    """UserError if the configuration is not that of `network`; its scaling factor."""
    theirs = making.configured(AutoencoderKL, directory)
    with torch.device("meta"):
        expected = build_autoencoder(network).config
    keys = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
    keys += ("down_block_types", "up_block_types", "act_fn", "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
    making.compare(directory, {key: (theirs[key], making.plain(expected[key])) for key in keys}, "autoencoder.network")
    shifts = [key for key in ("shift_factor", "latents_mean", "latents_std") if theirs.get(key) is not None]
    if shifts:
        raise UserError(f"{directory / 'config.json'}: its latents are shifted ({', '.join(shifts)}), which is not supported")
    return scaling_in(directory / "config.json", hub.read_config(directory / "config.json"), "scaling_factor")


check = partial(making.check_published, "autoencoder", FILES, _check_config, None)


class AutoencoderModule(TrainingModule):
    """A batch: crops of log-mels, encoded, sampled from their posteriors and decoded."""

    def __init__(self, params: TrainedParams, net: nn.Module, mean: float, deviation: float):
        super().__init__(net, params, params.steps)
        self.mean, self.deviation = mean, deviation

    def loss(self, step: int, batch: Batch) -> Tensor:
        picture = to_picture(batch.values[0].float(), self.mean, self.deviation)
        posterior = self.net.encode(picture).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        noise = self.noise_like(mean, self.rng("posterior", step))
        rebuilt = self.net.decode(mean + (0.5 * log_variance).exp() * noise).sample.float()
        return reconstruction_error(rebuilt, picture) + self.params.kl_weight * kl_divergence(mean, log_variance)


def reconstruction_error(rebuilt: Tensor, picture: Tensor) -> Tensor:
    """Mean absolute error of [B, 1, frames, n_mels], plus that of the mean and deviation of squares of several sizes.

    The mean gives errors of whole regions more weight than grain, whose errors cancel out. The standard deviation keeps the
    strength of grain, which cannot be reconstructed exactly and which the absolute error alone would smooth away.
    """
    fine = (rebuilt - picture).abs().mean()
    pooled = _multi_resolution(nn.functional.avg_pool2d, POOLED, rebuilt, picture)
    return fine + pooled + _multi_resolution(_contrast, CONTRASTED, rebuilt, picture)


def _multi_resolution(statistic: Callable[[Tensor, int], Tensor], sides: Sequence[int], rebuilt: Tensor, picture: Tensor) -> Tensor:
    fitting = [side for side in sides if side <= min(picture.shape[2:])]
    errors = [(statistic(rebuilt, side) - statistic(picture, side)).abs().mean() for side in fitting]
    return torch.stack(errors).mean() if errors else picture.new_zeros(())


def _contrast(picture: Tensor, side: int) -> Tensor:
    """Standard deviation within squares that overlap by half."""
    pool = partial(nn.functional.avg_pool2d, kernel_size=side, stride=side // 2)
    variance = pool(picture.square()) - pool(picture).square()
    return (variance.clamp_min(0) + 1e-4).sqrt()  # keeps the gradient of the root finite


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of the posterior from the standard normal in nats, mean over latent values."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def train(params: AutoencoderParams, ctx: Any, mels: Path, splits: making.Splits) -> tuple[Autoencoder, Fitted, dict[str, Any]]:
    """The trained autoencoder, its training and facts."""
    weights, network, spec, train_ids = params.weights, params.network, read_spec(mels), list(splits["train"])
    log_mels = gather_log_mels(mels, train_ids, ctx.scratch)
    start = read_start(params, spec, ctx.home)
    mean, deviation = (start.mean, start.deviation) if start else standardisation(log_mels)
    torch.manual_seed(weights.seed)
    net = build_autoencoder(network)
    if network.pca and not start:
        net.pca.fit(_rows(net, log_mels, mean, deviation), "autoencoder.network.pca", weights.whitening)
    parameters = making.size(net)
    terminal.say(
        f"{ctx.name}: {len(log_mels)} clips, {parameters:,} parameters on {weights.crop_frames} frames of {spec.n_mels} bands, "
        f"{weights.steps} steps of {weights.batch_size}"
    )
    module = AutoencoderModule(weights, net, mean, deviation)
    if start:
        terminal.say(f"{ctx.name}: starts from {weights.start_from}")
        module.start_from(start.net.state_dict(), weights.start_from)
    model = Autoencoder(network, spec, net, mean, deviation, scaling_factor=1.0)
    crops = partial(Crops, frames=weights.crop_frames, fill=math.log(spec.floor))
    fitted = making.fit_crops(
        module,
        crops(log_mels),
        lambda clip_ids: crops(gather_log_mels(mels, clip_ids, ctx.scratch)),
        splits,
        params,
        ctx,
        lambda source: partial(samples, model, source.log_mels),
        item_seconds=weights.crop_frames * spec.hop_length / spec.sample_rate,
        started_from=start and start.digest,
    )
    net.eval()
    model.to(pick_device(params.hardware.accelerator))
    scaling_mels = gather_log_mels(mels, choose_by_hash(train_ids, SCALING_CLIPS), ctx.scratch)
    model.scaling_factor = round(1 / latent_deviation(map(model.encode, whole_clips(model, scaling_mels))), 6)
    facts = fitted.codec_facts(weights, start and start.digest, len(log_mels), parameters)
    return model, fitted, facts


def read_start(params: AutoencoderParams, spec: MelSpec, home: Path) -> Autoencoder | None:
    """The autoencoder named by `start_from`, if any; UserError if its architecture or mel spec differs."""
    return load(params.check_start(home, mel_spec=spec)) if params.weights.start_from else None


def _rows(net: PcaAutoencoder, log_mels: LogMels, mean: float, deviation: float) -> Iterator[Tensor]:
    """Rows of patches of each whole clip, [rows, factor, frames]."""
    for item in range(len(log_mels)):
        values = torch.from_numpy(log_mels.arrays.read(item).astype(np.float32))
        yield net.rows(to_picture(values[None, :, : values.shape[1] // net.factor * net.factor], mean, deviation))


def standardisation(log_mels: LogMels) -> tuple[float, float]:
    """Mean and standard deviation of all values, rounded so that they do not depend on the processor."""
    count, total, squares = 0, 0.0, 0.0
    for item in range(len(log_mels)):
        values = log_mels.arrays.read(item).astype(np.float64)
        count, total, squares = count + values.size, total + values.sum(), squares + np.square(values).sum()
    mean = total / count
    return round(float(mean), 6), round(math.sqrt(max(squares / count - mean**2, 1e-12)), 6)


def whole_clips(model: Autoencoder, log_mels: LogMels) -> Iterator[Tensor]:
    """Each whole clip [1, n_mels, frames], cut or padded with silence to a length that the network accepts."""
    device = next(model.net.parameters()).device
    for item, (_, frames) in enumerate(log_mels.arrays.shapes.tolist()):
        length = max(model.factor, frames // model.factor * model.factor)
        yield log_mels.crops([item], [0.0], length, model.silence).float().to(device)


def latent_deviation(posteriors: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Standard deviation of samples of posteriors, given as (mean, log-variance)."""
    count, total, squares = 0, 0.0, 0.0
    for posterior in posteriors:
        mean, log_variance = (values.double() for values in posterior)
        count, total = count + mean.numel(), total + float(mean.sum())
        squares += float((mean.square() + log_variance.exp()).sum())  # E[z²] = mean² + variance
    return math.sqrt(max(squares / count - (total / count) ** 2, 1e-12))


def measure(model: Autoencoder, log_mels: LogMels) -> dict[str, float]:
    """`l1_db`: mean absolute error of reconstructed log-mels in dB; `kl`: nats per latent value; `latent_std`: of scaled latents.

    Sets `model.residual`.
    """
    errors, posteriors, frames, squares = [], [], 0, 0.0
    for real in whole_clips(model, log_mels):
        posteriors.append(model.encode(real))
        mean, _ = posteriors[-1]
        residual = (real - model.decode(model.scaling_factor * mean))[0].double()
        errors.append(float(residual.abs().mean()))
        frames, squares = frames + residual.shape[1], squares + residual.square().sum(1)
    model.residual = [round(value, 4) for value in (squares / frames).sqrt().tolist()]
    decibels = 20 / model.spec.power / math.log(10)
    return {
        "l1_db": decibels * float(np.mean(errors)),
        "kl": float(np.mean([float(kl_divergence(*posterior)) for posterior in posteriors])),
        "latent_std": model.scaling_factor * latent_deviation(posteriors),
    }


def samples(model: Autoencoder, log_mels: LogMels, step: int) -> making.Samples:
    """Some clips and their reconstructions, as figure and, by Griffin-Lim, as sounds."""
    with evaluating(model.net):
        real = list(islice(whole_clips(model, log_mels), DRAWN_CLIPS))
        rebuilt = [model.decode(model.scaling_factor * model.encode(log_mel)[0]) for log_mel in real]
    frames = min(log_mel.shape[2] for log_mel in real)
    pictures = torch.cat([picture[:, :, :frames].cpu() for pair in zip(real, rebuilt, strict=True) for picture in pair])
    titles = [title for clip_id in log_mels.arrays.ids[: len(real)] for title in (clip_id, "rebuilt")]
    figure = figures.draw_log_mels(pictures.numpy(), titles, model.spec, 2, f"autoencoder after {step} steps")
    waves = vocoding.to_waves(GriffinLim(model.spec, AUDIBLE), pictures, torch.device("cpu"))
    return making.Samples(figure, titles, [(wave.numpy(), model.spec.sample_rate) for wave in waves], [None, CHANGED] * len(real))


GRAIN_SEED = 0


@dataclass(frozen=True)
class MelCodec:
    """Latents [N, channels, frames / factor, n_mels / factor], scaled; mono waves of `frames` · hop_length samples."""

    autoencoder: Autoencoder
    vocoder: contracts.Vocoder
    frames: int  # of the log-mels; shorter ones are padded with silence, longer ones cut
    grain: float  # share of the noise lost in reconstruction that decoding adds back
    device: torch.device

    @property
    def num_samples(self) -> int:
        return self.frames * self.autoencoder.spec.hop_length

    def encode(self, waves: Tensor) -> Tensor:
        """Scaled posterior means, on the CPU."""
        autoencoder = self.autoencoder.to(self.device)
        means = [autoencoder.posterior([wave], self.num_samples)[:, 0].cpu() for wave in waves.numpy()]
        return torch.cat(means) * autoencoder.scaling_factor

    def decode(self, latents: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """Waves [N, 1, num_samples] in [−1, 1] on the CPU."""
        return vocoding.to_waves(self.vocoder, self.to_log_mels(latents), self.device, seeds=seeds)

    def to_log_mels(self, latents: Tensor) -> Tensor:
        """Log-mels [N, n_mels, frames] with grain, on the CPU; decoded one by one to limit memory."""
        autoencoder = self.autoencoder.to(self.device)
        log_mels = torch.cat([autoencoder.decode(latent[None].to(self.device)).cpu() for latent in latents])
        return with_grain(log_mels, autoencoder, self.grain)


def with_grain(log_mels: Tensor, autoencoder: Autoencoder, grain: float) -> Tensor:
    """Add noise to log-mels [N, n_mels, frames]: in each band `grain` times the deviation of the reconstruction error.

    An autoencoder decodes to the expected log-mel, without the speckle of a real one, and Griffin-Lim turns smooth log-mels into
    tones. Every sound gets the same noise, as it gets the same initial phases.
    """
    if not grain:
        return log_mels
    generator = torch.Generator().manual_seed(GRAIN_SEED)
    noise = torch.randn(log_mels.shape[1:], generator=generator) * torch.tensor(autoencoder.residual)[:, None]
    return (log_mels + grain * noise).clamp_min(autoencoder.silence)
