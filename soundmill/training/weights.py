"""Trained weights on disk: safetensors and sorted JSON, in which nothing runs code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from soundmill import params
from soundmill.errors import UserError


def write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata)


def write_json(values: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> Any:
    """What `write_json` wrote into the directory of `what` (a checkpoint); UserError where it is not there whole."""
    try:
        return params.read_json(path, "remake it with `dvc repro`")
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {what} here ({path.name} is missing); `dvc repro` makes one") from None


def read(path: Path) -> dict[str, Tensor]:
    """What `write` wrote; UserError where it is not there whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{path}: weights cannot be read ({error}); remake them with `dvc repro`") from None


@contextmanager
def must_fit(path: Path) -> Iterator[None]:
    """Within, tensors of `path` are put where they belong; those of another shape or name are a UserError."""
    try:
        yield
    except (RuntimeError, KeyError) as error:
        first = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise UserError(
            f"{path}: weights of another architecture than its config.json says ({first}); remake them with `dvc repro`"
        ) from None


def fill(net: nn.Module, path: Path) -> nn.Module:
    """The net with the weights of a file, in evaluation mode."""
    tensors = read(path)
    with must_fit(path):
        net.load_state_dict(tensors)
    return net.eval()
