"""Published weights in files of `torch.save`, read as tensors and plain values only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soundmill.errors import UserError


def read_checkpoint(path: Path, allowed: Sequence[Any] = (), remedy: str = "fetch it again") -> Any:
    """Read a file of torch.save: tensors, plain values, and objects of the functions and classes `allowed`.

    Anything else could run code, so it is a UserError, as is a damaged file.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds of errors
        # Keep only what torch found, not its advice.
        found = str(error).rpartition("WeightsUnpickler error: ")[2].partition(". Please use")[0]
        reason = " ".join(found.split())[:300]
        raise UserError(f"{path}: cannot be read as weights ({type(error).__name__}: {reason}); {remedy}") from None


def load_state(net: nn.Module, state: Mapping[str, Any], path: Path, remedy: str = "fetch it again") -> None:
    """Make a net use exactly these tensors, without a copy; UserError if one is missing, unexpected or of another shape."""
    try:
        net.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not the weights of {type(net).__name__} ({reason}); {remedy}") from None
