"""Diffusion of mel pictures: its model and checkpoint, and its training on the spectrograms of the training split."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor, nn

from soundmill import params as strict
from soundmill import terminal
from soundmill.audio import mel
from soundmill.audio.log_mels import read_spec
from soundmill.audio.mel import MelSpec, log_mel, num_frames
from soundmill.diffusion.paths import Discrete, alpha_bar, discrete, scheduled_loss
from soundmill.diffusion.sampling import Draw, Given, guided
from soundmill.diffusion.solvers import scheduled
from soundmill.models import family
from soundmill.models.components import registry, vocoding
from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.dit.network import PictureDiT
from soundmill.models.components.log_mels.source import Crops, gather_log_mels
from soundmill.models.components.pca import partly_whitened
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.components.vocoding import vocoder_of
from soundmill.models.ddpm_mel import DiTParams, PictureParams, SamplingParams, TrainParams
from soundmill.models.ddpm_mel.unet import ResidualUNet, UNet
from soundmill.models.encodings import OfEncodings
from soundmill.models.family import FamilyConfig, Prepared, Rehearsal, Request, Run
from soundmill.models.preparing import Clips, Labelled, guided_passes, rehearsal
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.trained import TrainedModel
from soundmill.training import checkpoint
from soundmill.training.checkpoint import compare
from soundmill.training.loader import Batch, Source
from soundmill.training.module import TrainingModule
from soundmill.training.seeds import seed_of

HEADROOM = 1.2  # maximum of a generated picture; anything brighter is an error


class PictureCodec(nn.Module):
    """log_mel [B, n_mels, frames] ↔ picture [B, 1, H, W] in about [−1, 1] ↔ the network's input [B, C, H/patch, W/patch].

    `level` [B] is the natural logarithm of the power that maps to 1. The constants of standardisation are buffers, set by `fit`
    and stored in the checkpoint.
    """

    def __init__(self, params: PictureParams, spec: MelSpec):
        super().__init__()
        self.params, self.spec = params, spec
        self.num_samples = round(params.seconds * spec.sample_rate)
        self.frames = num_frames(spec, self.num_samples)
        self.silence = math.log(spec.floor)
        missing = params.width - self.frames
        self._padding = missing if params.fit == "pad" and 0 < missing <= params.patch[1] else 0  # columns
        self.columns = self.frames + self._padding  # before a resize
        self.channels = params.patch[0] * params.patch[1]
        self.shape = (self.channels, params.height // params.patch[0], params.width // params.patch[1])
        constants = {"none": (1, 1, 1), "global": (1, 1, 1), "band": (1, params.height, 1), "channel": (self.channels, 1, 1)}
        self.register_buffer("mean", torch.zeros(constants[params.standardise]))
        self.register_buffer("deviation", torch.ones(constants[params.standardise]))
        self.register_buffer("_basis", _cosine_basis(*params.patch), persistent=False)
        self._exponent = params.exponent * spec.power / 2  # of `power`, applied to powers
        self._floor = -params.range_db * math.log(10) / 10  # of `log`: ln of the power that maps to -1, relative to the level

    def level(self, log_mel: Tensor) -> Tensor:
        """ln of the reference power [B]: the same for all clips, or each clip's maximum."""
        if self.params.level == "absolute":
            return torch.full((len(log_mel),), self.params.top_db * math.log(10) / 10, device=log_mel.device)
        return self._log_power(log_mel).amax((1, 2))

    def to_picture(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        level = self.level(log_mel)
        relative = self._log_power(log_mel) - level[:, None, None]
        if self.params.compression == "log":
            floor = torch.full((), self._floor, device=log_mel.device)
            picture = 2 * (torch.logaddexp(relative, floor) - floor) / self._log_range() - 1
        else:
            picture = 2 * torch.exp(self._exponent * relative) - 1
        if self.params.min_max:
            lowest = picture.amin((1, 2), keepdim=True)
            picture = 2 * (picture - lowest) / (1 - lowest).clamp_min(1e-6) - 1  # a constant clip becomes −1
        if self.params.polarity == "dark":
            picture = -picture
        padded = F.pad(picture, (0, self._padding), mode="replicate")[:, None]
        return _resize(padded, (self.params.height, self.params.width)), level

    def from_picture(self, picture: Tensor, level: Tensor) -> Tensor:
        """log_mel [B, n_mels, frames]"""
        picture = _resize(picture, (self.spec.n_mels, self.columns))[:, 0, :, : self.frames]
        if self.params.polarity == "dark":
            picture = -picture
        picture = picture.clamp(-1, HEADROOM)
        quiet = torch.finfo(torch.float32).tiny
        if self.params.compression == "log":
            power = torch.expm1((picture + 1) / 2 * self._log_range()) * math.exp(self._floor)
            relative = power.clamp_min(quiet).log()
        else:
            relative = ((picture + 1) / 2).clamp_min(quiet).log() / self._exponent
        return ((relative + level[:, None, None]) * (self.spec.power / 2)).clamp_min(self.silence)

    def to_latent(self, picture: Tensor) -> Tensor:
        """The network's input: patches as channels, standardised."""
        if self.params.standardise == "band":
            return self._split((picture - self.mean) / self.deviation)
        return (self._split(picture) - self.mean) / self.deviation

    def from_latent(self, latent: Tensor) -> Tensor:
        if self.params.standardise == "band":
            return self._join(latent) * self.deviation + self.mean
        return self._join(latent * self.deviation + self.mean)

    def encode(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """log_mel [B, n_mels, frames] → latent [B, C, h, w], level [B]."""
        picture, level = self.to_picture(log_mel)
        return self.to_latent(picture), level

    def decode(self, latent: Tensor, level: Tensor) -> Tensor:
        return self.from_picture(self.from_latent(latent), level)

    def fit(self, log_mels: Iterable[Tensor]) -> None:
        """Set the constants to mean and standard deviation over batches of training spectrograms."""
        if self.params.standardise == "none":
            return
        axes = {"global": (0, 1, 2, 3), "band": (0, 1, 3), "channel": (0, 2, 3)}[self.params.standardise]
        count, total, squares = 0, 0.0, 0.0
        for batch in log_mels:
            picture = self.to_picture(batch)[0]
            values = (picture if self.params.standardise == "band" else self._split(picture)).double()
            count += values.numel() // self.mean.numel()
            total, squares = total + values.sum(axes), squares + values.square().sum(axes)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(1e-8).sqrt()
        if self.params.standardise == "channel":
            deviation = partly_whitened(deviation, self.params.whitening)
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.deviation.copy_(deviation.reshape(self.deviation.shape))

    def importance(self) -> Tensor:
        """Squared error in the picture per unit error in each latent channel, normalised to mean 1; broadcasts over latents."""
        if self.params.standardise == "band":
            return torch.ones((), device=self.deviation.device)
        return self.deviation.square() / self.deviation.square().mean()

    def _split(self, picture: Tensor) -> Tensor:
        rows, columns = self.params.patch
        patches = picture.unflatten(2, (-1, rows)).unflatten(4, (-1, columns)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        return patches if self.params.patch_basis == "pixels" else torch.einsum("kc,bchw->bkhw", self._basis, patches)

    def _join(self, latent: Tensor) -> Tensor:
        rows, columns = self.params.patch
        patches = latent if self.params.patch_basis == "pixels" else torch.einsum("kc,bkhw->bchw", self._basis, latent)
        return patches.unflatten(1, (1, rows, columns)).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)

    def _log_power(self, log_mel: Tensor) -> Tensor:
        return log_mel * (2 / self.spec.power)

    def _log_range(self) -> float:
        return math.log1p(math.exp(self._floor)) - self._floor


def rescaled(picture: Tensor, polarity: str) -> Tensor:
    """Sampled pictures [B, 1, H, W] in [−1, 1] whose quieter half is silent: how far each part is louder than the picture's mean,
    over the largest such distance. A picture of one level is silent."""
    loud = -1 if polarity == "dark" else 1
    above = (loud * (picture - picture.mean((1, 2, 3), keepdim=True))).clamp_min(0)
    return loud * (2 * above / above.amax((1, 2, 3), keepdim=True).clamp_min(1e-6) - 1)


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures as PIL resizes them: bicubic, smoothed where they become smaller, within the range of their pixels."""
    if picture.shape[-2:] == size:
        return picture
    resized = F.interpolate(picture, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(picture.amin((1, 2, 3), keepdim=True), picture.amax((1, 2, 3), keepdim=True))


def _cosine_basis(rows: int, columns: int) -> Tensor:
    """Orthonormal two-dimensional DCT-II of a patch, [coefficient, pixel], both row by row."""
    of_rows, of_columns = (torch.from_numpy(dct(np.eye(size), norm="ortho", axis=0)) for size in (rows, columns))
    return torch.kron(of_rows, of_columns).float()


FAMILY = "ddpm_mel"


class Config(FamilyConfig):
    family: Literal["ddpm_mel"] = FAMILY
    params: TrainParams
    labels: list[str]
    text: TextConfig | None = None  # if conditioned on captions; earlier checkpoints lack it
    mel_spec: MelSpec


@dataclass
class DdpmMel(OfEncodings, TrainedModel):
    """A `Model` (models/family.py).

    `levels` [N] are the levels of the training clips and `level_labels` [N, conditions] their label weights or the vector of their
    first caption: the level of a generated clip is drawn from them (a single unused row if the level is absolute).
    """

    config, channels, time_axis = Config, 1, 3

    params: TrainParams
    net: nn.Module
    mel_spec: MelSpec
    picture: PictureCodec
    levels: Tensor
    level_labels: Tensor
    vocoder: Vocoder | None = None  # None: Griffin-Lim

    @property
    def sample_rate(self) -> int:
        return self.mel_spec.sample_rate

    @property
    def spec(self) -> MelSpec:
        return self.mel_spec

    @property
    def num_samples(self) -> int:
        return self.picture.num_samples

    @property
    def encoded_samples(self) -> int:
        return self.picture.columns * self.mel_spec.hop_length

    @property
    def encoded_shape(self) -> tuple[int, int, int]:
        return self.picture.shape

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise → latents → log-mels → waves; the condition is the mean of a request's labels, or its caption."""
        return self.made(requests, run, Given(), self.num_samples)

    def made(self, requests: Sequence[Request], run: Run, given: Given, length: int, levels: Tensor | None = None) -> Tensor:
        conditions, seeds = self.vectors(requests, run), [request.seed for request in requests]
        levels = self._levels(conditions, seeds) if levels is None else levels
        log_mels = sample_log_mels(self, conditions, seeds, run, levels, given)
        return vocoding.to_waves(self.vocoder_for(run), log_mels, run.device, length, seeds)

    def drawn(self, requests: Sequence[Request], run: Run) -> tuple[Tensor]:
        return (self._levels(self.vectors(requests, run), [request.seed for request in requests]),)

    def _levels(self, conditions: Tensor, seeds: Sequence[int]) -> Tensor:
        """The level [N] of a random training clip among those whose labels match the condition best, drawn by the item's seed."""
        levels = []
        for condition, seed in zip(conditions, seeds, strict=True):
            similarity, rng = self.level_labels @ condition, torch.Generator().manual_seed(seed_of(seed, "level"))
            candidates = self.levels[similarity >= similarity.max() - 1e-6]
            levels.append(candidates[int(torch.randint(len(candidates), (), generator=rng))])
        return torch.stack(levels)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → log-mel → picture → log-mel → wave."""
        return vocoding.to_waves(self.vocoder_for(run), self.rebuilt(waves, run), run.device, waves.shape[2])

    def vocoder_for(self, run: Run) -> Vocoder:
        return vocoder_of(run.sampling, self.vocoder, self.mel_spec)

    def rebuilt(self, waves: Tensor, run: Run) -> Tensor:
        with torch.no_grad():
            return self.picture.decode(*self.encoded(waves, run))

    def encoded(self, waves: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """Latents of waves of any length, padded with silence or cut, and their levels; on the CPU."""
        fitted = F.pad(waves.mean(1), (0, self.num_samples - waves.shape[2]))
        with torch.no_grad():
            return self.picture.cpu().encode(torch.from_numpy(log_mel(fitted.numpy(), self.mel_spec)))

    def tensors(self) -> dict[str, Tensor]:
        return {**_nets(self.net, self.picture).state_dict(), "levels": self.levels, "level_labels": self.level_labels}

    @classmethod
    def load(cls, directory: Path) -> Self:
        config = family.read_config(directory, Config)
        params, spec, labels = config.params, config.mel_spec, config.labels
        path, levels = directory / checkpoint.WEIGHTS, ("levels", "level_labels")
        made = checkpoint.built(lambda: _nets(build_net(params, 1, len(labels)), PictureCodec(params.picture, spec)), path, levels)
        nets, tensors = made.eval(), checkpoint.read_weights(path)
        with checkpoint.must_fit(path):
            drawn = [tensors.pop(name) for name in levels]
            nets.load_state_dict(tensors)
            if drawn[1].shape != (*drawn[0].shape, params.text_width or len(labels)):
                raise RuntimeError(f"level_labels is {[*drawn[1].shape]} for {[*drawn[0].shape]} levels and {len(labels)} labels")
        vocoder = registry.chosen_vocoder(params.sampling, directory, spec)
        return cls(params, nets["net"], spec, nets["picture"], *drawn, vocoder, labels=labels, text=config.text)


def sample_log_mels(model: DdpmMel, conditions: Tensor, seeds: list[int], run: Run, levels: Tensor, given: Given) -> Tensor:
    """Log-mels [N, n_mels, frames] on the CPU for `conditions` [N, conditions]; `model.net` is moved to the run's device."""
    sampling, picture, diffusion = run.sampling, model.picture.cpu(), model.params.diffusion
    first, last = sampling.guidance_interval
    path = discrete(diffusion, diffusion.first_timestep)

    def work(items: slice) -> Tensor:
        condition = conditions[items].to(run.device)
        null, draw = torch.zeros_like(condition), Draw.of_seeds(seeds[items])
        outside = guided(model.net, (condition,), (null,), 1.0)
        inside = guided(model.net, (condition,), (null,), sampling.guidance_scale) if model.condition != "none" else outside
        steps = scheduled(path, sampling.sampler, sampling.num_steps, run.device, clip=sampling.clip)
        steps = given.steps(steps)
        turns = given.resamples if given.keep is not None else 1
        # In order: reading them from `t` would synchronise with the GPU at each step.
        visited = (level for level in steps.levels for _ in range(turns))

        def denoise(xt: Tensor, t: Tensor) -> Tensor:
            answer = inside if first <= next(visited) / diffusion.num_timesteps <= last else outside
            if model.params.network.channels_last:
                xt = xt.contiguous(memory_format=torch.channels_last)
            return answer(xt, t)

        return given.sample(items, steps, in_precision(denoise, run), picture.shape, draw, run.device)

    latents = sampled(model.net, len(seeds), run, work)
    with torch.no_grad():
        pictures = picture.from_latent(latents)
        if sampling.rescale:
            pictures = rescaled(pictures, picture.params.polarity)
        return picture.from_picture(pictures, levels)


def build_net(params: TrainParams, channels: int, num_labels: int) -> nn.Module:
    """The network, initialised from torch's global generator: (xt, t, label weights or vectors of captions) → prediction."""
    network, picture = params.network, params.picture
    conditions = params.text_width or num_labels if params.conditional else 0
    rows, columns = picture.height // picture.patch[0], picture.width // picture.patch[1]
    channels = picture.patch[0] * picture.patch[1]
    if isinstance(network, DiTParams):
        return PictureDiT(network, (channels, rows, columns), params.diffusion.num_timesteps, conditions)
    sizes = (network.widths, network.attention_levels, network.heads, network.embedding_size, conditions)
    if network.kind == "unet":
        net = UNet(channels, *sizes)
    else:
        options = network.model_dump(include={"blocks", "dropout", "gated"})
        net = ResidualUNet((channels, rows, columns), *sizes, **options)
    return net.to(memory_format=torch.channels_last) if network.channels_last else net


def _nets(net: nn.Module, picture: nn.Module) -> nn.ModuleDict:
    """Both as one module, whose weights are saved together."""
    return nn.ModuleDict({"net": net, "picture": picture})


load = DdpmMel.load


class Draws(NamedTuple):
    """Random draws for a step's whole batch, independent of the number of ranks."""

    places: Tensor  # [B] relative start of the crop, in [0, 1)
    shifts: Tensor  # [B] frames rolled
    gains: Tensor  # [B, 1, 1] dB
    kept: Tensor  # [B, 1] whether the label is kept
    times: Tensor  # [B] in [0, 1), which `Discrete.times` makes timesteps


def draws(params: TrainParams, frames: int, step: int) -> Draws:
    rng = torch.Generator().manual_seed(seed_of(params.seed, 0, "clip", step))
    count, augmentation, diffusion = params.batch_size, params.augmentation, params.diffusion
    places = torch.rand(count, generator=rng)
    shifts = torch.randint(frames, (count,), generator=rng)
    gains = (2 * torch.rand(count, 1, 1, generator=rng) - 1) * augmentation.gain_db
    kept = torch.rand(count, 1, generator=rng) >= augmentation.label_dropout
    if diffusion.stratified:
        time = (torch.arange(count) + torch.rand((), generator=rng)) / count
    else:
        time = torch.rand(count, generator=rng)
    return Draws(places, shifts, gains, kept, time)


class DdpmModule(TrainingModule):
    """A batch: clips, augmented by rotation and gain, encoded as pictures, noised, and denoised by the network."""

    def __init__(self, params: TrainParams, model: DdpmMel, steps: int):
        super().__init__(model.net, params, steps)
        self.model = model
        self.register_buffer("table", alpha_bar(params.diffusion), persistent=False)
        self.picture = model.picture

    def loss(self, step: int, batch: Batch) -> Tensor:
        params, diffusion = self.params, self.params.diffusion
        draw = Draws(*map(self.share, draws(params, self.picture.frames, step)))
        log_mel, told = batch.values
        condition = told * draw.kept.to(self.device, non_blocking=True)
        path = Discrete(self.table, diffusion.objective, diffusion.first_timestep)
        t = path.times(draw.times).to(self.device, non_blocking=True)

        with torch.autocast(self.device.type, enabled=False):
            x0 = self.picture.encode(self._augment(log_mel.float(), draw))[0]
        if params.network.channels_last:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        noise = self.noise_like(x0, self.rng("noise", step))
        importance = self.picture.importance() if diffusion.errors_in == "picture" else 1.0
        return scheduled_loss(path, diffusion, lambda xt, t: self.net(xt, t, condition), x0, t, noise, importance)

    def _augment(self, log_mel: Tensor, draw: Draws) -> Tensor:
        """log_mel [b, n_mels, frames], rotated in time and with a random gain."""
        if self.params.augmentation.time_roll:
            log_mel = torch.stack([one.roll(shift, dims=1) for one, shift in zip(log_mel, draw.shifts.tolist(), strict=True)])
        louder = log_mel + draw.gains.to(log_mel, non_blocking=True) * (math.log(10) / 20 * self.model.mel_spec.power)
        return louder.clamp_min(self.picture.silence)


def prepare(params: TrainParams, ctx: Any, mels: Path, parts: Path, catalog: Path, start: DdpmMel | None) -> Prepared:
    """A training that starts from another keeps its labels and the standardisation of its pictures."""
    known, spec = Clips.read(params, ctx, catalog).learn_conditions(FAMILY, start, parts / "text"), read_spec(mels)
    if params.by_label and not known.labels:
        terminal.say("no training clip has a label: the model will be unconditional")
    if start:
        compare(params.start_from, {"mel_spec": start.mel_spec.model_dump()}, {"mel_spec": spec.model_dump()})
    picture, train = PictureCodec(params.picture, spec), list(known.train)
    log_mels = gather_log_mels(mels, train, ctx.scratch)

    def source_of(clip_ids: Sequence[str]) -> Source:
        crops = Crops(gather_log_mels(mels, clip_ids, ctx.scratch), picture.frames, picture.silence)
        # Without labels, too, the loss takes label weights: [b, 0].
        return known.told(crops, clip_ids) if known.text else Labelled(crops, known.label_weights(clip_ids))

    if start:
        picture.load_state_dict(start.picture.state_dict())
    else:
        picture.fit(log_mels.beginnings(picture.frames, picture.silence))

    torch.manual_seed(params.seed)
    net = build_net(params, 1, len(known.labels))
    levels = torch.cat([picture.level(batch) for batch in log_mels.beginnings(picture.frames, picture.silence)])
    if params.picture.level == "absolute":
        levels, level_labels = levels[:1].clone(), torch.zeros(1, params.text_width or len(known.labels))
    else:
        level_labels = known.level_conditions(train)
    vocoder = registry.chosen_vocoder(params.sampling, parts, spec)
    model = DdpmMel(params, net, spec, picture, levels, level_labels, vocoder, **known.conditions)
    module = DdpmModule(params, model, known.steps)
    draw = known.drawing(lambda step: draws(params, picture.frames, step).places)
    seconds = picture.frames * spec.hop_length / spec.sample_rate
    used = [parts / registry.VOCODER] if vocoder else []
    return known.prepared(module, model, source_of, draw, seconds, known.counts, parts=used)


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: nn.Module, labels: int) -> Rehearsal:
    spec = strict.parse_section(document, f"spectrogram.{FAMILY}", mel.SpectrogramParams).spec
    picture = PictureCodec(params.picture, spec)
    module = DdpmModule(params, DdpmMel(params, net, spec, picture, torch.zeros(1), torch.zeros(1, labels)), steps=1)
    noise, told = (params.batch_size, spec.n_mels, picture.frames), torch.zeros(params.batch_size, params.text_width or labels)
    return rehearsal(module, [noise], [told], guided_passes(sampling, bool(labels or params.text_width)))
