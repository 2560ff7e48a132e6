"""Starting a training from the weights of an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundmill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

NAMED = 3  # differences listed in an error
REMEDY = "make them agree, or train from nothing (`start_from: null`)"


def directory(where: Path) -> Path:
    """`where`; UserError if it is no directory."""
    if not where.is_dir():
        raise UserError(
            f"start_from: {where}: no such directory. To start from an output of this project, copy it elsewhere first: DVC "
            "removes the outputs of a stage before it runs"
        )
    return where


def compare(where: str, there: Mapping[str, Any], here: Mapping[str, Any], keys: Sequence[str] | None = None) -> None:
    """UserError that lists the differences of two nested mappings below `keys` (dotted; None: all keys)."""
    there, here = _flat(there), _flat(here)
    compared = [key for key in {**here, **there} if keys is None or any(f"{key}.".startswith(f"{part}.") for part in keys)]
    _refuse(
        where, [f"{key} is {there.get(key)} there and {here.get(key)} here" for key in compared if there.get(key) != here.get(key)]
    )


def take_weights(net: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load `weights` into `net`; UserError lists the tensors whose name or shape differs."""
    own = {name: list(value.shape) for name, value in net.state_dict().items()}
    theirs = {name: list(value.shape) for name, value in weights.items()}
    _refuse(
        where,
        [
            f"{name} is {theirs.get(name, 'absent')} there and {own.get(name, 'absent')} here"
            for name in {**own, **theirs}
            if own.get(name) != theirs.get(name)
        ],
    )
    net.load_state_dict(weights)


def _refuse(where: str, differing: Sequence[str]) -> None:
    if differing:
        more = len(differing) - NAMED
        named = "; ".join(differing[:NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"start_from: {where}: {named}; {REMEDY}")


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
