"""The listening page: a row for each request, a column for the real sounds, the codecs and each model."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from soundmill import disk, page
from soundmill.audio import tags
from soundmill.audio.levels import matching_gains
from soundmill.audio.resample import resample
from soundmill.errors import UserError, first_of
from soundmill.listening.material import Material, Model, SoundFile, Sounds, Wave
from soundmill.page.sounds import MIN_RATE, Card, Preview, Sound, draw, preview

LOUDNESS = -23.0  # LUFS of the sounds of a row: EBU R 128
MIN_LOUDNESS = -35.0  # LUFS of a row whose peaks leave no headroom
MAX_GAIN = 30.0  # dB
MIN_NOTED_GAIN = 0.5  # dB; smaller gains are not mentioned
MAX_LISTED = 200  # ids of left-out requests on the page


@dataclass(frozen=True)
class Column:
    name: str
    sounds: Sounds
    model: Model | None = None  # None for real sounds and codecs


@dataclass(frozen=True)
class Written:
    """Ids of the requests on the page and of those that did not fit; what could not be drawn or played."""

    shown: list[str]
    left_out: list[str]
    faults: list[str]


def write(
    path: Path,
    material: Material,
    megabytes: float,
    progress: Callable[[int], object] = lambda count: None,
    title: str = "",
    above: str = "",
) -> Written:
    """Write a self-contained page of at most `megabytes`, but with at least one request; `above` is HTML for its top.

    Requests are taken in the order of `Material.order` until the page is full. The sounds of a row have the same loudness; all
    pictures share one scale of frequency and level, those of a row one of time. `progress` counts requests.
    """
    order = material.order()
    columns = [Column("real", material.real)]
    columns += [Column(f"{model.name} codec", model.codec) for model in material.models]
    columns += [Column(model.name, model.sounds, model) for model in material.models]
    columns = [column for column in columns if column.sounds.keys() & set(order)]  # that have a sound
    room = megabytes * 1e6
    rate = _highest_rate(columns, order)
    rows: list[tuple[Card, list[Preview | None]]] = []
    faults: list[str] = []
    size = 0.0
    for clip_id in order:
        card = _card(clip_id, material, columns)
        previews = preview(card, faults, rate)
        size += sum(len(one.flac) * 4 / 3 for one in previews if one and one.flac)  # base64
        if rows and size > room:
            break
        rows.append((card, previews))
        progress(1)
    loudest = max((one.loudest for _, previews in rows for one in previews if one), default=0.0)
    articles: dict[str, str] = {}
    size = 0.0
    for card, previews in rows:
        article = draw(card, previews, loudest, faults)
        size += len(article)
        if articles and size > room:
            break
        articles[card.clip_id] = article
    left_out = [clip_id for clip_id in order if clip_id not in articles]
    shown = sorted(articles, key=lambda clip_id: (material.requests[clip_id].labels, clip_id))
    text = page.render(
        "soundmill.listening",
        "listen.html",
        title=title or " · ".join(model.name for model in material.models),
        above=above,
        columns=columns,
        labels=sorted({label for clip_id in shown for label in material.requests[clip_id].labels}),
        scores=_scores(material, shown),
        articles=[articles[clip_id] for clip_id in shown],
        num_requests=len(order),
        remarks=[*_remarks(material, left_out), *faults],
    )
    disk.write_text(path, text)
    return Written(shown, left_out, faults)


def _highest_rate(columns: Sequence[Column], order: Sequence[str]) -> int:
    """Highest rate in Hz of the first readable sound of each column: usually all sounds of a column have the same."""
    rates = []
    for column in columns:
        for clip_id in filter(column.sounds.__contains__, order):
            with suppress(UserError):
                rates.append(Sound("", *column.sounds[clip_id]()).played_rate)
                break
    return max(rates, default=MIN_RATE)


def _card(clip_id: str, material: Material, columns: Sequence[Column]) -> Card:
    request = material.requests[clip_id]
    noted: list[Sound | None] = []
    for column, sound in zip(columns, match_loudness([_sound(column, clip_id) for column in columns]), strict=True):
        if sound and column.model:  # a model's sound has its scores in its note
            scores = column.model.sound_scores.get(clip_id, {})
            note = " · ".join([*sound.notes, *(f"{key} {value:.3g}" for key, value in sorted(scores.items()))])
            sound = replace(sound, notes=(note,) if note else ())
        noted.append(sound)
    title = ", ".join(request.labels) or request.caption or clip_id
    text = " · ".join(filter(None, [request.caption if request.labels else "", request.source]))
    facts = {  # that the page's filter searches and sorts by
        "text": " ".join([clip_id, request.caption, request.source, *request.labels]),
        "labels": request.labels,
        "scores": {
            f"{key} {model.name}": value for model in material.models for key, value in model.sound_scores.get(clip_id, {}).items()
        },
    }
    return Card(clip_id, title, text, tuple(noted), facts=facts)


def _sound(column: Column, clip_id: str) -> Sound | None:
    """A sound at a rate that browsers play; None where the column has none."""
    if (source := column.sounds.get(clip_id)) is None:
        return None
    try:
        sound = Sound(column.name, *source())
    except UserError as error:
        return Sound(column.name, np.zeros((1, 0), np.float32), MIN_RATE, str(error))
    played = sound.played_rate
    wave = resample(sound.wave, sound.sample_rate, played)
    maker = tags.read(source.path) if isinstance(source, SoundFile) else None
    return replace(sound, wave=wave, sample_rate=played, made_by=maker)


def match_loudness(sounds: Sequence[Sound | None]) -> list[Sound | None]:
    """The sounds of a row at the same loudness, with their gains as notes."""
    waves: list[Wave] = [(sound.wave[:, : sound.max_samples], sound.sample_rate) for sound in sounds if sound and not sound.fault]
    gains = iter(matching_gains(waves, LOUDNESS, MIN_LOUDNESS, MAX_GAIN))
    matched: list[Sound | None] = []
    for sound in sounds:
        if sound and not sound.fault:
            gain = next(gains)
            notes = (f"{gain:+.1f} dB",) if abs(gain) >= MIN_NOTED_GAIN else ()
            sound = replace(sound, wave=sound.wave * np.float32(10 ** (gain / 20)), notes=notes)
        matched.append(sound)
    return matched


def _scores(material: Material, shown: Sequence[str]) -> dict[str, list[str]]:
    keys = sorted({key for model in material.models for clip_id in shown for key in model.sound_scores.get(clip_id, {})})
    return {
        key: [model.name for model in material.models if any(key in scores for scores in model.sound_scores.values())]
        for key in keys
    }


def _remarks(material: Material, left_out: Sequence[str]) -> list[str]:
    remarks = []
    if left_out:
        remarks.append(f"Left out to limit the size of this page: {first_of(left_out, MAX_LISTED)}.")
    for model in material.models:
        if missing := sum(clip_id not in model.sounds for clip_id in material.requests):
            remarks.append(f"{model.name} has no sound for {missing} of {len(material.requests)} requests.")
    if unscored := [model.name for model in material.models if not model.sound_scores]:
        remarks.append(f"No scores of single sounds for {', '.join(unscored)}.")
    return remarks
