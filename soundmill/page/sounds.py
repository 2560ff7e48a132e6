"""Cards of sounds for a page, each with a mel spectrogram and a player; what cannot be made is named in its place.

The pictures of a card are on one scale: of time, of frequency and of level. Its players, of a script that every page has
(players.js), take over from one another at the same place.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

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
    """One sound to see and hear: a wave [T] or [C, T] at its rate, or the fault that there is none; notes stand below it."""

    role: str
    wave: np.ndarray
    sample_rate: int
    fault: str = ""
    notes: tuple[str, ...] = ()
    loops: bool = False  # its player begins again at its end

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
        wave = self.wave[..., : self.longest]
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
    """Sounds that belong together, the one that it is about first; None where a page has a column and this card no sound for it."""

    clip_id: str
    title: str
    text: str
    sounds: tuple[Sound | None, ...]
    chips: tuple[Chip, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # what a page's script filters by


@dataclass(frozen=True)
class Made:
    """What of a sound comes onto a page: its player's bytes and its levels in dB [mels, frames]; None of what cannot be made."""

    sound: Sound
    flac: bytes | None
    levels: np.ndarray | None

    @property
    def loudest(self) -> float:
        return float(self.levels.max()) if self.levels is not None else 0.0


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
    cards = []
    for card in shown.cards:
        made = make(card, faults)
        cards.append(draw(card, made, max((one.loudest for one in made if one), default=0.0), faults))
    alone = all(len(card.sounds) == 1 for card in shown.cards)
    kind = "grid alone low" if alone else "pairs low"
    return page.heading(shown.title, shown.note) + page.block("section", kind, *(cards or [Markup("<p>none</p>")]))


def make(card: Card, faults: list[str], sample_rate: int | None = None) -> list[Made | None]:
    """What the card's sounds are seen and heard by; pictures reach to half the rate, by default the highest of the card's own."""
    there = [sound for sound in card.sounds if sound]
    rate = sample_rate or max(sound.sample_rate for sound in there)
    seconds = _seconds(there)
    made: list[Made | None] = []
    for sound in card.sounds:
        if sound is None:
            made.append(None)
            continue
        where = f"{card.clip_id}, {sound.role}"
        levels = attempt(f"{where}: no picture", partial(_levels, sound, rate, seconds), faults)
        made.append(Made(sound, attempt(f"{where}: no player", partial(_flac, sound), faults), levels))
    return made


def draw(card: Card, made: Sequence[Made | None], loudest: float, faults: list[str]) -> Markup:
    """The card; its pictures are brightest at a level of `loudest` dB."""
    from soundmill.drawing import shorten

    sides = [_side(card, one, loudest, faults) if one else page.figure("–", kind="none") for one in made]
    kinds = {None: "chip", True: "chip right", False: "chip wrong"}
    chips = [page.block("span", kinds[chip.good], chip.text) for chip in card.chips]
    text = Markup("<p>{}</p>").format(shorten(card.text, LONGEST_TEXT)) if card.text and card.text != card.title else Markup("")
    return Markup('<article data-seconds="{}"{}>{}{}{}{}</article>').format(
        f"{_seconds([one.sound for one in made if one]):.6g}",
        Markup(' data-facts="{}"').format(json.dumps(card.facts, ensure_ascii=False)) if card.facts else "",
        page.heading(shorten(card.title, LONGEST_TITLE), level=3),
        text,
        page.block("div", "pair", *sides),
        page.block("div", "chips", *chips, Markup("<code>{}</code>").format(card.clip_id)),
    )


def _seconds(sounds: Sequence[Sound]) -> float:
    """Of the longest sound, as far as it is on the page: the width of the pictures of a card."""
    return max((min(sound.wave.shape[-1], sound.longest) / sound.sample_rate for sound in sounds), default=0.0)


def _side(card: Card, made: Made, loudest: float, faults: list[str]) -> Markup:
    """One sound to see and hear, and what either does not show of it."""
    sound = made.sound
    cut = ", its beginning" if sound.wave.shape[-1] > sound.longest else ""
    seen = None
    if made.levels is not None:
        seen = attempt(f"{card.clip_id}, {sound.role}: no picture", partial(_picture, made.levels, loudest), faults)
    picture = page.block("div", "picture", page.image(seen, f"spectrogram, {sound.role}")) if seen else MISSING
    notes = [page.block("p", "note", note) for note in (*(_notes(sound) if made.flac else ()), *sound.notes)]
    return page.figure(f"{sound.role}{cut}", picture, page.player(made.flac, sound.loops) if made.flac else MISSING, *notes)


def _flac(sound: Sound) -> bytes:
    """What the player plays, at a rate that browsers play."""
    from soundmill.audio.flac import encode_flac
    from soundmill.audio.resample import resample

    channels = np.atleast_2d(sound.beginning())
    played = [resample(channel, sound.sample_rate, sound.played_rate) for channel in channels]
    return encode_flac(np.stack(played), sound.played_rate)


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


def _levels(sound: Sound, rate: int, seconds: float) -> np.ndarray:
    """Mel spectrogram for the eye [mels, about 320 frames], in dB, up to half of `rate` Hz and of so many seconds; -inf of digital
    silence."""
    from soundmill.audio.mel import log_mel, picture_spec
    from soundmill.audio.resample import resample

    wave, peak = sound.beginning(), sound.peak()
    if peak == 0:
        return np.full((PICTURE_MELS, 1), -np.inf)
    wave = resample(wave.mean(axis=0) if wave.ndim > 1 else wave, sound.sample_rate, rate)
    wave = np.pad(wave, (0, max(0, round(seconds * rate) - len(wave))))
    # At 8 to 48 kHz 2048 and 1024; else so long in time that every band holds a bin, and so short that something moves.
    size = 2048 * 2 ** max(0, math.ceil(math.log2(rate / 48_000)))
    window = min(size // 2, max(16, 2 ** round(math.log2(rate * WINDOW_SECONDS))))
    hop = max(len(wave) // PICTURE_FRAMES, window // 32, 1)
    spec = picture_spec(rate, size, window, hop, PICTURE_MELS, min(40.0, rate / 200), "none")
    # Its power may be more than a float32 holds, or less.
    return log_mel(wave / np.float32(peak), spec) * (10 / np.log(10)) + 20 * math.log10(peak)


def _picture(levels: np.ndarray, loudest: float) -> str:
    """Spectrogram picture, low frequencies at the bottom, of 80 dB below the loudest."""
    from matplotlib import colormaps
    from PIL import Image

    shown = np.clip((levels - (loudest if np.isfinite(loudest) else 0.0)) / PICTURE_RANGE_DB + 1, 0, 1)
    picture = Image.fromarray(np.rint(shown[::-1] * 255).astype(np.uint8)).convert("P")
    picture.putpalette(colormaps["magma"](np.arange(256), bytes=True)[:, :3].tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return page.data_uri("image/png", buffer.getvalue())
