"""Published weights in files of `torch.save`, read as tensors and plain values only."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soundmill import hub
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


def read_state(path: Path, of: str, key: str | None = None, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """The tensors by name in a checkpoint, or below its `key`, of the program `of`; UserError for another file."""
    return state_in(read_checkpoint(path, allowed), path, of, key)


def state_in(contents: Any, path: Path, of: str, key: str | None = None, remedy: str = "fetch it again") -> dict[str, Any]:
    """`read_state` of the contents of a file."""
    state = contents.get(key) if key and isinstance(contents, dict) else contents
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path}: not a checkpoint of {of}{f' (it has no {key!r} of named tensors)' if key else ''}; {remedy}")
    return state


def renamed(name: str, pairs: Iterable[Sequence[Any]]) -> str:
    """A tensor's name after all replacements (pattern, new; see re.sub), in this order."""
    for pattern, new in pairs:
        name = re.sub(pattern, new, name)
    return name


def load_state(net: nn.Module, state: Mapping[str, Any], path: Path, remedy: str = "fetch it again") -> None:
    """Make a net use exactly these tensors, without a copy; UserError if one is missing, unexpected, misshapen or not finite."""
    try:
        net.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not the weights of {type(net).__name__} ({reason}); {remedy}") from None
    hub.check_finite(net, path, remedy)


def without_transform(state: Mapping[str, Any], names: Sequence[str], window: int, path: Path) -> dict[str, Any]:
    """The state without the real and imaginary Fourier kernels [bins, 1, window] `names`; UserError if torch.stft's are others.

    They have a periodic Hann window. torchopenl3's are rounded by up to 4e-4.
    """
    kernels = torch.fft.rfft(torch.diag(torch.hann_window(window))).T[:, None]
    for name, own in zip(names, (kernels.real, kernels.imag), strict=True):
        found = state.get(name)
        if not (isinstance(found, torch.Tensor) and found.shape == own.shape and (found - own).abs().max() <= 1e-3):
            raise UserError(f"{path}: {name}: not the Fourier transform of {window} samples; fetch it again")
    return {name: values for name, values in state.items() if name not in names}


def built(make: Callable[[], nn.Module], state: Mapping[str, Any], path: Path, remedy: str) -> nn.Module:
    """The net that `make` makes, with these tensors; UserError as `load_state`, before a net of any size takes memory."""
    with hub.bounded(str(path), remedy, len(state)), torch.device("meta"):
        load_state(make(), state, path, remedy)
    net = make()
    load_state(net, state, path, remedy)
    return net
