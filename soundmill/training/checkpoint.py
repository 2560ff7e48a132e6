"""Trained models on disk: a directory with `config.json` and safetensors, enough to rebuild the model.

Families, vocoders, codecs and the tagger are all saved and loaded here. Loading a checkpoint runs no code from it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from soundmill import disk, params
from soundmill.errors import UserError
from soundmill.params import StageParams

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
BEST = "best.safetensors"  # weights with the lowest held-out loss
BEST_FAD = "best_fad.safetensors"  # weights with the lowest FAD while training


class Config(StageParams):
    """The contents of a `config.json`: everything but the weights that is needed to rebuild a model."""


C = TypeVar("C", bound=Config)


def weights_of_step(step: int) -> str:
    """Name of the weights file of a step before the last."""
    return f"step-{step}.safetensors"


def save(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    weights: str = WEIGHTS,
    metadata: dict[str, str] | None = None,
    parts: Sequence[Path] = (),
) -> None:
    """Write a checkpoint into a new directory; `parts` are checkpoints that it needs, copied into it under their names.

    The config is written last: a directory that has one is complete.
    """
    directory.mkdir(parents=True)
    for part in parts:
        shutil.copytree(part, directory / part.name, copy_function=shutil.copyfile)
    write_weights(tensors, directory / weights, metadata)
    write_config(config, directory)


def write_config(config: Mapping[str, Any], directory: Path, sort_keys: bool = True) -> None:
    text = json.dumps(config, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n"
    disk.write_atomically(directory / CONFIG, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_weights(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; UserError if the disk does not take it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contents = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        disk.write_atomically(path, lambda temporary: save_file(contents, temporary, metadata))
    except SafetensorError as error:  # its error for a full disk
        raise UserError(f"{path}: the weights could not be written ({error}); free some space and run again") from None


def read(directory: Path, what: str = "checkpoint", remedy: str = "`dvc repro` makes one") -> dict[str, Any]:
    """The `config.json` of a vocoder, an autoencoder, …; UserError if it is missing or unreadable."""
    try:
        config = params.read_json(directory / CONFIG, "remake it with `dvc repro`")
    except FileNotFoundError:
        raise UserError(f"{directory}: no {what} here ({CONFIG} is missing); {remedy}") from None
    if not isinstance(config, dict):
        raise UserError(f"{directory / CONFIG}: not a JSON object; remake it with `dvc repro`")
    return config


def load_config(directory: Path, model: type[C], what: str = "checkpoint") -> C:
    """The `config.json` in a directory, parsed as `model`; UserError names the keys that do not fit."""
    path = directory / CONFIG
    try:
        return params.parse(model, read(directory, what), str(path))
    except UserError as error:
        if not str(error).startswith(f"{path}."):
            raise
        raise UserError(
            f"{error}\nThe {what} does not fit this version of Soundmill. Train it again; or edit {path}: remove unknown keys, and "
            "add missing ones with the values it was trained with"
        ) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; UserError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{path}: weights cannot be read ({error}); remake them with `dvc repro`") from None


def load_weights(net: nn.Module, path: Path, adapter: str = "default") -> nn.Module:
    """Load exactly the weights of a file into the net, or into its `adapter` if it has some, and set evaluation mode.

    UserError names a tensor that does not fit.
    """
    from soundmill.training import adapters

    tensors = read_weights(path)
    with must_fit(path):
        adapters.give_weights(net, tensors, adapter)
    return net.eval()


@contextmanager
def must_fit(path: Path) -> Iterator[None]:
    """Raise a UserError if the names or shapes of the tensors in `path` differ from the net's."""
    try:
        yield
    except (RuntimeError, KeyError) as error:
        first = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise UserError(
            f"{path}: the weights do not fit the architecture in {CONFIG} ({first}); remake them with `dvc repro`"
        ) from None
