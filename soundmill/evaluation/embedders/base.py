"""What an embedder is: a pinned network from waves to patch embeddings and class logits, and how it is declared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np

from soundmill import hashing, hub, pretrained
from soundmill.errors import UserError
from soundmill.params import did_you_mean
from soundmill.pretrained import VARIABLE, Weights

Chosen = TypeVar("Chosen")
Level = Literal["unchanged", "peak", "centred"]  # of the waves; peak: at −1 dBFS, centred: without the mean


@dataclass(frozen=True)
class Embeddings:
    """Of N waves: per wave its patches [P, D] float32, and clip-level logits [N, K] float32 (K = 0: no classifier)."""

    frames: list[np.ndarray]
    logits: np.ndarray

    @classmethod
    def of_parts(cls, together: np.ndarray, by_wave: Sequence[Sequence[Any]]) -> Self:
        """Of an embedder that is no classifier: the embeddings [n, D] of the parts of all waves, in order."""
        ends = np.cumsum([len(parts) for parts in by_wave])[:-1]
        return cls(np.split(together, ends) if by_wave else [], np.zeros((len(by_wave), 0), np.float32))


def in_batches(net: Callable[..., Any], windows: Sequence[np.ndarray], size: int, dimensions: int, device: Any) -> np.ndarray:
    """What `net` makes of windows, `size` at a time on `device`: [n, dimensions] float32."""
    import torch

    from soundmill.training.device import full_precision

    embeddings = np.empty((len(windows), dimensions), np.float32)
    with torch.inference_mode(), full_precision():
        for start in range(0, len(windows), size):
            some = torch.from_numpy(np.stack(windows[start : start + size]))
            embeddings[start : start + len(some)] = net(some.to(device)).cpu().numpy()
    return embeddings


def choice(name: str, what: str, value: str, choices: Mapping[str, Chosen]) -> Chosen:
    """The choice of that name for an option of the embedder `name`; an unknown one raises UserError."""
    if value not in choices:
        raise UserError(f"{name}: unknown {what} {value!r}{did_you_mean(value, list(choices))}; there are {', '.join(choices)}")
    return choices[value]


class Embedder(Protocol):
    """A loaded embedder; metrics carry its name (`fad_<name>`, `kl_<name>`)."""

    name: str
    sample_rate: int  # of the waves it takes
    channels: int  # of the waves it takes, 1 or 2

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        """Embed waves float32 in [−1, 1] at `sample_rate`: [T] if `channels` is 1, else [2, T], mono sounds on both channels.

        Other waves in the call change at most the last bits.
        """
        ...


@dataclass(frozen=True)
class Declaration:
    """An embedder that is not loaded. `load` takes the path of its weights and, as keywords, the options of a protocol."""

    load: Callable[..., Embedder]
    weights: Weights | None = None  # a published file; an embedder with others overrides the methods below
    classifier: bool = True  # it has logits
    patches: bool = True  # several embeddings per clip, so each clip has a covariance
    gpu: bool = True  # it uses one where there is one
    texts: bool = False  # it also embeds texts (`embed_texts`), in the same space
    ratings: tuple[str, ...] = ()  # metrics that its "embeddings" are the values of, in this order; it has no others
    options: tuple[str, ...] = ()  # that a protocol may set

    def path(self, tagger: Path | None) -> Path | None:
        """Its weights, verified; `tagger` is the directory of the pipeline's tagger. Missing weights raise UserError."""
        return pretrained.path(self.weights) if self.weights else None

    def digest(self, tagger: Path | None) -> str:
        """Digest of its weights, which are not loaded: part of the cache's key."""
        return self.weights.pin[1] if self.weights else "none"

    def unavailable(self) -> str | None:
        """Why its weights cannot be used on this machine, with a remedy; None if they can."""
        return pretrained.unavailable(self.weights) if self.weights else None

    @property
    def missing(self) -> str:
        """What published metrics say if it is unavailable: no path of this machine."""
        return f"{self.weights.file} is not in the directory ${VARIABLE}" if self.weights else "it has no weights"

    @property
    def origin(self) -> str:
        """Where its weights come from, for `soundmill weights list`."""
        return self.weights.source if self.weights else "computed, without weights"


@dataclass(frozen=True)
class DeclarationWithFiles(Declaration):
    """An embedder that needs, besides its weights, files of a repository of the Hugging Face hub."""

    find_files: Callable[[], Path] = Path  # their directory, downloaded if necessary; missing ones raise UserError
    files: tuple[str, ...] = ()  # names or patterns of those that it reads

    def digest(self, tagger: Path | None) -> str:
        return hashing.digest(super().digest(tagger), files_digest(self.find_files(), self.files))

    def unavailable(self) -> str | None:
        """As `Declaration.unavailable`; asks the hub if the files are not on this machine."""
        reason = super().unavailable()
        if reason is None:
            try:
                self.find_files()
            except UserError as error:
                return str(error)
        return reason


@cache
def files_digest(directory: Path, files: tuple[str, ...]) -> str:
    """Digest of the files that match the patterns, computed once per process: they may be large."""
    return hub.digest(directory, files)
