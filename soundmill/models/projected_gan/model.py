"""A projected GAN: its pictures of loops, its model and checkpoint, and its training against discriminators."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from soundmill import params as strict
from soundmill import terminal
from soundmill.audio import mel
from soundmill.audio.log_mels import read_spec
from soundmill.audio.mel import MelSpec, log_mel
from soundmill.audio.pieces import closed
from soundmill.errors import UserError
from soundmill.models import family
from soundmill.models.components import registry, vocoding
from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.log_mels.source import Crops, LogMels, gather_log_mels
from soundmill.models.family import FamilyConfig, Prepared, Rehearsal, Request, Run
from soundmill.models.params import read_clip_plan
from soundmill.models.preparing import Clips, places_of, rehearsal
from soundmill.models.projected_gan import SamplingParams, TrainParams
from soundmill.models.projected_gan.networks import Chosen, Discriminators, Generator, choose
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.trained import TrainedModel, label_weights
from soundmill.training import checkpoint
from soundmill.training.checkpoint import compare
from soundmill.training.loader import Batch, Source
from soundmill.training.module import PhasedModule, hinge_discriminator_loss, hinge_generator_loss
from soundmill.training.seeds import seed_of

FAMILY = "projected_gan"
EMBEDDERS = ("vggish", "tagger")  # projectors whose networks are also embedders of the evaluation
MEAN_OF = 4096  # latents that estimate the mean style for truncation
CONTEXT = 32  # frames of circular padding at both ends of a loop for the vocoder
FADE_SECONDS = 0.02  # crossfade of a loop's end into the sound before its start


class LoopPicture(nn.Module):
    """log_mel [B, n_mels, frames] ↔ picture [B, 1, rows, n_mels], each band with mean 0 and deviation 1 over the training clips.

    A loop is circular: the frame at its end is its first one. If there are more frames than `rows`, the last ones are cut (and
    decoded as silence), or all are resized to `rows` (`resize`).
    """

    def __init__(self, spec: MelSpec, num_samples: int, rows: int, fit: Literal["cut", "resize"]):
        super().__init__()
        self.spec, self.num_samples, self.rows, self.fit = spec, num_samples, rows, fit
        self.frames = num_samples // spec.hop_length
        self.filled = min(rows, self.frames) if fit == "cut" else self.frames  # frames that are not decoded as silence
        self.silence = math.log(spec.floor)
        self.register_buffer("mean", torch.zeros(spec.n_mels))
        self.register_buffer("deviation", torch.ones(spec.n_mels))

    def measure(self, log_mels: Iterable[Tensor]) -> None:
        """Set mean and deviation from the training clips."""
        count, total, squares = 0, 0.0, 0.0
        for batch in log_mels:
            values = batch.double()
            count += values.shape[0] * values.shape[2]
            total, squares = total + values.sum((0, 2)), squares + values.square().sum((0, 2))
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((squares / count - mean.square()).clamp_min(1e-4).sqrt())

    def encode(self, log_mel: Tensor) -> Tensor:
        """Pictures from log-mels with at least `frames` frames."""
        x = (log_mel[:, :, : self.frames] - self.mean[:, None]) / self.deviation[:, None]
        x = x[:, :, : self.rows] if self.fit == "cut" else _in_time(x, self.rows)
        return x.transpose(1, 2)[:, None]

    def decode(self, picture: Tensor) -> Tensor:
        x = picture[:, 0].transpose(1, 2)
        if self.fit == "resize":
            x = _in_time(x, self.frames)
        log_mel = (x * self.deviation[:, None] + self.mean[:, None]).clamp_min(self.silence)
        return pad(log_mel, (0, self.frames - log_mel.shape[2]), value=self.silence)


def _in_time(x: Tensor, size: int) -> Tensor:
    """[B, n_mels, frames] resized to `size` frames, treated as circular."""
    if x.shape[2] == size:
        return x
    padded = torch.cat([x[..., -1:], x, x[..., :1]], 2)
    positions = (torch.arange(size, device=x.device) * (x.shape[2] / size)) + 1
    below = positions.floor().long()
    return torch.lerp(padded[..., below], padded[..., below + 1], (positions - below).to(x))


class Config(FamilyConfig):
    family: Literal["projected_gan"] = FAMILY
    params: TrainParams
    mel_spec: MelSpec
    labels: list[str]
    num_samples: int = Field(ge=1, le=2**28)
    projectors: list[str]
    trained_against: list[str]


@dataclass
class ProjectedGan(TrainedModel):
    """A `Model` (models/family.py).

    `projectors` are those of its discriminators; `trained_against` are the embedders among them and among those of earlier
    trainings: these do not rank the model.
    """

    config, channels = Config, 1

    params: TrainParams
    net: Generator
    mel_spec: MelSpec
    picture: LoopPicture
    projectors: Sequence[str]
    trained_against: Sequence[str]
    vocoder: Vocoder | None = None  # None: Griffin-Lim

    @property
    def sample_rate(self) -> int:
        return self.mel_spec.sample_rate

    @property
    def num_samples(self) -> int:
        return self.picture.num_samples

    @property
    def remark(self) -> str:
        return f"discriminators on {' and '.join(self.projectors)}".replace("none", "the pictures themselves")

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Latent → style → picture → log-mel → wave; the condition averages a request's labels or is a random one."""
        styles = [self._style(request, run.sampling.psi) for request in requests]
        seeds = [request.seed for request in requests]
        return self._to_waves(self._log_mels(styles, seeds, run), run, seeds)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → log-mel → picture → log-mel → wave."""
        return self._to_waves(self.rebuilt(waves, run), run)[..., : waves.shape[2]]

    @property
    def rebuilt_samples(self) -> int:
        """Length of a window of a longer sound: without the end that a picture lacks."""
        return self.picture.filled * self.mel_spec.hop_length

    def vocoder_for(self, run: Run) -> Vocoder:
        return self.vocoder or GriffinLim(self.mel_spec, run.sampling)

    @torch.no_grad()
    def rebuilt(self, waves: Tensor, run: Run) -> Tensor:
        fitted = pad(waves.mean(1), (0, max(0, self.num_samples - waves.shape[2])))[:, : self.num_samples]
        picture = self.picture.cpu()
        return picture.decode(picture.encode(torch.from_numpy(log_mel(fitted.numpy(), self.mel_spec))))

    def interpolate(self, ends: tuple[Request, Request], waves: Tensor | None, shares: Sequence[float], run: Run) -> Tensor:
        """Interpolate between the styles of two seeds, with the noise of the first."""
        if waves is not None:
            raise UserError(f"the family {FAMILY!r} interpolates only between seeds: recordings have no style; give two seeds")
        first, second = (self._style(request, run.sampling.psi) for request in ends)
        styles = [torch.lerp(first, second, share) for share in shares]
        seeds = [ends[0].seed] * len(shares)
        return self._to_waves(self._log_mels(styles, seeds, run), run, seeds)

    @torch.no_grad()
    def _style(self, request: Request, psi: float) -> Tensor:
        """The style [w_width] of a request, truncated towards the mean style of its label (Karras et al. 2019, sec. 2.1)."""
        net = self.net.cpu()
        label = None
        if self.labels:  # training is never unlabelled, so a request without a known label gets one by its seed
            known = [label for label in request.labels if label in self.labels]
            drawn = self.labels[seed_of(request.seed, "label") % len(self.labels)]
            label = label_weights(known or [drawn], self.labels)[None]
        rng = torch.Generator().manual_seed(seed_of(request.seed, "z"))
        z = torch.randn(1, net.params.z_width, generator=rng)
        latents = torch.randn(MEAN_OF, net.params.z_width, generator=torch.Generator().manual_seed(0))
        mean = net.styles(latents, None if label is None else label.expand(MEAN_OF, -1)).mean(0)
        return torch.lerp(mean, net.styles(z, label)[0], psi)

    def _log_mels(self, styles: Sequence[Tensor], seeds: Sequence[int], run: Run) -> Tensor:
        """Generated log-mels, on the CPU, each with the noise of its seed."""
        net = self.net

        def work(items: slice) -> Tensor:
            part = torch.stack(list(styles[items])).to(run.device)
            rngs = [torch.Generator().manual_seed(seed_of(seed, "noise")) for seed in seeds[items]]
            noise = [torch.cat(layer).to(run.device) for layer in zip(*(net.noise(1, rng) for rng in rngs), strict=True)]
            return in_precision(net, run)(part[:, None].expand(-1, net.layers, -1), noise)

        return self.picture.cpu().decode(sampled(net, len(styles), run, work))

    def _to_waves(self, log_mels: Tensor, run: Run, seeds: Sequence[int] = ()) -> Tensor:
        """Seamless loops: log-mels are padded circularly before vocoding."""
        padded = torch.cat([log_mels[..., -CONTEXT:], log_mels, log_mels[..., :CONTEXT]], 2)
        waves = vocoding.to_waves(self.vocoder_for(run), padded, run.device, seeds=seeds)
        fade = round(FADE_SECONDS * self.sample_rate)
        return torch.from_numpy(closed(waves.numpy(), CONTEXT * self.mel_spec.hop_length, self.num_samples, fade))

    def tensors(self) -> dict[str, Tensor]:
        return nn.ModuleDict({"net": self.net, "picture": self.picture}).state_dict()

    @classmethod
    def load(cls, directory: Path) -> Self:
        config = family.read_config(directory, Config)
        params, spec = config.params, config.mel_spec

        def made() -> nn.ModuleDict:
            picture = LoopPicture(spec, config.num_samples, params.generator.frames, params.fit)
            return nn.ModuleDict({"net": build_net(params, 1, len(config.labels)), "picture": picture})

        nets = checkpoint.load_weights(made, directory / checkpoint.WEIGHTS)
        more = config.projectors, config.trained_against, registry.vocoder_in(directory, spec)
        return cls(params, nets["net"], spec, nets["picture"], *more, labels=config.labels)


def build_net(params: TrainParams, channels: int, num_labels: int) -> Generator:
    return Generator(params.generator, num_labels, looped=params.fit == "resize")


load = ProjectedGan.load


class ProjectedGanModule(PhasedModule):
    """A batch: real pictures, and as many generated ones. Each is projected once, for all discriminators and both turns."""

    def __init__(self, params: TrainParams, net: Generator, picture: LoopPicture, chosen: Chosen, num_labels: int, steps: int):
        sizes, (projectors, names) = params.discriminators, chosen
        inputs = [projector.channels for projector in projectors]
        discriminators = Discriminators(inputs, [sizes.mixed_widths[0], *sizes.mixed_widths], num_labels)
        super().__init__(net, {"discriminator": (discriminators, sizes.optimiser)}, params, steps)
        self.picture, self.projectors, self.names = picture, projectors, names

    def losses(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        real, labels = self._real(batch)
        fake = self.make(len(real), labels, self.rng("latent", step))
        with torch.no_grad():
            real_maps = [project(real) for project in self.projectors]
        fake_maps = [project(fake) for project in self.projectors]
        detached = [[one.detach() for one in maps] for maps in fake_maps]
        yield hinge_discriminator_loss([self.discriminator(real_maps, labels)], [self.discriminator(detached, labels)])
        yield hinge_generator_loss([self.discriminator(fake_maps, labels)])

    def make(self, count: int, labels: Tensor | None, rng: torch.Generator) -> Tensor:
        """Generated pictures [count, 1, frames, n_mels], with style mixing (Karras et al. 2019, 3.1)."""
        net, width = self.net, self.params.generator.z_width
        total, on = count * self.world_size, {"generator": rng, "device": rng.device}
        first, second = (net.styles(self.share(torch.randn(total, width, **on)), labels) for _ in range(2))
        mixed = self.share(torch.rand(total, 1, **on)) < self.params.generator.style_mixing
        change = self.share(torch.randint(1, net.layers, (total, 1), **on))
        later = (torch.arange(net.layers, device=rng.device) >= change) & mixed
        styles = torch.where(later[..., None], second[:, None], first[:, None])
        return net(styles, [self.share(one) for one in net.noise(total, rng)])

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """Difference of each band's mean and deviation from real ones; adversarial losses are not comparable between steps."""
        real, labels = self._real(batch)
        fake = self.make(len(real), labels, self.rng("held out", step)).float()
        differences = [fake.mean((0, 1, 2)) - real.mean((0, 1, 2)), fake.std((0, 1, 2)) - real.std((0, 1, 2))]
        return torch.stack(differences).abs().mean(1).sum()

    def _real(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        log_mel, *labels = batch.values
        with torch.autocast(self.device.type, enabled=False):
            return self.picture.encode(log_mel.float()), labels[0] if labels else None

    def more_state(self) -> dict[str, Any]:
        return {"projectors": list(self.names)}

    def check_state(self, state: dict[str, Any]) -> None:
        if state["projectors"] != list(self.names):
            raise UserError(
                f"the interrupted training used the projectors {', '.join(state['projectors'])}, this one has "
                f"{', '.join(self.names)}: restore the weights, or start over (remove data/.work/train-{FAMILY})"
            )


def prepare(
    params: TrainParams, ctx: Any, mels: Path, parts: Path, catalog: Path, start: ProjectedGan | None, tagger: Path
) -> Prepared:
    """A training that starts from another keeps its labels and the standardisation of its pictures."""
    spec, known = read_spec(mels), Clips.read(params, ctx, catalog)
    params.check_spec(spec, spec.sample_rate, str(mels))
    known.learn_conditions(FAMILY, start)
    log_mels = gather_log_mels(mels, list(known.train), ctx.scratch)
    picture = LoopPicture(spec, _length(log_mels, spec, params, mels), params.generator.frames, params.fit)
    if start:
        theirs = {"mel_spec": start.mel_spec.model_dump(), "num_samples": start.num_samples}
        compare(params.start_from, theirs, {"mel_spec": spec.model_dump(), "num_samples": picture.num_samples})
        picture.load_state_dict(start.picture.state_dict())
    else:
        picture.measure(log_mels.beginnings(picture.frames, picture.silence))

    def source_of(clip_ids: Sequence[str]) -> Source:
        return known.labelled(Crops(gather_log_mels(mels, clip_ids, ctx.scratch), picture.frames, picture.silence), clip_ids)

    torch.manual_seed(params.seed)
    net = build_net(params, 1, len(known.labels))
    chosen = choose(params.discriminators, tagger, params.seed, report=lambda text: terminal.say(f"{ctx.name}: {text}"))
    against = sorted({*(name for name in chosen[1] if name in EMBEDDERS), *(start.trained_against if start else ())})
    vocoder = registry.vocoder_in(parts, spec)
    model = ProjectedGan(params, net, spec, picture, chosen[1], against, vocoder, **known.conditions)
    module = ProjectedGanModule(params, net, picture, chosen, len(known.labels), known.steps)
    draw = partial(places_of, "start", params.seed, params.batch_size)  # the first beat of each loop
    used, seconds = [parts / registry.VOCODER] if vocoder else [], picture.num_samples / spec.sample_rate
    return known.prepared(module, model, source_of, draw, seconds, known.counts, parts=used)


def _length(log_mels: LogMels, spec: mel.MelSpec, params: TrainParams, mels: Path) -> int:
    """Length of the clips in samples; UserError if lengths differ or are shorter than the pictures."""
    frames = {int(count) - 1 for count in log_mels.arrays.shapes[:, 1]}
    if len(frames) > 1 or min(frames) < params.generator.frames:
        lengths = " and ".join(f"{count * spec.hop_length / spec.sample_rate:g}" for count in sorted(frames)[:2])
        least = params.generator.frames * spec.hop_length / spec.sample_rate
        raise UserError(
            f"{mels}: clips of {lengths} s; {FAMILY} needs loops of equal length, at least {least:g} s: use the clips of "
            f"`loops`, as families.{FAMILY}.clips has them"
        )
    return frames.pop() * spec.hop_length


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: Generator, labels: int) -> Rehearsal:
    """See models/family.py; projectors whose weights are unavailable are timed with random ones."""
    spec = strict.parse_section(document, f"spectrogram.{FAMILY}", mel.SpectrogramParams).spec
    seconds = read_clip_plan(document, FAMILY)["clip_seconds"]
    picture = LoopPicture(spec, round(seconds * spec.sample_rate), params.generator.frames, params.fit)
    stand_in = params.discriminators.model_copy(update={"missing": "random"})
    chosen = choose(stand_in, Path(document["families"][FAMILY]["tagger"]), params.seed, report=lambda text: None)
    module = ProjectedGanModule(params, net, picture, chosen, labels, steps=1)
    told = [torch.zeros(params.batch_size, labels)] if labels else []
    return rehearsal(module, [(params.batch_size, spec.n_mels, picture.frames)], told, 1)
