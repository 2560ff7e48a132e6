"""Weights that others published, as `torch.save` wrote them: tensors and plain values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soundmill.errors import UserError


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
