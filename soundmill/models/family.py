"""A model family: requests for sounds, what a trained model can do, and what the family's package offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

from pydantic import ConfigDict

from soundmill.audio.tags import MadeBy, SourceType
from soundmill.errors import UserError
from soundmill.hashing import tree_digest
from soundmill.models import adapted
from soundmill.models.components import registry as components
from soundmill.models.params import FamilyGenerateParams, read_clip_plan, read_sections
from soundmill.params import parse_section
from soundmill.training import checkpoint
from soundmill.training.params import Use
from soundmill.training.seeds import seed_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from soundmill.models.components.contracts import Vocoder
    from soundmill.models.params import FamilyTrainParams
    from soundmill.training.loader import Batch, Joined, Order, Source
    from soundmill.training.module import TrainingModule
    from soundmill.training.monitoring import HeldOut

JUDGE = "tagger"  # the embedder that scores sounds while a family trains
MAX_FRAMES = 2**20  # of latents or log-mels in a sound, as a config states them
Capability = Literal["generate", "reconstruct", "transform", "interpolate"]
Command = Literal["generate", "restyle", "inpaint", "upsample", "interpolate", "reconstruct"]


@dataclass(frozen=True)
class Request:
    """A request for one sound; empty means unconditional."""

    labels: tuple[str, ...] = ()
    caption: str = ""
    seed: int = 0
    start: int | None = None  # for a part of a longer sound: its first sample
    seconds: float | None = None  # length of the sound, for models that make any; None: the model's own

    @property
    def window_seed(self) -> int:
        """Another seed for each part of a longer sound."""
        return self.seed if self.start is None else seed_of(self.seed, self.start)


@dataclass(frozen=True)
class Run:
    """Settings of one call: sampling, device, batches."""

    sampling: Any  # the family's section `generate`: steps, guidance, masks, amounts …
    device: torch.device
    precision: str
    batch_size: int
    home: Path  # base of relative paths of text encoders
    scratch: Path
    digests: Path | None = None  # cache of file digests
    progress: Callable[[int], Any] = lambda n: None  # called by `generate` with the number of new sounds


class Model(Protocol):
    """A trained model, rebuilt from its checkpoint alone. It has only some of these methods; see `can`.

    All waves are float32 [N, channels, T] in [−1, 1] at `sample_rate`; T is `num_samples` unless that is None.
    """

    params: FamilyTrainParams  # of its training
    net: nn.Module  # the trained network
    sample_rate: int
    channels: int
    num_samples: int | None
    condition: Literal["labels", "caption", "none"]  # the part of a request that it uses
    labels: Sequence[str]  # that it was trained on; a model with `condition` caption and labels follows both

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """A wave for each request, each from its own seed."""

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Waves encoded as the model's representation and decoded; cut to `num_samples` if longer."""

    def save(self, directory: Path, facts: Mapping[str, Any], parts: Sequence[Path] = (), own_parts: Sequence[Path] = ()) -> None:
        """Write its checkpoint, with human-readable facts and the components in `parts` and `own_parts` (models/trained.py)."""

    # A model that reconstructs by log-mels has two more methods, by which windows of a longer sound are joined as log-mels.

    def vocoder_for(self, run: Run) -> Vocoder | None:
        """The vocoder of `reconstruct`; None if this codec has no log-mels."""

    def rebuilt(self, waves: Tensor, run: Run) -> Tensor:
        """The log-mels [N · channels, n_mels, frames], on the CPU, that `reconstruct` vocodes."""

    def transform(self, waves: Tensor, requests: Sequence[Request], run: Run) -> Tensor:
        """Each wave restyled, inpainted or upsampled."""

    def interpolate(self, ends: tuple[Request, Request], waves: Tensor | None, shares: Sequence[float], run: Run) -> Tensor:
        """A sound for each share, from 0 (the first end) to 1 (the second), between two seeds or two `waves` [2, channels, T].

        Labels and caption are those of the first request.
        """


class FamilyConfig(checkpoint.Config):
    """The `config.json` of a family's checkpoint, without human-readable facts; a family adds the fields that its model needs."""

    model_config = ConfigDict(extra="ignore")

    family: str  # overridden by a Literal of the family's name, with that as the default
    params: Any  # overridden by the type of the family's training parameters


F = TypeVar("F", bound=FamilyConfig)


@dataclass
class Prepared:
    """A training that a family prepared from its inputs."""

    module: TrainingModule
    model: Model  # its nets are those that the module trains
    source: Source
    order: Order | Joined
    draw: Callable[[int], Tensor]  # the random numbers of a step, for Loader
    item_seconds: float  # sound in an item
    clip_ids: Sequence[str]  # of the training clips
    counts: dict[str, int]  # of labels, mixes, captions
    samples: Sequence[Request] | Tensor  # shown while it trains: sounds to generate, or real waves [N, C, T] to reconstruct
    columns: int  # of the picture of samples
    held_out: HeldOut | None  # None if the validation split has no clip
    parts: Sequence[Path] = ()  # components in the checkpoint, which adapters take from their base
    own_parts: Sequence[Path] = ()  # those that adapters have too
    mixes: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # training mixes: id → the two clips


@dataclass(frozen=True)
class Rehearsal:
    """A family's training on noise, to measure the time of its steps."""

    module: TrainingModule
    batch: Callable[[int], Batch]  # for step 0, 1, …
    clips: int  # per batch, to count epochs
    passes: int  # of the net per generated sound


@dataclass(frozen=True)
class Family:
    """A family; its package defines it as `FAMILY`.

    The package's module `model` has `load`, `build_net`, `prepare` and `rehearse`. It is not imported with the package: parameters
    are read without torch.
    """

    name: str
    title: str  # one line
    paper: str  # its source, one line
    train_params: type[FamilyTrainParams]  # of `<family>.train`
    commands: tuple[Command, ...]  # what its models can be asked to do, though not each all of it
    generate_params: type[FamilyGenerateParams] = FamilyGenerateParams  # of `<family>.generate`
    fixed: tuple[str, ...] = ()  # parts of `<family>.train` that `start_from` requires to be equal
    published: bool = False  # its package has a module `published`, with `read` for published files with its `SUFFIX`
    weights: str = checkpoint.WEIGHTS  # file of a checkpoint with the last weights
    part: str = "unet"  # name of its net among its networks
    codec: str = "autoencoder"  # name of its codec among them
    adapted: bool = False  # adapters can be trained in its net (`lora`)
    tagger: bool = False  # its training uses the project's tagger
    longer: bool = False  # it also makes sounds longer than `num_samples`
    loops: bool = False  # its sounds are loops of one bar in 4/4, `num_samples` long

    @property
    def module(self) -> ModuleType:
        return import_module(f"soundmill.models.{self.name}.model")

    def load(self, directory: Path) -> Model:
        """Load a model from its checkpoint directory, with its last weights."""
        return self.module.load(directory)

    def networks(self, document: dict[str, Any]) -> dict[str, nn.Module]:
        """Its networks by part, newly initialised and without label embeddings, for the content of a params.yaml.

        Called on torch's meta device, to count parameters at any scale, so it must not read the values of weights. A text encoder's
        size is unknown without its files.
        """
        params = parse_section(document, f"{self.name}.train", self.train_params)
        return {self.part: self._net(document, params, 0), **components.networks(document, self.name, self.codec)}

    def prepare(
        self, params: FamilyTrainParams, ctx: Any, inputs: Path, parts: Path, tagger: Path, catalog: Path, start: Model | None
    ) -> Prepared:
        """Prepare a training; models/training.py then loads the weights of `start`, whose `fixed` parts are equal (None: random).

        `parts` is the directory with the family's `vocoder/` and `text/`; `tagger` is passed on only if the family uses it.
        """
        more = {"tagger": tagger} if self.tagger else {}
        return self.module.prepare(params, ctx, inputs, parts, catalog, start, **more)

    def rehearse(self, document: dict[str, Any], num_labels: int) -> Rehearsal:
        """A training on noise, for the content of a params.yaml and a number of labels."""
        params, _, sampling = read_sections(document, self.name, self.train_params, self.generate_params)
        labels = num_labels if params.by_label else 0
        return self.module.rehearse(document, params, sampling, self._net(document, params, labels), labels)

    def _net(self, document: dict[str, Any], params: FamilyTrainParams, num_labels: int) -> nn.Module:
        """Its net, newly initialised, over latents of the shape or waves of the channels that the document describes."""
        of_latents = self.name in document["latent_families"]
        form = components.latent_shape(document, self.name) if of_latents else read_clip_plan(document, self.name)["channels"]
        return self.module.build_net(params, form, num_labels)


def can(model: Model | type[Model], what: Capability) -> bool:
    """Whether it has this method; what a user may ask for is `commands_of`."""
    return callable(getattr(model, what, None))


def commands_of(model: Model | type[Model], params: type[FamilyTrainParams]) -> list[Command]:
    """What a model, or those of a type, trained with such parameters can be asked to do."""
    able = {one: can(model, one) for one in ("generate", "interpolate", "reconstruct")}
    if can(model, "transform"):
        sampling = params.model_fields["sampling"].annotation.model_fields
        able |= {"restyle": "amount" in sampling, "inpaint": "keep" in sampling, "upsample": "factor" in params.model_fields}
    return [one for one in get_args(Command) if able.get(one)]


def require(model: Model, command: Command, name: str) -> None:
    """UserError if a model of the family `name` cannot do this."""
    if command not in (able := commands_of(model, type(model.params))):
        raise UserError(f"the family {name!r} cannot {command}; it can {', '.join(able)}; name another checkpoint (--checkpoint)")


def add_adapters(model: Model, base: str, added: Sequence[tuple[Path, float]]) -> list[dict[str, Any]]:
    """Add the adapters of directories to a model whose checkpoint has the digest `base`, each times its share; returns facts.

    UserError if they were trained on another base. Those that another program made name none, and only have to fit.
    """
    from soundmill.training import adapters

    facts = []
    for number, (directory, share) in enumerate(added):
        found, name = adapted.read(directory), f"lora{number}"
        if found.digest not in (None, base):
            raise UserError(
                f"{directory}: adapters of another base: they were trained on {found.base} (digest {found.digest[:12]}…), and the "
                f"model is {base[:12]}…"
            )
        if found.params.dora and share != 1:
            raise UserError(
                f"{directory}: DoRA replaces the lengths of weights, so it cannot be added in part; give it the share 1"
            )
        adapted.load(model.net, directory, found, name)
        if is_checkpoint(directory):
            load_used(model.net, directory, checkpoint.read(directory)["params"]["use"], name)
        adapters.scale(model.net, name, share)
        facts.append({"adapters": tree_digest(directory), "share": share})
    return facts


def read_config(directory: Path, config: type[F]) -> F:
    """The config of a checkpoint; UserError if it is of another family, or does not fit this version."""
    family_of(directory, config.model_fields["family"].default)
    return checkpoint.load_config(directory, config)


def family_of(directory: Path, expected: str | None = None) -> str:
    """The family of a checkpoint; UserError if there is none, or if it is not `expected`."""
    family = checkpoint.read(directory).get("family")
    if not isinstance(family, str):
        raise UserError(f"{directory / checkpoint.CONFIG}: not a Soundmill checkpoint: it names no `family`")
    if expected is not None and family != expected:
        raise UserError(f"{directory}: a checkpoint of family {family!r}, not {expected!r}; use `--family {family}` or retrain")
    return family


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory is the checkpoint of a family, not of a component."""
    return (directory / checkpoint.CONFIG).is_file() and "family" in checkpoint.read(directory)


def origin(directory: Path) -> dict[str, str]:
    """The family of a checkpoint, and the digest that identifies it."""
    return {"family": family_of(directory), "checkpoint": tree_digest(directory)}


def made_by(source_facts: Mapping[str, str], source_type: SourceType) -> MadeBy:
    """The tags of a sound that the checkpoint with this `origin` made."""
    return MadeBy(f"{source_facts['family']} checkpoint {source_facts['checkpoint']}", source_type)


def use_weights(model: Model, directory: Path, which: Use) -> str:
    """Load the weights `which` into a model that was loaded from `directory`, with its last weights; returns a description.

    UserError if the checkpoint lacks these weights.
    """
    name, facts = load_used(model.net, directory, which)
    step = facts["step"]
    known = {"held-out loss": "valid_loss", "FAD while training": "fad"}
    remarks = "".join(f", {what} {facts[key]:.4g}" for what, key in known.items() if key in facts)
    return f"weights of step {name}{remarks}" if name.isdecimal() else f"{name} weights (step {step}{remarks})"


def check_weights(model: Model, directory: Path) -> None:
    """UserError unless all weights of the checkpoint that a model was loaded from can be read."""
    stored_weights(directory, "last")  # refuses a config without them
    for name in checkpoint.read(directory)["weights"]:
        load_used(model.net, directory, int(name) if name.isdecimal() else name)


def load_used(net: nn.Module, directory: Path, which: Use, adapter: str = adapted.ONE) -> tuple[str, dict[str, Any]]:
    """Load the weights `which` of a checkpoint into a net (or its `adapter`) that has the last; returns as `stored_weights`."""
    name, facts = stored_weights(directory, which)
    if name != "last":
        files = {"best": checkpoint.BEST, "best_fad": checkpoint.BEST_FAD}
        checkpoint.load_weights(net, directory / files.get(name, checkpoint.weights_of_step(facts["step"])), adapter)
    return name, facts


def chosen_by(directory: Path, which: Use) -> list[str]:
    """The embedders whose scores chose the weights `which` of a checkpoint, or those that its training started from."""
    started_from = checkpoint.read(directory).get("started_from", {})
    own = [JUDGE] if stored_weights(directory, which)[0] == "best_fad" else []
    return sorted({*own, *started_from.get("chosen_by", [])})


def stored_weights(directory: Path, which: Use) -> tuple[str, dict[str, Any]]:
    """The name of these weights in a checkpoint's config (`last`, `best`, `best_fad` or a step) and what it says of them."""
    stored = checkpoint.read(directory).get("weights")
    if not isinstance(stored, dict) or not all(isinstance(weights, dict) for weights in stored.values()):
        raise UserError(f"{directory / checkpoint.CONFIG}: `weights` is missing: not a whole checkpoint; retrain with `dvc repro`")
    if which == "best" and "best" not in stored:
        raise UserError(f"{directory}: no clip was held out from this training, so it has no best weights; set `use` to `last`")
    if which == "best_fad" and "best_fad" not in stored:
        raise UserError(f"{directory}: nothing was scored while it trained (score_every_steps); set `use` to `last` or `best`")
    name = next(
        (key for key in (str(which), "last", "best", "best_fad") if key in stored and which in (key, stored[key]["step"])), None
    )
    if name is None:
        steps = ", ".join(str(step) for step in sorted({weights["step"] for weights in stored.values()}))
        raise UserError(f"{directory}: has no weights of step {which}; it has those of steps {steps} (keep_every_steps keeps more)")
    return name, stored[name]
