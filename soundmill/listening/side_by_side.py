"""The listening page: a row for each request, a column for the real sounds, the codecs and each model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from soundmill import disk, page
from soundmill.audio.loudness import matching_gains
from soundmill.audio.resample import resample
from soundmill.errors import UserError
from soundmill.listening.material import Asked, Material, Sounds, Wave
from soundmill.page.sounds import Card, Made, Sound, draw, make

LOUDNESS = -23.0  # LUFS that sounds are brought to: EBU R 128
SOFTEST = -35.0  # LUFS of a row with high peaks
MOST_GAIN = 30.0  # dB: what is nearly silent is shown to be
NOTED_GAIN = 0.5  # dB that are worth a word
LISTED = 200  # ids of requests that are named on the page
KEYS = (
    ("1 … 9", "the sound in this column"),
    ("space", "play, pause"),
    ("← →", "a second back, on"),
    ("h, l", "the column before, the next one"),
    ("j, k", "the next row, the one before"),
    ("r", "repeat"),
)


@dataclass(frozen=True)
class Column:
    name: str
    sounds: Sounds
    model: int | None = None  # its number, of a model's own sounds


@dataclass(frozen=True)
class Written:
    """What is on the page, and what did not fit."""

    shown: list[str]
    left_out: list[str]
    faults: list[str]


@dataclass(frozen=True)
class _Row:
    card: Card
    made: list[Made | None]


def write(
    path: Path,
    material: Material,
    megabytes: float,
    progress: Callable[[int], object] = lambda count: None,
    title: str = "",
    above: Sequence[Markup] = (),
) -> Written:
    """One page that stands alone, of at most so many megabytes (and one request in any case); `above` stands on top of it.

    Requests are taken in the order of `Material.requests` as far as there is room. The sounds of a row are at one loudness; all
    pictures are on one scale of frequency and level, and those of a row on one of time. `progress` counts requests.
    """
    order = material.requests()
    columns = _columns(material, set(order))
    room = megabytes * 1e6
    rate = _highest_rate(columns, order)
    rows, faults, size = [], [], 0.0
    for clip_id in order:
        row = _row(clip_id, material, columns, rate, faults)
        size += sum(len(made.flac) * 4 / 3 for made in row.made if made and made.flac)
        if rows and size > room:
            break
        rows.append(row)
        progress(1)
    loudest = max((made.loudest for row in rows for made in row.made if made), default=0.0)
    articles: dict[str, Markup] = {}
    size = 0.0
    for row in rows:
        article = draw(row.card, row.made, loudest, faults)
        size += len(article)
        if articles and size > room:
            break
        articles[row.card.clip_id] = article
    left_out = [clip_id for clip_id in order if clip_id not in articles]
    shown = sorted(articles, key=lambda clip_id: (material.asked[clip_id].labels, clip_id))
    parts = [
        *above,
        _bar(columns, material, shown),
        page.block("section", "rows low", *(articles[clip_id] for clip_id in shown)),
        page.heading("Read with care"),
        page.panel(page.listing(_remarks(material, left_out, faults))),
    ]
    title = title or " · ".join(model.name for model in material.models)
    text = page.document(title, _summary(len(shown), len(order)), parts, ("players", "filter"))
    disk.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return Written(shown, left_out, faults)


def _columns(material: Material, clip_ids: set[str]) -> list[Column]:
    """Those that have a sound for any request."""
    columns = [Column("real", material.real)]
    columns += [Column(f"{model.name} codec", model.codec) for model in material.models]
    columns += [Column(model.name, model.sounds, number) for number, model in enumerate(material.models)]
    return [column for column in columns if clip_ids & column.sounds.keys()]


def _highest_rate(columns: Sequence[Column], order: Sequence[str]) -> int:
    """Of the first sound of each column that can be read: a column's sounds have one rate, or are of different recordings."""
    rates = []
    for column in columns:
        for clip_id in order:
            if clip_id in column.sounds:
                try:
                    rates.append(Sound("", *column.sounds[clip_id]()).played_rate)
                    break
                except UserError:
                    continue
    return max(rates, default=8_000)


def _row(clip_id: str, material: Material, columns: Sequence[Column], rate: int, faults: list[str]) -> _Row:
    asked = material.asked[clip_id]
    sounds = _level([_sound(column, clip_id) for column in columns])
    noted = tuple(_noted(sound, column, clip_id, material) for sound, column in zip(sounds, columns, strict=True))
    title = ", ".join(asked.labels) or asked.caption or clip_id
    text = " · ".join(filter(None, [asked.caption if asked.labels else "", asked.source]))
    card = Card(clip_id, title, text, noted, facts=_facts(clip_id, asked, material))
    return _Row(card, make(card, faults, rate))


def _sound(column: Column, clip_id: str) -> Sound | None:
    """A sound at a rate that browsers play; None where the column has none."""
    if clip_id not in column.sounds:
        return None
    try:
        wave, rate = column.sounds[clip_id]()
    except UserError as error:
        return Sound(column.name, np.zeros((1, 0), np.float32), 8_000, str(error))
    sound = Sound(column.name, wave, rate)
    played = sound.played_rate
    return Sound(column.name, np.stack([resample(channel, rate, played) for channel in wave]), played)


def _level(sounds: Sequence[Sound | None]) -> list[Sound | None]:
    """The sounds of a row at one loudness, each with a note on what was done to it."""
    heard = [sound for sound in sounds if sound and not sound.fault]
    waves: list[Wave] = [(sound.wave[:, : sound.longest], sound.sample_rate) for sound in heard]
    gains = iter(matching_gains(waves, LOUDNESS, SOFTEST, MOST_GAIN))
    levelled: list[Sound | None] = []
    for sound in sounds:
        if sound is None or sound.fault:
            levelled.append(sound)
            continue
        gain = next(gains)
        note = (f"{gain:+.1f} dB",) if abs(gain) >= NOTED_GAIN else ()
        levelled.append(Sound(sound.role, sound.wave * np.float32(10 ** (gain / 20)), sound.sample_rate, "", note))
    return levelled


def _noted(sound: Sound | None, column: Column, clip_id: str, material: Material) -> Sound | None:
    """A model's sound with its scores."""
    if sound is None or column.model is None:
        return sound
    values = material.models[column.model].of.get(clip_id, {})
    note = " · ".join([*sound.notes, *(f"{key} {value:.3g}" for key, value in sorted(values.items()))])
    return replace(sound, notes=(note,) if note else ())


def _facts(clip_id: str, asked: Asked, material: Material) -> dict[str, object]:
    """What the filter looks at."""
    scores = {f"{key} {model.name}": value for model in material.models for key, value in sorted(model.of.get(clip_id, {}).items())}
    return {"text": " ".join([clip_id, asked.caption, asked.source, *asked.labels]), "labels": asked.labels, "scores": scores}


def _bar(columns: Sequence[Column], material: Material, shown: Sequence[str]) -> Markup:
    """What the script of the filter works with; hidden without it."""
    labels = sorted({label for clip_id in shown for label in material.asked[clip_id].labels})
    keys = sorted({key for model in material.models for clip_id in shown for key in model.of.get(clip_id, {})})
    parts = [Markup('<input type="search" name="text" placeholder="caption, label or id" aria-label="caption, label or id">')]
    if len(labels) > 1:
        parts.append(_choice("label", "all labels", _options((label, label) for label in labels)))
    if keys:
        groups = [
            Markup('<optgroup label="{}">{}</optgroup>').format(
                key, _options((f"{key} {model.name}", model.name) for model in material.models if _has(model.of, key))
            )
            for key in keys
        ]
        numbers = Markup(
            '<span><input type="number" step="any" name="low" placeholder="from" aria-label="score from"> … '
            '<input type="number" step="any" name="high" placeholder="to" aria-label="score to"></span>'
        )
        parts += [_choice("score", "any score", Markup("").join(groups)), numbers]
        orders = [("", "by label"), ("up", "lowest score first"), ("down", "highest score first")]
        parts.append(Markup('<select name="order" aria-label="order">{}</select>').format(_options(orders)))
    boxes = [
        Markup('<label><input type="checkbox" name="column" value="{}" checked> {}</label>').format(number, column.name)
        for number, column in enumerate(columns)
    ]
    boxes.append(Markup('<label><input type="checkbox" name="repeat"> repeat</label>'))
    keys_line = Markup(" · ").join(Markup("<kbd>{}</kbd> {}").format(key, meaning) for key, meaning in KEYS)
    return Markup(
        '<form class="filter" hidden><div>{} <output></output></div><div>{}</div><p class="note keys">{}</p></form>'
    ).format(Markup(" ").join(parts), Markup(" ").join(boxes), keys_line)


def _has(of: dict[str, dict[str, float]], key: str) -> bool:
    return any(key in values for values in of.values())


def _choice(name: str, none: str, options: Markup) -> Markup:
    return Markup('<select name="{0}" aria-label="{0}"><option value="">{1}</option>{2}</select>').format(name, none, options)


def _options(pairs: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> Markup:
    return Markup("").join(Markup('<option value="{}">{}</option>').format(value, text) for value, text in pairs)


def _summary(shown: int, wanted: int) -> str:
    count = f"{shown} requests" if shown == wanted else f"{shown} of {wanted} requests"
    return (
        f"{count}. The sounds of a row are brought to one loudness: the gain stands below each. "
        "A click on a picture plays it; another one in the row takes over at the same place."
    )


def _remarks(material: Material, left_out: Sequence[str], faults: Sequence[str]) -> list[str]:
    remarks = []
    if left_out:
        more = f" and {len(left_out) - LISTED} more" if len(left_out) > LISTED else ""
        remarks.append(f"Left out, for the size of this page: {', '.join(left_out[:LISTED])}{more}.")
    for model in material.models:
        if lacking := sum(clip_id not in model.sounds for clip_id in material.asked):
            remarks.append(f"{model.name} has no sound for {lacking} of {len(material.asked)} requests.")
    if unscored := [model.name for model in material.models if not model.of]:
        remarks.append(f"No scores are known of the sounds of {', '.join(unscored)}.")
    return [*remarks, *faults] or ["none"]
