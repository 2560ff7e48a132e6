"""Cards of sounds for a page, each sound with a mel spectrogram and a player; a note replaces either where it fails.

The pictures of a card share one scale of time, frequency and level. When another player of the same card starts, it continues at
the position of the one before (players.js).
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from soundmill import page
from soundmill.audio.flac import encode_flac
from soundmill.audio.resample import resample
from soundmill.audio.tags import MadeBy
from soundmill.errors import UserError, reason

Result = TypeVar("Result")
PICTURE_FRAMES = 320
PICTURE_MELS = 96
PICTURE_RANGE_DB = 80.0
LONGEST_SECONDS = 30.0  # of a sound on the page
LONGEST_TITLE, LONGEST_TEXT = 100, 400  # characters of labels and captions on the page
MIN_RATE, MAX_RATE = 8_000, 96_000  # Hz that every browser plays (Web Audio API, BaseAudioContext); FLAC allows up to 655,350
SMALLEST_PEAK = 0.5 / 32768  # anything below rounds to zero in 16 bits
WINDOW_SECONDS = 0.128  # of a picture's STFT, at rates below 8 kHz


@dataclass(frozen=True)
class Sound:
    """A wave [T] or [C, T] at its rate, or the fault that explains why there is none; notes stand below its player."""

    role: str
    wave: np.ndarray
    sample_rate: int
    fault: str = ""
    notes: tuple[str, ...] = ()
    loops: bool = False  # whether its player repeats it
    made_by: MadeBy | None = None  # of a generated sound: its player's file says so too

    @property
    def max_samples(self) -> int:
        return int(LONGEST_SECONDS * self.sample_rate)

    @property
    def played_rate(self) -> int:
        return min(max(self.sample_rate, MIN_RATE), MAX_RATE)

    def excerpt(self) -> np.ndarray:
        """The part of the wave that is on the page; UserError where there is none or it has non-finite samples."""
        if self.fault:
            raise UserError(self.fault)
        wave = self.wave[..., : self.max_samples]
        if not np.isfinite(wave).all():
            raise UserError("non-finite samples")
        return wave

    def peak(self) -> float:
        return float(np.abs(self.excerpt()).max(initial=0.0))


@dataclass(frozen=True)
class Chip:
    """A short text about a sound, coloured as right or wrong if `good` is set."""

    text: str
    good: bool | None = None


@dataclass(frozen=True)
class Card:
    """Sounds that belong together, the main one first; None leaves a column of the page empty."""

    clip_id: str
    title: str
    text: str
    sounds: tuple[Sound | None, ...]
    chips: tuple[Chip, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # for the page's filter


@dataclass(frozen=True)
class Preview:
    """What the page needs of a sound: FLAC for its player and levels in dB [mels, frames] for its picture, None if they failed."""

    sound: Sound
    flac: bytes | None
    levels: np.ndarray | None

    @property
    def loudest(self) -> float:
        return float(self.levels.max()) if self.levels is not None else 0.0


@dataclass(frozen=True)
class Section:
    title: str
    note: str
    cards: tuple[Card, ...]


def attempt(what: str, make: Callable[[], Result], faults: list[str]) -> Result | None:
    """The result of `make`; if it raises, None, and the reason is appended to `faults`."""
    try:
        return make()
    except Exception as error:
        faults.append(f"{what}: {reason(error)}")
        return None


def draw_section(section: Section, faults: list[str]) -> dict[str, Any]:
    """Values for the macro `cards` of parts.html; appends to `faults` what could not be drawn."""
    articles = []
    for card in section.cards:
        previews = preview(card, faults)
        articles.append(draw(card, previews, max((one.loudest for one in previews if one), default=0.0), faults))
    single = all(len(card.sounds) == 1 for card in section.cards)
    return {"title": section.title, "note": section.note, "articles": articles, "single": single}


def preview(card: Card, faults: list[str], sample_rate: int | None = None) -> list[Preview | None]:
    """Previews of the card's sounds; pictures reach half of `sample_rate`, by default the highest of the card."""
    sounds = [sound for sound in card.sounds if sound]
    rate = sample_rate or max(sound.sample_rate for sound in sounds)
    seconds = _seconds(sounds)
    previews: list[Preview | None] = []
    for sound in card.sounds:
        if sound is None:
            previews.append(None)
            continue
        where = f"{card.clip_id}, {sound.role}"
        levels = attempt(f"{where}: no picture", partial(_levels, sound, rate, seconds), faults)
        previews.append(Preview(sound, attempt(f"{where}: no player", partial(_flac, sound), faults), levels))
    return previews


def draw(card: Card, previews: Sequence[Preview | None], loudest: float, faults: list[str]) -> str:
    """The card's HTML; pictures are brightest at `loudest` dB."""
    from soundmill.drawing import shorten

    sides: list[dict[str, Any] | None] = []
    for one in previews:
        if one is None:
            sides.append(None)
            continue
        sound, picture = one.sound, None
        if one.levels is not None:
            picture = attempt(f"{card.clip_id}, {sound.role}: no picture", partial(_picture, one.levels, loudest), faults)
        cut = f", first {LONGEST_SECONDS:g} s" if sound.wave.shape[-1] > sound.max_samples else ""
        notes = [*(_player_notes(sound) if one.flac else ()), *sound.notes]
        sides.append({"sound": sound, "caption": f"{sound.role}{cut}", "picture": picture, "flac": one.flac, "notes": notes})
    return page.render(
        page.__name__,
        "card.html",
        card=card,
        title=shorten(card.title, LONGEST_TITLE),
        text=shorten(card.text, LONGEST_TEXT) if card.text != card.title else "",
        seconds=_seconds([one.sound for one in previews if one]),
        sides=sides,
    )


def _seconds(sounds: Sequence[Sound]) -> float:
    """Length of the longest excerpt, which is the width of the card's pictures."""
    return max((min(sound.wave.shape[-1], sound.max_samples) / sound.sample_rate for sound in sounds), default=0.0)


def _flac(sound: Sound) -> bytes:
    """The excerpt at a rate that browsers play."""
    played = resample(np.atleast_2d(sound.excerpt()), sound.sample_rate, sound.played_rate)
    return encode_flac(played, sound.played_rate, sound.made_by)


def _player_notes(sound: Sound) -> list[str]:
    """How the player's sound differs from the original."""
    peak = sound.peak()
    notes = []
    if sound.played_rate != sound.sample_rate:
        notes.append(f"played at {sound.played_rate} Hz instead of {sound.sample_rate}")
    if peak > 1:
        notes.append(f"peak {peak:.3g} of full scale: clipped in the player")
    if 0 < peak < SMALLEST_PEAK:
        notes.append(f"peak {peak:.3g} of full scale: below 16 bits, silent in the player")
    return notes


def _levels(sound: Sound, rate: int, seconds: float) -> np.ndarray:
    """Mel spectrogram in dB [mels, about 320 frames] up to half of `rate` Hz, padded to `seconds`; -inf for digital silence."""
    from soundmill.audio.mel import log_mel, picture_spec

    wave, peak = sound.excerpt(), sound.peak()
    if peak == 0:
        return np.full((PICTURE_MELS, 1), -np.inf)
    wave = resample(wave.mean(axis=0) if wave.ndim > 1 else wave, sound.sample_rate, rate)
    wave = np.pad(wave, (0, max(0, round(seconds * rate) - len(wave))))
    # FFT and window: 2048 and 1024 from 8 to 48 kHz; else long enough for a bin in every mel band, short enough to resolve time.
    size = 2048 * 2 ** max(0, math.ceil(math.log2(rate / 48_000)))
    window = min(size // 2, max(16, 2 ** round(math.log2(rate * WINDOW_SECONDS))))
    hop = max(len(wave) // PICTURE_FRAMES, window // 32, 1)
    spec = picture_spec(rate, size, window, hop, PICTURE_MELS, min(40.0, rate / 200), "none")
    # Normalised first: the power of the original may be out of float32's range.
    return log_mel(wave / np.float32(peak), spec) * (10 / np.log(10)) + 20 * math.log10(peak)


def _picture(levels: np.ndarray, loudest: float) -> bytes:
    """PNG of a spectrogram, low frequencies at the bottom, from 80 dB below `loudest`."""
    from matplotlib import colormaps
    from PIL import Image

    shown = np.clip((levels - (loudest if np.isfinite(loudest) else 0.0)) / PICTURE_RANGE_DB + 1, 0, 1)
    picture = Image.fromarray(np.rint(shown[::-1] * 255).astype(np.uint8)).convert("P")
    picture.putpalette(colormaps["magma"](np.arange(256), bytes=True)[:, :3].tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return buffer.getvalue()
