"""Captions, labels, split and clip of a recording from the columns of Hugging Face datasets."""

from __future__ import annotations

import ast
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from soundmill.corpora.manifest_format import MACHINE_ID
from soundmill.corpora.resolver import youtube_clip
from soundmill.corpora.rows import MAX_CAPTION
from soundmill.corpora.tables import fold_number, video_id
from soundmill.manifest import SPLIT_NAMES
from soundmill.params import parse_json

CAPTIONS = re.compile(r"text|captions?|caption_\d+|transcription|transcript|sentence|description|prompt")
# The first column with a value is used.
LABELS = ("human_labels", "labels", "label", "category", "class", "genre")
VIDEOS = ("youtube_id", "ytid", "youtubeid", "video_id")
STARTS = ("start_time", "start_s", "start_seconds", "start")
ORIGINALS = ("fsid", "freesound_id", "src_file", "slice_file_name")  # UrbanSound8K: `{fsID}-{classID}-{occurrence}-{slice}.wav`
_ORIGINAL = re.compile(r"([1-9]\d{0,9})(?:\.0|-\d+-\d+-\d+)?(?:\.[A-Za-z]\w*)?")  # `1.0`: integers in a column with empty cells


@dataclass
class Description:
    """Description of a recording by one row."""

    captions: list[str]
    labels: list[str]
    split: str | None
    fold: int | None
    clip: tuple[str, float | None] | None  # YouTube id and start
    original: str | None  # number of the Freesound original

    @classmethod
    def of(cls, values: dict[str, Any], names: dict[str, list[str]]) -> Description:
        values = {column.strip().lower(): value for column, value in values.items()}
        captions = [text for column, value in values.items() if CAPTIONS.fullmatch(column) for text in _texts(value)]
        for column in LABELS:
            if isinstance(several := values.get(column), str):
                listed = _listed(several)
                plural = column in ("human_labels", "labels") and listed == [several]
                values[column] = re.split(r";|,(?=\s*/[mtg]/)", several) if plural else listed
        labels = [classes for column in LABELS if (classes := _classes(values.get(column), names.get(column)))]
        videos = (video for column in VIDEOS if (video := video_id(str(values.get(column)))))
        starts = (start for column in STARTS if (start := _seconds(values.get(column))) is not None)
        video = next(videos, None)
        return cls(
            captions,
            next((classes for classes in labels if not all(map(MACHINE_ID.fullmatch, classes))), labels[0] if labels else []),
            _split_in(values),
            fold_number(str(values.get("fold"))),
            (video, next(starts, None)) if video else None,
            next((match[1] for column in ORIGINALS if (match := _ORIGINAL.fullmatch(str(values.get(column)).strip()))), None),
        )

    def clip_with(self, name: str) -> tuple[str, float | None] | None:
        """The clip of a recording with this name, which may add the start if the columns have only the video."""
        named = youtube_clip(name, of_video=self.clip is not None)
        return named if self.clip is None or (self.clip[1] is None and named and named[0] == self.clip[0]) else self.clip


def _split_in(values: dict[str, Any]) -> str | None:
    """The split in a row's columns; MusicCaps has `is_audioset_eval`."""
    split, is_eval = values.get("split"), str(values.get("is_audioset_eval")).strip().lower()
    named = SPLIT_NAMES.get(split.strip().lower()) if isinstance(split, str) else None
    return named or {"true": "test", "false": "train"}.get(is_eval)


def _texts(value: Any) -> list[str]:
    return [text for text in _listed(value) if isinstance(text, str) and text.strip()]


def _listed(value: Any) -> list[Any]:
    """A list, also a list of texts in a cell as JSON or Python literal; anything else as a list of one item."""
    if isinstance(value, list):
        return value
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        for read in (parse_json, _python_literal):
            with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                items = read(value)
                if isinstance(items, list) and all(isinstance(item, str) for item in items):
                    return items
    return [value]


def _python_literal(text: str) -> Any:
    """The value with this `str`, else ValueError: numpy's `['a' 'b']` would be read as one text."""
    value = ast.literal_eval(text)
    if str(value) != text:
        raise ValueError(text)
    return value


def _classes(value: Any, names: list[str] | None) -> list[str]:
    """Labels as text: names, or numbers of classes."""
    classes = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and item.is_integer():
            item = int(item)  # a column with empty cells
        if (
            isinstance(item, bool)
            or not isinstance(item, str | int | float)
            or (isinstance(item, float) and not math.isfinite(item))
        ):
            continue
        if isinstance(item, int) and names and 0 <= item < len(names):
            item = names[item]
        text = re.sub(r"^(-?\d{1,18})\.0+$", r"\1", str(item).strip())
        if text := text if MACHINE_ID.fullmatch(text) else text.replace("_", " ").strip():
            classes.append(text[:MAX_CAPTION])
    return classes


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds < 1e6 else None
