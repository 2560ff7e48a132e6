"""The plan of one variant of clips (`clips.NAME`): sample rate, channels, length, tail, loudness."""

from typing import Annotated, Literal

from pydantic import Field

from soundmill.audio.pieces import SHORTEST_SECONDS, Tail
from soundmill.decoding.decode import DecodeError
from soundmill.params import Decibels, SampleRate, Seconds, StageParams

LOWEST_RATE = 2000  # Hz; what is stored at less is data, or its header is wrong: hardly any of it would be heard


def check_rate(sample_rate: int) -> None:
    """DecodeError if a recording's sample rate is below LOWEST_RATE."""
    if sample_rate < LOWEST_RATE:
        raise DecodeError("low rate", f"{sample_rate} Hz, at least {LOWEST_RATE} are needed to hear it; correct its header")


class ClipPlan(StageParams):
    source: str = Field(min_length=1)  # below data/: `corpus` or `loops/NAME`
    sample_rate: SampleRate
    channels: Literal[1, 2]
    upsample: bool  # false: recordings with a lower rate or fewer channels are quarantined
    clip_seconds: float = Field(ge=0.05)  # rounded once to whole samples; clips start at multiples of these
    first_seconds: Seconds | None = Field(ge=SHORTEST_SECONDS)  # of each recording, only these are cut; null: all
    tail: Tail
    min_seconds: Seconds  # a shorter remainder of a longer recording is dropped and counted
    loudness: Literal["none", "peak"] | Annotated[float, Field(ge=-60, lt=0)]  # a number: LUFS (BS.1770)
    tolerance_seconds: Seconds  # decoded length may differ from the planned one by this much
    silence_dbfs: Decibels = Field(le=0)  # a recording that never rises above this is quarantined as silent
    max_seconds: Seconds = Field(gt=0)  # longer recordings are quarantined, and decoding stops there
