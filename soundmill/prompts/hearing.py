"""What is heard in a sound: kinds by YAMNet's classes, their order, and the number of events."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from soundmill.audio.resample import resample
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders.yamnet import YamnetEmbedder, windows
from soundmill.evaluation.wave_facts import wave_facts
from soundmill.prompts.sets import Kind

JUDGE = "yamnet"
FRAME_SECONDS = 0.01
LOUD_DB, SOFT_DB = -10.0, -20.0  # below the loudest frame: an event begins above the first and ends below the second
SILENT_DB = -60.0  # full scale; softer frames hold no event


@dataclass(frozen=True)
class Heard:
    """One sound: scores of the kinds for the whole sound [kinds] and by window [windows, kinds], the number
    of events, and whether it is silent."""

    scores: np.ndarray
    by_window: np.ndarray
    events: int
    silent: bool

    def highest(self, count: int) -> np.ndarray:
        """Numbers of the kinds with the highest scores."""
        return np.argsort(-self.scores, kind="stable")[:count]

    def centre(self, kind: int) -> float:
        """The mean time of a kind's scores above their lowest, in windows."""
        weights = self.by_window[:, kind] - self.by_window[:, kind].min()
        return float(weights @ np.arange(len(weights)) / weights.sum()) if weights.sum() else (len(weights) - 1) / 2


class Ears:
    """YAMNet and the kinds to listen for; UserError if its weights are missing or it has no such class."""

    def __init__(self, kinds: Mapping[str, Kind]):
        self.kinds = list(kinds)
        self._network: YamnetEmbedder = embedders.load(JUDGE, None)
        place = {name: number for number, name in enumerate(self._network.classes)}
        for name, kind in kinds.items():
            if unknown := [one for one in kind.classes if one not in place]:
                raise UserError(f"kind {name!r}: AudioSet has no class {unknown[0]!r}; `classes` are names of YAMNet's classes")
        self._classes = [[place[one] for one in kind.classes] for kind in kinds.values()]

    def hear(self, wave: np.ndarray, rate: int) -> Heard:
        """What is heard in a wave [C, T]."""
        mono = resample(wave.mean(axis=0), rate, self._network.sample_rate)
        logits = self._network.embed(list(windows(mono))).logits.astype(np.float64)
        probabilities = 1 / (1 + np.exp(-logits))
        mean = probabilities.mean(axis=0)  # AudioSet's score of a clip
        scores = np.array([mean[some].max() for some in self._classes])
        by_window = np.stack([probabilities[:, some].max(axis=1) for some in self._classes], axis=1)
        return Heard(scores, by_window, count_events(mono, self._network.sample_rate), wave_facts(mono).silent)


def count_events(wave: np.ndarray, rate: int) -> int:
    """Number of bursts in a wave [T]: times at which its level rises to the loudest's neighbourhood after a soft moment."""
    size = max(1, round(FRAME_SECONDS * rate))
    frames = np.asarray(wave[: len(wave) // size * size], np.float64).reshape(-1, size)
    if not len(frames):
        return 0
    smooth = np.convolve((frames**2).mean(axis=1), np.ones(3) / 3, mode="same")
    levels = 10 * np.log10(np.maximum(smooth, 1e-12))
    count, within = 0, False
    for level in levels:
        if not within and level > max(levels.max() + LOUD_DB, SILENT_DB):
            count, within = count + 1, True
        elif within and level < levels.max() + SOFT_DB:
            within = False
    return count
