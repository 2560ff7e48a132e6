"""Trained weights on disk: safetensors and sorted JSON, in which nothing runs code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soundmill import params
from soundmill.errors import UserError

BEST = "best.safetensors"  # in a family's checkpoint, beside its last weights


def of_step(step: int) -> str:
    """File of the weights of a step that is not the last."""
    return f"step-{step}.safetensors"


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


def read_checkpoint(path: Path, allowed: Sequence[Any] = (), remedy: str = "fetch it again") -> Any:
    """What torch.save wrote, tensors and plain values only, and objects made by the functions and classes `allowed`.

    A file that holds anything else could run code; it is refused by UserError, as a damaged one is.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in a dozen ways
        # Of torch's page on what else it could do, what it found.
        found = str(error).rpartition("WeightsUnpickler error: ")[2].partition(". Please use")[0]
        reason = " ".join(found.split())[:300]
        raise UserError(f"{path}: cannot be read as weights ({type(error).__name__}: {reason}); {remedy}") from None


def load_state(net: nn.Module, state: Mapping[str, Any], path: Path, remedy: str = "fetch it again") -> None:
    """Give a net exactly these tensors, as its own; one too many, too few or of another shape raises UserError."""
    try:
        net.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not the weights of {type(net).__name__} ({reason}); {remedy}") from None
