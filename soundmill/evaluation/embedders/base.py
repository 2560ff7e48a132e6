"""What an embedder is: a pinned network from waves to patch embeddings and class logits, and how it is declared."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from soundmill import hashing, hub, pretrained
from soundmill.errors import UserError
from soundmill.params import read_yaml
from soundmill.pretrained import VARIABLE, Weights

Level = Literal["unchanged", "peak", "centred"]  # of the waves; peak: at −1 dBFS, centred: without the mean


@dataclass(frozen=True)
class Embeddings:
    """Of N waves: per wave its patches [P, D] float32, and clip-level logits [N, K] float32 (K = 0: no classifier)."""

    frames: list[np.ndarray]
    logits: np.ndarray

    @classmethod
    def of_parts(cls, together: np.ndarray, by_wave: Sequence[Sequence[Any]]) -> Self:
        """Of an embedder that is no classifier: the embeddings [n, D] of the parts of all waves, in order."""
        return cls(split(together, by_wave), np.zeros((len(by_wave), 0), np.float32))


def split(together: np.ndarray, by_wave: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    """The rows of each wave's parts."""
    return np.split(together, np.cumsum([len(parts) for parts in by_wave])[:-1]) if by_wave else []


def mel_filters(hertz: np.ndarray, lowest: float, highest: float, bands: int) -> np.ndarray:
    """Filters [bins, bands] float64 of bins at these frequencies, triangular on HTK's mel scale, not in Hz."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)

    bins, edges = mel(hertz)[:, None], np.linspace(mel(lowest), mel(highest), bands + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    return np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))


def in_batches(
    net: Any, windows: Sequence[np.ndarray], size: int | Callable[[int], int], widths: Sequence[int]
) -> list[np.ndarray]:
    """What a torch module makes of windows: arrays [n, width] float32. Batches as of `training.device.of_equal_length`."""
    import torch

    from soundmill.training.device import full_precision, of_equal_length

    device = next(net.parameters()).device
    made = [np.zeros((len(windows), width), np.float32) for width in widths]
    with torch.inference_mode(), full_precision():
        for some in of_equal_length([len(window) for window in windows], size):
            outputs = net(torch.from_numpy(np.stack([windows[index] for index in some])).to(device))
            for values, output in zip(made, outputs if isinstance(outputs, tuple) else [outputs], strict=True):
                values[some] = output.cpu().numpy()
    return made


class Embedder(ABC):
    """A loaded embedder."""

    sample_rate: int  # of the waves it takes
    channels: int = 1  # of the waves it takes, 1 or 2

    @abstractmethod
    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        """Embed waves float32 in [−1, 1] at `sample_rate`: [T] if `channels` is 1, else [2, T], mono sounds on both channels.

        Other waves in the call change at most the last bits.
        """


@dataclass(frozen=True)
class HubFiles:
    """Files of one commit of a repository of the Hugging Face hub, or of a directory with its name below `$SOUNDMILL_WEIGHTS`."""

    repository: str
    revision: str
    files: Sequence[str]  # names or patterns; those that are read if they are there
    needed: Mapping[str, Sequence[str]]  # what a directory must have → patterns, one of which is there
    named: str  # what must be there, in words

    def find(self) -> Path:
        """Their directory, downloaded if necessary; it may have others. A UserError names a missing file and where it belongs."""
        remedies = f"put {self.named} of {self.repository} at {self.revision[:7]} into the directory ${VARIABLE}/{self.repository}"
        return hub.find(self.repository, self.revision, pretrained.directory(), self.files, self._missing, remedies)[0]

    def _missing(self, directory: Path) -> str | None:
        there = ({path for pattern in patterns for path in directory.glob(pattern)} for patterns in self.needed.values())
        return next((name for name, paths in zip(self.needed, there, strict=True) if not paths), None)


_files_digest = cache(hub.digest)  # once per process: the files may be large
HUB_FILES = {name: HubFiles(**fields) for name, fields in read_yaml(Path(__file__).with_name("hub.yaml")).items()}


@dataclass(frozen=True)
class Declaration:
    """An embedder that is not loaded: its class, which is imported when it is, and its weights."""

    made_by: str  # MODULE:CLASS in this package; called with `arguments`, the path of the weights, and a protocol's options
    weights: Weights | None = None  # a published file
    files: HubFiles | None = None  # that it needs besides its weights, or in place of them
    arguments: Sequence[str] = ()
    classifier: bool = True  # it has logits
    patches: bool = True  # several embeddings per clip, so each clip has a covariance
    gpu: bool = True  # it uses one where there is one
    texts: bool = False  # it also embeds texts (`embed_texts`), in the same space
    ratings: Sequence[str] = ()  # metrics that its "embeddings" are the values of, in this order; it has no others
    options: Sequence[str] = ()  # that a protocol may set

    @property
    def module(self) -> str:
        return f"{__package__}.{self.made_by.partition(':')[0]}"

    def load(self, path: Path | None, **options: Any) -> Embedder:
        """`path` is that of its weights; None if it has none."""
        make = getattr(importlib.import_module(self.module), self.made_by.partition(":")[2])
        return make(*self.arguments, *([path] if path else []), **options)

    def path(self, tagger: Path | None) -> Path | None:
        """Its weights, verified; `tagger` is the directory of the pipeline's tagger. Missing weights raise UserError."""
        if self.weights:
            return pretrained.path(self.weights)
        return self.files.find() if self.files else None

    def digest(self, tagger: Path | None) -> str:
        """Digest of its weights and files, which are not loaded: part of the cache's key."""
        pin = self.weights.pin[1] if self.weights else "none"
        if self.files is None:
            return pin
        of_files = _files_digest(self.files.find(), tuple(self.files.files))
        return hashing.digest(pin, of_files) if self.weights else of_files

    def unavailable(self) -> str | None:
        """Why it cannot be used on this machine, with a remedy; None if it can. Asks the hub for files that are not here."""
        reason = pretrained.unavailable(self.weights) if self.weights else None
        if reason is None and self.files:
            try:
                self.files.find()
            except UserError as error:
                return str(error)
        return reason

    @property
    def missing(self) -> str:
        """What published metrics say if it is unavailable: no path of this machine."""
        if self.weights:
            return f"{self.weights.file} is not in the directory ${VARIABLE}"
        if self.files:
            return f"{self.files.repository} is neither below the directory ${VARIABLE} nor available from the Hugging Face hub"
        return "it has no weights"

    @property
    def origin(self) -> str:
        if self.weights:
            return self.weights.source
        return "downloaded from the Hugging Face hub on first use" if self.files else "computed, without weights"


class TaggerDeclaration(Declaration):
    """Its weights are the output of the stage `tagger`."""

    origin = "trained by the pipeline's stage `tagger`"
    missing = "the stage `tagger` has not run"

    def path(self, tagger: Path | None) -> Path:
        if tagger is None:
            raise UserError("tagger: no data/tagger here; run in a checkout whose pipeline has trained it, or use another embedder")
        return tagger

    def digest(self, tagger: Path | None) -> str:
        return hashing.file_digest(self.path(tagger) / "model.safetensors")
