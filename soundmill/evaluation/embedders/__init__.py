"""The embedders by name. A line in MODULES is all that a new one needs beside its module and its test.

A module has `EMBEDDERS`, a `base.Declaration` by name. It imports torch only inside functions, so listing all embedders is cheap.
"""

import importlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from soundmill import pretrained
from soundmill.errors import UserError
from soundmill.evaluation.embedders.base import Declaration, Embedder
from soundmill.params import did_you_mean

MODULES = {
    "tagger": "soundmill.evaluation.embedders.tagger",
    "texture": "soundmill.evaluation.embedders.texture",
    "yamnet": "soundmill.evaluation.embedders.yamnet",
    "vggish": "soundmill.evaluation.embedders.vggish",
    "panns_cnn14_16k": "soundmill.evaluation.embedders.panns",
    "panns_cnn14_32k": "soundmill.evaluation.embedders.panns",
    "panns_wavegram_logmel": "soundmill.evaluation.embedders.panns",
    "openl3_env": "soundmill.evaluation.embedders.openl3",
    "openl3_music": "soundmill.evaluation.embedders.openl3",
    "passt": "soundmill.evaluation.embedders.passt",
    "audiobox": "soundmill.evaluation.embedders.audiobox",
    "clap": "soundmill.evaluation.embedders.clap",
    "clap_music_speech": "soundmill.evaluation.embedders.clap_music_speech",
    "msclap": "soundmill.evaluation.embedders.msclap",
}
NAMES = tuple(MODULES)


def _check_name(name: str) -> str:
    if name not in MODULES:
        raise ValueError(f"unknown embedder {name!r}{did_you_mean(name, list(NAMES))}; there are {', '.join(NAMES)}")
    return name


EmbedderName = Annotated[str, AfterValidator(_check_name)]


def find(name: str) -> Declaration:
    """The embedder of that name, not loaded; an unknown name raises UserError."""
    try:
        _check_name(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    return importlib.import_module(MODULES[name]).EMBEDDERS[name]


def load(name: str, tagger: Path | None, **options: Any) -> Embedder:
    """Load an embedder; missing weights raise UserError.

    `tagger` is the directory of the pipeline's tagger, `options` are those that a protocol sets.
    """
    declared = find(name)
    for option in options:
        if option not in declared.options:
            has = f"only {', '.join(map(repr, declared.options))}" if declared.options else "none"
            raise UserError(f"{name}: unknown option {option!r}{did_you_mean(option, list(declared.options))}; it has {has}")
    return declared.load(declared.path(tagger), **options)


def digest(name: str, tagger: Path | None) -> str:
    """Digest of an embedder's weights, which are not loaded: part of the cache's key."""
    return find(name).digest(tagger)


def unavailable(name: str) -> str | None:
    """Why an embedder's weights cannot be used on this machine, with a remedy; None if they can."""
    reason = find(name).unavailable()
    if reason is None:
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
