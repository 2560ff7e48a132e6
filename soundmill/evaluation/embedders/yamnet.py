"""YAMNet, pretrained on AudioSet (521 classes), from its quantised TensorFlow Lite file."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation import weights
from soundmill.evaluation.embedders.base import Embeddings

CLASSES = "yamnet_label_list.txt"  # a file within: the metadata of a TensorFlow Lite model are a zip at its end

SAMPLE_RATE = 16_000
WINDOW = 15_600  # samples, 0.975 s
HOP = 7_680  # samples, 0.48 s

# End of the tensor's name, size, and how its int8 values stand for real ones: real = scale · (value − zero point).
EMBEDDING = ("/layer28/reduce_mean", 1024, 0.0223283507, -128)
LOGITS = ("/layer29/fc/BiasAdd", 521, 0.3471774757, 100)


class YamnetEmbedder:
    """1024-d average-pooled embeddings per 0.975 s window, and logits that are the mean over a clip's windows."""

    name = "yamnet"
    classifier = "yamnet"
    sample_rate = SAMPLE_RATE

    def __init__(self, path: Path):
        from ai_edge_litert.interpreter import Interpreter

        self.digest = weights.digest(path)
        with zipfile.ZipFile(path) as metadata:
            self.classes = metadata.read(CLASSES).decode().splitlines()  # AudioSet's display names, in the order of the logits
        with _quiet():
            # One thread: more give other last bits. Inner tensors are read, so they must outlive the invocation.
            self._network = Interpreter(str(path), experimental_preserve_all_tensors=True, num_threads=1)
            self._network.allocate_tensors()
        self._input = self._network.get_input_details()[0]["index"]
        tensors = self._network.get_tensor_details()
        self._embedding, self._logits = _Quantised(tensors, *EMBEDDING), _Quantised(tensors, *LOGITS)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        frames, logits = [], []
        for wave in waves:
            patches, scores = [], []
            for window in windows(wave):
                self._network.set_tensor(self._input, window)
                self._network.invoke()
                patches.append(self._network.get_tensor(self._embedding.index))
                scores.append(self._network.get_tensor(self._logits.index))
            frames.append(self._embedding.real(patches))
            logits.append(self._logits.real(scores).mean(axis=0, dtype=np.float64).astype(np.float32))
        return Embeddings(frames, np.stack(logits) if logits else np.zeros((0, LOGITS[1]), np.float32))


def windows(wave: np.ndarray) -> Iterator[np.ndarray]:
    """Windows of 15,600 samples every 7,680; an incomplete last one is dropped, a wave under one window padded with zeros."""
    wave = np.asarray(wave, dtype=np.float32)
    if len(wave) < WINDOW:
        wave = np.pad(wave, (0, WINDOW - len(wave)))
    for start in range(0, len(wave) - WINDOW + 1, HOP):
        yield np.ascontiguousarray(wave[start : start + WINDOW])


class _Quantised:
    """One int8 tensor of the network, found by the end of its name and checked against what we know of it."""

    def __init__(self, tensors: list[dict[str, Any]], suffix: str, size: int, scale: float, zero_point: int):
        found = [tensor for tensor in tensors if tensor["name"].endswith(suffix) and int(np.prod(tensor["shape"])) == size]
        if len(found) != 1:
            raise UserError(f"yamnet: {len(found)} tensors {suffix!r} of {size} values, expected one; fetch the file again")
        self.index = found[0]["index"]
        self._scale, self._zero_point = found[0]["quantization"]
        if not math.isclose(self._scale, scale, rel_tol=1e-6) or self._zero_point != zero_point:
            raise UserError(
                f"yamnet: tensor {suffix!r} is quantised as ({self._scale}, {self._zero_point}), "
                f"expected ({scale}, {zero_point}); fetch the file again"
            )

    def real(self, values: list[np.ndarray]) -> np.ndarray:
        """Values of the tensor at several times, [times, size] float32."""
        flat = np.stack([value.ravel() for value in values]).astype(np.int32)
        return ((flat - self._zero_point) * np.float64(self._scale)).astype(np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the runtime's start-up chatter, written to stderr by C++ code, out of the pipeline's log."""
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
