"""Pretrained components: published weights, as in the directories `vae` and `vocoder` of AudioLDM, or codecs of this project.

Weights are read from safetensors only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from soundmill import hub
from soundmill.errors import UserError
from soundmill.params import StageParams
from soundmill.training import checkpoint

if TYPE_CHECKING:
    from soundmill.models.components.contracts import CodecConfig

LICENCE = (
    "these weights have their own licence, which also applies to what is generated with them (AudioLDM's: CC BY-NC-SA 4.0, no "
    "commercial use)"
)


class LoadedParams(StageParams):
    """Pretrained weights: AudioLDM's (autoencoder in `vae/`, vocoder in `vocoder/`) or Vocos'."""

    kind: Literal["load"]
    name: str = Field(min_length=1, description="id on the Hugging Face hub, or a directory")
    revision: str | None = Field(description="commit on the hub, 40 hex digits")


def find(
    weights: LoadedParams, files: tuple[str, ...], section: str, home: Path, digests: Path | None
) -> tuple[Path, dict[str, Any]]:
    """The directory that `weights` names (see hub.find), and the identity of its `files`."""
    directory, commit = locate(weights, files, section, home)
    return directory, {"name": weights.name, "revision": commit, "digest": hub.digest(directory, files, digests)}


def locate(weights: LoadedParams, files: tuple[str, ...], section: str, home: Path) -> tuple[Path, str | None]:
    """The directory that `weights` names, and its commit."""
    remedies = f"put {', '.join(files)} into a directory and set {section}.weights.name to that, or train one (`kind: train`)"
    return hub.find(weights.name, weights.revision, home, files, partial(_missing, files), remedies)


def _missing(files: tuple[str, ...], directory: Path) -> str | None:
    absent = [file for file in files if not (directory / file).is_file()]
    return f"{', '.join(absent)} (weights in other formats can run code and are not read)" if absent else None


def find_saved(
    weights: LoadedParams, config: type[CodecConfig], network: StageParams, home: Path
) -> tuple[Path, dict[str, Any]] | None:
    """The directory that `weights` names, and its identity, if it is a codec of this project, such as a checkpoint's `autoencoder`.

    UserError if it is of another kind than `config`, or another architecture than `network`.
    """
    directory = home / Path(weights.name).expanduser()
    try:
        if "kind" not in checkpoint.read(directory, "autoencoder"):
            return None
    except UserError:  # no codec of this project: what reads published weights explains it
        return None
    saved = checkpoint.load_config(directory, config, "autoencoder")
    theirs = saved.network.model_dump()
    compare(directory, {key: (theirs[key], value) for key, value in network.model_dump().items()}, "autoencoder.network")
    return directory, {"name": weights.name, "revision": None, "digest": saved.digest}


def compare(directory: Path, values: dict[str, tuple[Any, Any]], other: str) -> None:
    """UserError if `values` differ: key → (value in the configuration, expected value)."""
    differing = [f"{key} is {value}, {other} has {expected}" for key, (value, expected) in values.items() if value != expected]
    if differing:
        raise UserError(f"{directory / 'config.json'}: {'; '.join(differing)}; make them agree")


def pretrained(kind: Any, directory: Path) -> Any:
    """A network of a library's class in evaluation mode and float32, from a directory in the library's layout.

    UserError for missing or unknown tensors: the libraries would initialise the former at random and ignore the latter.
    """
    import torch

    with explained(directory):  # without `dtype`, transformers rounds to that of config.json
        net, loading = kind.from_pretrained(
            directory, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    missing, unknown = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    if missing or unknown or loading["mismatched_keys"]:
        problem, names = ("lack", missing) if missing else ("have other shapes or more than", unknown or ["a matrix"])
        raise UserError(
            f"{directory}: its weights {problem} what config.json says ({max(len(names), 1)} tensors, the first {names[0]!r}); "
            "its files do not belong together: download them again"
        )
    return net.eval()


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Turn the libraries' errors into a UserError, and silence their warnings and progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{directory}: cannot be loaded ({type(error).__name__}: {reason})") from None
