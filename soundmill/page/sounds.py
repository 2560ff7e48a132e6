"""Cards of sounds for a page, each with a mel spectrogram and a player; what cannot be made is named in its place."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from markupsafe import Markup

from soundmill import page
from soundmill.errors import UserError, reason

Part = TypeVar("Part")
PICTURE_FRAMES = 320
PICTURE_MELS = 96
PICTURE_RANGE_DB = 80.0
LONGEST_SECONDS = 30.0  # of a sound on the page
LONGEST_TITLE, LONGEST_TEXT = 100, 400  # letters of labels and captions on the page
PLAYED = (8_000, 96_000)  # Hz that every browser plays (Web Audio API, BaseAudioContext); FLAC itself ends at 655,350
SMALLEST = 0.5 / 32768  # what is below has no sample in 16 bits
WINDOW_SECONDS = 0.128  # of a picture, at rates below 8 kHz
MISSING = Markup('<p class="note">not here; see “Read with care” for the reason</p>')


@dataclass(frozen=True)
class Sound:
    """One sound to see and hear: a mono wave [T] at its rate, or the fault that there is none."""

    role: str
    wave: np.ndarray
    sample_rate: int
    fault: str = ""

    @property
    def longest(self) -> int:
        """Samples that are on the page at most."""
        return int(LONGEST_SECONDS * self.sample_rate)

    @property
    def played_rate(self) -> int:
        return min(max(self.sample_rate, PLAYED[0]), PLAYED[1])

    def beginning(self) -> np.ndarray:
        """The part of the wave that is on the page; UserError where it can be neither drawn nor played."""
        if self.fault:
            raise UserError(self.fault)
        wave = self.wave[: self.longest]
        if not np.isfinite(wave).all():
            raise UserError("samples that are no numbers")
        return wave

    def peak(self) -> float:
        return float(np.abs(self.beginning()).max(initial=0.0))


@dataclass(frozen=True)
class Chip:
    """A word on a sound; `good` tells right from wrong where there is such."""

    text: str
    good: bool | None = None


@dataclass(frozen=True)
class Card:
    """Sounds that belong together, the one that it is about first."""

    clip_id: str
    title: str
    text: str
    sounds: tuple[Sound, ...]
    chips: tuple[Chip, ...] = ()


@dataclass(frozen=True)
class Section:
    """Cards under a heading."""

    title: str
    note: str
    cards: tuple[Card, ...]


def attempt(what: str, make: Callable[[], Part], faults: list[str]) -> Part | None:
    """A part of the page; None where it fails, and why is among the faults: the others do not depend on it."""
    try:
        return make()
    except Exception as error:
        faults.append(f"{what}: {reason(error)}")
        return None


def section(shown: Section, faults: list[str]) -> Markup:
    """The heading and its cards; what of them could not be made joins the faults."""
    cards = [_card(card, faults) for card in shown.cards] or [Markup("<p>none</p>")]
    alone = all(len(card.sounds) == 1 for card in shown.cards)
    return page.heading(shown.title, shown.note) + page.block("section", "grid alone low" if alone else "pairs low", *cards)


def _card(card: Card, faults: list[str]) -> Markup:
    from soundmill.drawing import shorten

    levels = [attempt(f"{card.clip_id}, {sound.role}: no picture", partial(_level, sound), faults) for sound in card.sounds]
    top = max((float(level.max()) for level in levels if level is not None), default=0.0)
    sides = [_side(card, sound, level, top, faults) for sound, level in zip(card.sounds, levels, strict=True)]
    kinds = {None: "chip", True: "chip right", False: "chip wrong"}
    chips = [page.block("span", kinds[chip.good], chip.text) for chip in card.chips]
    text = Markup("<p>{}</p>").format(shorten(card.text, LONGEST_TEXT)) if card.text and card.text != card.title else Markup("")
    return Markup("<article>{}{}{}{}</article>").format(
        page.heading(shorten(card.title, LONGEST_TITLE), level=3),
        text,
        page.block("div", "pair", *sides),
        page.block("div", "chips", *chips, Markup("<code>{}</code>").format(card.clip_id)),
    )


def _side(card: Card, sound: Sound, level: np.ndarray | None, top: float, faults: list[str]) -> Markup:
    """One sound to see and hear, and what either does not show of it."""
    cut = ", its beginning" if len(sound.wave) > sound.longest else ""
    seen = None
    if level is not None:
        seen = attempt(f"{card.clip_id}, {sound.role}: no picture", partial(_picture, level, top), faults)
    picture = page.image(seen, f"spectrogram, {sound.role}") if seen else MISSING
    flac = attempt(f"{card.clip_id}, {sound.role}: no player", partial(_flac, sound), faults)
    notes = [page.block("p", "note", note) for note in _notes(sound)] if flac else []
    return page.figure(f"{sound.role}{cut}", picture, page.player(flac) if flac else MISSING, *notes)


def _flac(sound: Sound) -> bytes:
    """What the player plays, at a rate that browsers play."""
    from soundmill.audio.flac import encode_flac
    from soundmill.audio.resample import resample

    return encode_flac(resample(sound.beginning(), sound.sample_rate, sound.played_rate), sound.played_rate)


def _notes(sound: Sound) -> list[str]:
    """In what the player differs from the sound."""
    peak = sound.peak()
    notes = []
    if sound.played_rate != sound.sample_rate:
        notes.append(f"played at {sound.played_rate} Hz, of {sound.sample_rate}")
    if peak > 1:
        notes.append(f"peak {peak:.3g} of full scale: clipped in the player")
    if 0 < peak < SMALLEST:
        notes.append(f"peak {peak:.3g} of full scale: below 16 bits, silent in the player")
    return notes


def _level(sound: Sound) -> np.ndarray:
    """Mel spectrogram for the eye [mels, about 320 frames], in dB; -inf of digital silence."""
    from soundmill.audio.mel import log_mel, picture_spec

    wave, rate, peak = sound.beginning(), sound.sample_rate, sound.peak()
    if peak == 0:
        return np.full((PICTURE_MELS, 1), -np.inf)
    # At 8 to 48 kHz 2048 and 1024; else so long in time that every band holds a bin, and so short that something moves.
    size = 2048 * 2 ** max(0, math.ceil(math.log2(rate / 48_000)))
    window = min(size // 2, max(16, 2 ** round(math.log2(rate * WINDOW_SECONDS))))
    hop = max(len(wave) // PICTURE_FRAMES, window // 32, 1)
    spec = picture_spec(rate, size, window, hop, PICTURE_MELS, min(40.0, rate / 200), "none")
    # Its power may be more than a float32 holds, or less.
    return log_mel(wave / np.float32(peak), spec) * (10 / np.log(10)) + 20 * math.log10(peak)


def _picture(level: np.ndarray, top: float) -> str:
    """Spectrogram picture, low frequencies at the bottom; both of a pair share the loudest level, so their levels compare."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    level = np.clip((level - (top if np.isfinite(top) else 0.0)) / PICTURE_RANGE_DB + 1, 0, 1)
    buffer = io.BytesIO()
    imsave(buffer, colormaps["magma"](level, bytes=True), origin="lower", format="png", metadata={"Software": None})
    return page.data_uri("image/png", buffer.getvalue())
