"""A model family: requests for sounds, what a trained model can do, and what the family's package offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from soundmill.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from soundmill.models.params import FamilyGenerateParams, FamilyTrainParams
    from soundmill.models.training import Prepared
    from soundmill.training.loader import Batch
    from soundmill.training.module import TrainingModule

Capability = Literal["generate", "reconstruct", "transform", "interpolate"]


@dataclass(frozen=True)
class Request:
    """One sound wanted; empty means unconditional."""

    labels: tuple[str, ...] = ()
    caption: str = ""
    seed: int = 0
    start: int | None = None  # of a part of a longer sound, its first sample there


@dataclass(frozen=True)
class Run:
    """Settings of one call: sampling, device, batches."""

    sampling: Any  # the family's own section: steps, guidance, masks, amounts …
    device: torch.device
    precision: str
    batch_size: int
    home: Path  # where relative names of text encoders start
    scratch: Path
    digests: Path | None = None  # cache of file digests
    progress: Callable[[int], Any] = lambda n: None  # `generate` tells how many more sounds are made


class Model(Protocol):
    """A trained model, rebuilt from its checkpoint alone. It has those of the last four that it can (`can`).

    All waves are float32 [N, channels, T] in [−1, 1] at `sample_rate`; T is `num_samples` where that is not None.
    """

    params: FamilyTrainParams  # the training's
    net: nn.Module  # that was trained
    sample_rate: int
    channels: int
    num_samples: int | None
    condition: Literal["labels", "caption", "none"]  # what of a request it reads
    labels: Sequence[str]  # those it knows

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """A wave for each request, each from its own seed."""

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Through the model's representation and back; as long as they were, but not longer than `num_samples`."""

    def transform(self, waves: Tensor, requests: Sequence[Request], run: Run) -> Tensor:
        """Restyled, inpainted, enlarged: one for each wave."""

    def interpolate(self, ends: tuple[Request, Request], waves: Tensor | None, shares: Sequence[float], run: Run) -> Tensor:
        """Sounds on the way between two requests' seeds, or between `waves` [2, channels, T] where they are given: for each share.

        0 is the first, 1 the second; what is asked for beside the seed is the first's.
        """


@dataclass(frozen=True)
class Rehearsal:
    """A family's training on noise, to time its own loss."""

    module: TrainingModule
    batch: Callable[[int], Batch]  # of step 0, 1, …
    clips: int  # in a batch; an epoch counts them
    passes: int  # of its net for one generated sound


@dataclass(frozen=True)
class Family:
    """What a family's package offers as `FAMILY`. Its modules are named, not imported: parameters are read without torch."""

    title: str  # what it is, and where it comes from: a line each
    paper: str
    train_params: type[FamilyTrainParams]  # of `<family>.train`
    generate_params: type[FamilyGenerateParams]  # of `<family>.generate`
    model: str  # module that has `load` and `networks`
    training: str  # module that has `prepare` and `rehearse`
    fixed: tuple[str, ...] = ()  # parts of `<family>.train` that a net's weights are of: a training from others is refused
    published: str = ""  # module that has `read`, of files with its `SUFFIX` that others published, where there are such
    tagger: bool = False  # its training takes the project's tagger
    loops: bool = False  # its sounds are loops of one bar in 4/4, as long as its `num_samples`
    trained_against: tuple[str, ...] = ()  # embedders whose networks are in its losses: they do not rank it

    def load(self, directory: Path) -> Model:
        """A model from its checkpoint directory, with its last weights."""
        return import_module(self.model).load(directory)

    def networks(self, document: dict[str, Any]) -> dict[str, nn.Module]:
        """Its networks by part, freshly initialised, for the content of a params.yaml.

        Called on torch's meta device, so that any scale can be counted: it must not read a weight's value.
        """
        return import_module(self.model).networks(document)

    def prepare(
        self, params: FamilyTrainParams, ctx: Any, inputs: Path, parts: Path, tagger: Path, catalog: Path, start: Model | None
    ) -> Prepared:
        """A training, for models/training.py, which gives it the weights of `start`: of the same `fixed` parts, or None.

        In `parts` lies what stages made for the family beside its inputs: `vocoder/`, `text/`. `tagger` is for those that take it.
        """
        more = {"tagger": tagger} if self.tagger else {}
        return import_module(self.training).prepare(params, ctx, inputs, parts, catalog, start, **more)

    def rehearse(self, document: dict[str, Any], num_labels: int) -> Rehearsal:
        """A training on noise, for the content of a params.yaml and a number of labels."""
        return import_module(self.training).rehearse(document, num_labels)


def can(model: Model, what: Capability) -> bool:
    return callable(getattr(model, what, None))


def require(model: Model, what: Capability, name: str) -> None:
    """UserError where a model of the family `name` cannot do this."""
    if not can(model, what):
        able = [other for other in get_args(Capability) if can(model, other)]
        raise UserError(f"the family {name!r} cannot {what}; it can {' and '.join(able)}")
