"""Pretrained components in the layout of AudioLDM's repositories: a folder `vae`, a folder `vocoder`.

Weights come from safetensors only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from soundmill import hub
from soundmill.errors import UserError
from soundmill.params import StageParams

LICENCE = (
    "these weights have a licence of their own, which holds for what is made with them (AudioLDM's: CC BY-NC-SA 4.0, no "
    "commercial use)"
)


class LoadedParams(StageParams):
    """Weights that others trained: AudioLDM's (the autoencoder in `vae/`, the vocoder in `vocoder/`), or those of Vocos."""

    kind: Literal["load"]
    name: str = Field(min_length=1, description="id on the Hugging Face hub, or a directory")
    revision: str | None = Field(description="of the hub: the commit, 40 hex digits")


def find(
    wanted: LoadedParams, files: tuple[str, ...], section: str, home: Path, digests: Path | None
) -> tuple[Path, dict[str, Any]]:
    """The directory that `wanted` names (see hub.find), and what identifies its `files`."""
    remedies = f"put {', '.join(files)} into a directory and set {section}.weights.name to that, or train one (`kind: train`)"
    directory, commit = hub.find(wanted.name, wanted.revision, home, files, partial(_missing, files), remedies)
    return directory, {"name": wanted.name, "revision": commit, "digest": hub.digest(directory, files, digests)}


def _missing(files: tuple[str, ...], directory: Path) -> str | None:
    absent = [file for file in files if not (directory / file).is_file()]
    return f"{', '.join(absent)} (weights in other formats can run code, and are not read)" if absent else None


def compare(directory: Path, values: dict[str, tuple[Any, Any]], other: str) -> None:
    """`values`: key → (value in the configuration, value it must have)."""
    differing = [f"{key} is {value}, {other} has {wanted}" for key, (value, wanted) in values.items() if value != wanted]
    if differing:
        raise UserError(f"{directory / 'config.json'}: {'; '.join(differing)}; make them agree")


def check_whole(directory: Path, loading: dict[str, Any]) -> None:
    """The libraries fill what is missing with random numbers, and leave out what they do not know."""
    missing, unknown = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    if missing or unknown or loading["mismatched_keys"]:
        kind, names = ("lack", missing) if missing else ("have other shapes or more than", unknown or ["a matrix"])
        raise UserError(
            f"{directory}: its weights {kind} what config.json says ({max(len(names), 1)} tensors, the first {names[0]!r}); "
            "its files do not belong together: get it anew"
        )


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """The libraries' errors as one of ours, without their warnings and bars: what matters of them is checked, and an error."""
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
