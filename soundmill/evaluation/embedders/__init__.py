"""The embedders by name. An entry in embedders.yaml and weights.yaml is all that a new one needs beside its module and its test.

A module is imported when its embedder is loaded, so listing all of them is cheap.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from soundmill import pretrained
from soundmill.errors import UserError
from soundmill.evaluation.embedders.base import HUB_FILES, Declaration, Embedder, TaggerDeclaration
from soundmill.params import choose, did_you_mean, read_yaml
from soundmill.pretrained import Weights

WEIGHTS = {name: Weights(name=name, **fields) for name, fields in read_yaml(Path(__file__).with_name("weights.yaml")).items()} | {
    "vggish": pretrained.VGGISH
}

EMBEDDERS: dict[str, Declaration] = {
    name: (TaggerDeclaration if name == "tagger" else Declaration)(weights=WEIGHTS.get(name), files=HUB_FILES.get(name), **fields)
    for name, fields in read_yaml(Path(__file__).with_name("embedders.yaml")).items()
}
NAMES = tuple(EMBEDDERS)


def code_by_name(*_: Any) -> list[str]:
    """Modules that stages find by the name of an embedder."""
    return [declared.module for declared in EMBEDDERS.values()]


def one_of(options: Mapping[str, Any], what: str) -> AfterValidator:
    """A validator of the names of these options."""

    def check(name: str) -> str:
        if name not in options:
            raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, list(options))}; there are {', '.join(options)}")
        return name

    return AfterValidator(check)


EmbedderName = Annotated[str, one_of(EMBEDDERS, "embedder")]


def find(name: str) -> Declaration:
    """The embedder of that name, not loaded; an unknown name raises UserError."""
    return choose(EMBEDDERS, name, "embedder")


def load(name: str, tagger: Path | None, **options: Any) -> Embedder:
    """Load an embedder; missing weights raise UserError. `tagger`: the pipeline's; `options`: those that a protocol sets."""
    declared = find(name)
    for option in options:
        if option not in declared.options:
            has = f"only {', '.join(map(repr, declared.options))}" if declared.options else "none"
            raise UserError(f"{name}: unknown option {option!r}{did_you_mean(option, list(declared.options))}; it has {has}")
    return declared.load(declared.path(tagger), **options)


def unavailable(name: str) -> str | None:
    """Why an embedder's weights cannot be used on this machine, with a remedy; None if they can."""
    if (reason := find(name).unavailable()) is None:
        return None
    others = [other for other, weights in published().items() if other != name and pretrained.unavailable(weights) is None]
    return f"{reason}. Available without it: {', '.join(['tagger', 'texture', *others])}"


def published() -> dict[str, pretrained.Weights]:
    """The published weight files by embedder; `tagger` is trained here, `texture` has none, `clap` is a repository of the hub."""
    return {name: weights for name in NAMES if (weights := find(name).weights) is not None}


def named_in(parameters: Any) -> list[str]:
    """The published weights that are named anywhere in the content of a params.yaml: embedders, judges, projectors."""
    if isinstance(parameters, dict):
        parameters = list(parameters.values())
    if isinstance(parameters, list):
        named = {name for value in parameters for name in named_in(value)}
        return [name for name in published() if name in named]
    return [parameters] if isinstance(parameters, str) and parameters in published() else []
