"""Cutting recordings into clips, in samples, so that cuts are exact and do not overlap."""

from dataclasses import dataclass
from typing import Literal

Tail = Literal["keep", "drop", "pad"]
SHORTEST_SECONDS = 0.01  # shorter recordings are rejected


@dataclass(frozen=True)
class Cut:
    """One clip: `num_samples` of the recording from `start_sample` on, then `pad_samples` of silence."""

    start_sample: int
    num_samples: int
    pad_samples: int


def to_samples(seconds: float, sample_rate: int) -> int:
    """Seconds to samples, rounded half up."""
    return int(seconds * sample_rate + 0.5)


def plan_cuts(num_samples: int, clip_samples: int, tail: Tail, min_samples: int) -> list[Cut]:
    """Consecutive clips of `clip_samples`; a shorter rest is kept, dropped or padded according to `tail`.

    A rest under `min_samples` is always dropped, unless it is the whole recording. `dropped_samples` counts what is dropped.
    """
    if clip_samples < 1:
        raise ValueError(f"a clip needs at least one sample, got {clip_samples}")
    whole, rest = divmod(num_samples, clip_samples)
    cuts = [Cut(index * clip_samples, clip_samples, 0) for index in range(whole)]
    if rest and tail != "drop" and (not whole or rest >= min_samples):
        cuts.append(Cut(whole * clip_samples, rest, clip_samples - rest if tail == "pad" else 0))
    return cuts


def dropped_samples(num_samples: int, cuts: list[Cut]) -> int:
    """Samples at the end of a recording that are in no cut."""
    return num_samples - sum(cut.num_samples for cut in cuts)
