"""Train the generator against discriminators on features of frozen networks."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundmill import params as strict
from soundmill import terminal
from soundmill.audio import mel
from soundmill.audio.log_mels import read_spec
from soundmill.errors import UserError
from soundmill.models.components import registry
from soundmill.models.components.log_mels.source import Crops, LogMels, gather_log_mels
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_clip_plan
from soundmill.models.preparing import Clips, places_of, rehearsal
from soundmill.models.projected_gan import model as models
from soundmill.models.projected_gan.discriminators import Discriminators, discriminator_loss, generator_loss
from soundmill.models.projected_gan.generator import Generator
from soundmill.models.projected_gan.model import FAMILY, ProjectedGan
from soundmill.models.projected_gan.params import SamplingParams, TrainParams
from soundmill.models.projected_gan.picture import LoopPicture
from soundmill.models.projected_gan.projectors import Chosen, choose
from soundmill.training.loader import Batch, Source
from soundmill.training.phases import Phase, PhasedModule, Turn
from soundmill.training.starting import compare

AT_ONCE = 32  # clips per batch when measuring mean and deviation


class ProjectedGanModule(PhasedModule):
    """A batch: real pictures, and as many generated ones. Each is projected once, for all discriminators and both turns."""

    def __init__(self, params: TrainParams, net: Generator, picture: LoopPicture, chosen: Chosen, num_labels: int, steps: int):
        sizes = params.discriminators
        inputs = [projector.channels for projector in chosen.nets]
        discriminators = Discriminators(inputs, [sizes.mixed_widths[0], *sizes.mixed_widths], num_labels)
        super().__init__(net, {"discriminator": (discriminators, sizes.optimiser)}, params, steps)
        self.picture, self.projectors, self.names = picture, chosen.nets, chosen.names

    def phases(self) -> list[Phase]:
        return [Phase((Turn("discriminator"), Turn("net")), self.losses)]

    def losses(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        real, labels = self._real(batch)
        fake = self.make(len(real), labels, self.rng("latent", step))
        with torch.no_grad():
            real_maps = [project(real) for project in self.projectors]
        fake_maps = [project(fake) for project in self.projectors]
        detached = [[one.detach() for one in maps] for maps in fake_maps]
        yield discriminator_loss(self.discriminator(real_maps, labels), self.discriminator(detached, labels))
        yield generator_loss(self.discriminator(fake_maps, labels))

    def make(self, count: int, labels: Tensor | None, rng: torch.Generator) -> Tensor:
        """Generated pictures [count, 1, frames, n_mels], with style mixing (Karras et al. 2019, 3.1)."""
        net, width = self.net, self.params.generator.z_width
        total, on = count * self.world_size, {"generator": rng, "device": rng.device}
        first, second = (net.styles(self.share(torch.randn(total, width, **on)), labels) for _ in range(2))
        mixed = self.share(torch.rand(total, 1, **on)) < self.params.generator.style_mixing
        change = self.share(torch.randint(1, net.layers, (total, 1), **on))
        later = (torch.arange(net.layers, device=rng.device) >= change) & mixed
        return net(
            torch.where(later[..., None], second[:, None], first[:, None]), [self.share(one) for one in net.noise(total, rng)]
        )

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
    params.check_spec(spec)
    known.learn_conditions(FAMILY, start)
    log_mels = gather_log_mels(mels, list(known.train), ctx.scratch)
    picture = LoopPicture(spec, _length(log_mels, spec, params, mels), params.generator.frames, params.fit)
    if start:
        theirs = {"mel_spec": start.mel_spec.model_dump(), "num_samples": start.num_samples}
        compare(params.start_from, theirs, {"mel_spec": spec.model_dump(), "num_samples": picture.num_samples})
        picture.load_state_dict(start.picture.state_dict())
    else:
        picture.measure(_all(log_mels, picture))

    def source_of(clip_ids: Sequence[str]) -> Source:
        return known.labelled(Crops(gather_log_mels(mels, clip_ids, ctx.scratch), picture.frames, picture.silence), clip_ids)

    torch.manual_seed(params.seed)
    net = models.build_net(params, len(known.labels))
    chosen = choose(params.discriminators, tagger, params.seed, report=lambda text: terminal.say(f"{ctx.name}: {text}"))
    against = sorted({*(name for name in chosen.names if name in models.EMBEDDERS), *(start.trained_against if start else ())})
    vocoder = registry.vocoder_in(parts, spec)
    model = ProjectedGan(params, net, spec, picture, list(chosen.names), against, vocoder, **known.conditions)
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


def _all(log_mels: LogMels, picture: LoopPicture) -> Iterator[Tensor]:
    for first in range(0, len(log_mels), AT_ONCE):
        items = range(first, min(first + AT_ONCE, len(log_mels)))
        yield log_mels.crops(items, [0.0] * len(items), picture.frames, picture.silence).float()


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: Generator, labels: int) -> Rehearsal:
    """See models/family.py; projectors whose weights are unavailable are timed with random ones."""
    spec = strict.parse_section(document, f"spectrogram.{FAMILY}", mel.SpectrogramParams).spec
    seconds = read_clip_plan(document, FAMILY)["clip_seconds"]
    picture = LoopPicture(spec, round(seconds * spec.sample_rate), params.generator.frames, params.fit)
    stand_in = params.discriminators.model_copy(update={"missing": "random"})
    chosen = choose(stand_in, Path(document["families"][FAMILY]["tagger"]), params.seed, report=lambda text: None)

    def values(rng: torch.Generator) -> tuple[Tensor, ...]:
        noise = torch.randn(params.batch_size, spec.n_mels, picture.frames, generator=rng)
        return noise, *((torch.zeros(params.batch_size, labels),) if labels else ())

    return rehearsal(ProjectedGanModule(params, net, picture, chosen, labels, steps=1), values, 1)
