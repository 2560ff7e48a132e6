"""A model family: requests for sounds, what a trained model can do, and what the family's package offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

from pydantic import ConfigDict

from soundmill.errors import UserError
from soundmill.hashing import tree_digest
from soundmill.training import checkpoint
from soundmill.training.params import Use

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from soundmill.models.params import FamilyGenerateParams, FamilyTrainParams
    from soundmill.training.loader import Batch, Joined, Order, Source
    from soundmill.training.module import TrainingModule
    from soundmill.training.validation import HeldOut

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


class FamilyConfig(checkpoint.Config):
    """The `config.json` of a family's checkpoint, beside facts for people; a family adds what its model is rebuilt from."""

    model_config = ConfigDict(extra="ignore")

    family: str  # a family makes it a Literal of its name, which is the default
    params: Any  # and this its training's parameters


F = TypeVar("F", bound=FamilyConfig)


@dataclass
class Prepared:
    """A training as a family prepared it from its inputs."""

    module: TrainingModule
    model: Model  # whose nets the module trains
    source: Source
    order: Order | Joined
    draw: Callable[[int], Tensor]  # chance of a step, as Loader takes it
    clip_ids: Sequence[str]  # trained on
    counts: dict[str, int]  # beside the clips: labels, mixes, captions
    samples: Sequence[Request] | Tensor  # shown while it trains: sounds to generate, or real waves [N, C, T] to reconstruct
    columns: int  # of the picture of samples
    held_out: HeldOut | None  # None where the validation split has no clip
    save: Callable[[Path, dict[str, Any]], None]  # the checkpoint into a directory, with facts for people
    mixes: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # trained on: by id, the clips in each


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


def save(directory: Path, config: FamilyConfig, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], **more: Any) -> None:
    """Write a family's checkpoint with `facts` for people; `more` as `checkpoint.save` takes it."""
    checkpoint.save(directory, {**config.model_dump(mode="json"), **facts}, tensors, **more)


def read_config(directory: Path, config: type[F]) -> F:
    """The config of a checkpoint; UserError where it is of another family, or does not fit this version."""
    family_of(directory, config.model_fields["family"].default)
    return checkpoint.load_config(directory, config)


def family_of(directory: Path, expected: str | None = None) -> str:
    """The family of a checkpoint; UserError where there is none, or it is of another family than `expected`."""
    family = checkpoint.read(directory).get("family")
    if not isinstance(family, str):
        raise UserError(f"{directory / checkpoint.CONFIG}: not a Soundmill checkpoint: it names no `family`")
    if expected is not None and family != expected:
        raise UserError(f"{directory}: a checkpoint of family {family!r}, not {expected!r}; use `--family {family}` or retrain")
    return family


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory is the checkpoint of a family, and not of a component."""
    return (directory / checkpoint.CONFIG).is_file() and "family" in checkpoint.read(directory)


def origin(directory: Path) -> dict[str, str]:
    """The family of a checkpoint, and the digest that identifies it."""
    return {"family": family_of(directory), "checkpoint": tree_digest(directory)}


def use_weights(model: Model, directory: Path, which: Use) -> str:
    """Give a model that was loaded from `directory` the weights of `which`; returns what it has now, in words.

    A loaded model has its last weights. Weights that are not in the checkpoint are a UserError.
    """
    stored = checkpoint.read(directory).get("weights")
    if not isinstance(stored, dict):
        raise UserError(f"{directory / checkpoint.CONFIG}: `weights` is missing: not a whole checkpoint; retrain with `dvc repro`")
    if which == "best" and "best" not in stored:
        raise UserError(f"{directory}: no clip was held out from this training, so it has no best weights; set `use` to `last`")
    name = next((one for one in (str(which), "last", "best") if one in stored and which in (one, stored[one]["step"])), None)
    if name is None:
        steps = ", ".join(str(step) for step in sorted({weights["step"] for weights in stored.values()}))
        raise UserError(f"{directory}: has no weights of step {which}; it has those of steps {steps} (keep_every_steps keeps more)")
    step = stored[name]["step"]
    if name != "last":
        file = checkpoint.BEST if name == "best" else checkpoint.weights_of_step(step)
        checkpoint.load_weights(model.net, directory / file)
    loss = f", held-out loss {stored[name]['valid_loss']:.4g}" if "valid_loss" in stored[name] else ""
    return f"{name} weights (step {step}{loss})" if name in ("last", "best") else f"weights of step {name}{loss}"
