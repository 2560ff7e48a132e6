"""YAMNet, pretrained on AudioSet (521 classes), from its quantised TensorFlow Lite file."""

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from soundmill.evaluation.embedders.base import Embedder, Embeddings

CLASSES = "yamnet_label_list.txt"  # in the zip archive at the end of a TensorFlow Lite model

SAMPLE_RATE = 16_000
WINDOW = 15_600  # samples, 0.975 s
HOP = 7_680  # samples, 0.48 s
HOP_FRAMES = 48  # of the log-mel spectrogram per hop; a window has twice as many
MELS = 64


class Tensor(NamedTuple):
    """One int8 tensor of the network and its quantisation: real = scale · (value − zero point)."""

    suffix: str  # of its name
    size: int
    scale: float
    zero_point: int

    def find(self, tensors: Sequence[Any]) -> int:
        """Its index among the tensors of a model."""
        named = (index for index, one in enumerate(tensors) if one.name.decode().endswith(self.suffix))
        return next(index for index in named if math.prod(tensors[index].shape) == self.size)

    def real(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Dequantised values [times, size] float32."""
        flat = np.stack([value.ravel() for value in values]).astype(np.int32)
        return ((flat - self.zero_point) * np.float64(np.float32(self.scale))).astype(np.float32)


SPECTROGRAM = Tensor("tfl.quantize", 2 * HOP_FRAMES * MELS, 0.0480206087, 16)
EMBEDDING = Tensor("/layer28/reduce_mean", 1024, 0.0223283507, -128)
LOGITS = Tensor("/layer29/fc/BiasAdd", 521, 0.3471774757, 100)


class YamnetEmbedder(Embedder):
    """1024-d average-pooled embeddings per window of 0.975 s, and logits averaged over a clip's windows."""

    sample_rate = SAMPLE_RATE

    def __init__(self, path: Path):
        with zipfile.ZipFile(path) as metadata:
            self.classes = metadata.read(CLASSES).decode().splitlines()  # AudioSet's names, in the order of the logits
        model = path.read_bytes()
        self._front = _Part(model, None, [SPECTROGRAM])
        self._network = _Part(model, SPECTROGRAM, [EMBEDDING, LOGITS])

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        frames, logits = [], []
        for wave in waves:
            outputs = [self._network(spectrogram) for spectrogram in self._spectrograms(wave)]
            patches, scores = zip(*outputs, strict=True)
            frames.append(EMBEDDING.real(patches))
            logits.append(LOGITS.real(scores).mean(axis=0, dtype=np.float64).astype(np.float32))
        return Embeddings(frames, np.stack(logits) if logits else np.zeros((0, LOGITS.size), np.float32))

    def _spectrograms(self, wave: np.ndarray) -> Iterator[np.ndarray]:
        """Spectrograms [1, 96, 64] of the windows, the network's input.

        Adjacent windows share half their frames, so every second window (and the last) has all frames: this saves half of the
        Fourier transforms.
        """
        cut = list(windows(wave))
        frames = np.empty((HOP_FRAMES * (len(cut) + 1), MELS), np.int8)
        for index in {*range(0, len(cut), 2), len(cut) - 1}:
            start = HOP_FRAMES * index
            frames[start : start + 2 * HOP_FRAMES] = self._front(cut[index])[0]
        for index in range(len(cut)):
            start = HOP_FRAMES * index
            yield frames[None, start : start + 2 * HOP_FRAMES]


def windows(wave: np.ndarray) -> Iterator[np.ndarray]:
    """Windows of 15,600 samples every 7,680; an incomplete last one is dropped, a shorter wave padded with zeros."""
    wave = np.asarray(wave, dtype=np.float32)
    if len(wave) < WINDOW:
        wave = np.pad(wave, (0, WINDOW - len(wave)))
    for start in range(0, len(wave) - WINDOW + 1, HOP):
        yield np.ascontiguousarray(wave[start : start + WINDOW])


class _Part:
    """An interpreter of part of a model: from one of its tensors (None: its input) to others."""

    def __init__(self, model: bytes, start: Tensor | None, ends: Sequence[Tensor]):
        whole = flatbuffer_utils.read_model_from_bytearray(model)
        graph = whole.subgraphs[0]
        inputs = graph.inputs if start is None else [start.find(graph.tensors)]
        outputs = [end.find(graph.tensors) for end in ends]
        producer = {tensor: number for number, operator in enumerate(graph.operators) for tensor in operator.outputs}
        first = 0 if start is None else producer[inputs[0]] + 1
        graph.operators = graph.operators[first : max(producer[tensor] for tensor in outputs) + 1]  # operators are in order
        graph.inputs, graph.outputs = inputs, outputs
        whole.signatureDefs = None  # refers to the inputs and outputs of the whole model
        with _quiet():
            # More threads change last bits.
            self._network = Interpreter(model_content=bytes(flatbuffer_utils.convert_object_to_bytearray(whole)), num_threads=1)
            self._network.allocate_tensors()
        (self._input,) = (tensor["index"] for tensor in self._network.get_input_details())
        self._outputs = [tensor["index"] for tensor in self._network.get_output_details()]

    def __call__(self, values: np.ndarray) -> list[np.ndarray]:
        self._network.set_tensor(self._input, values)
        self._network.invoke()
        return [self._network.get_tensor(index) for index in self._outputs]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages that the runtime's C++ code writes to stderr at start-up."""
    stderr = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(sink)
