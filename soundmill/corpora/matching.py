"""Matching captions and labels with clips, by id and time, never by order."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

from soundmill.corpora import captioning
from soundmill.manifest import FILE_TAGS

TOLERANCE = 0.5  # seconds between the starts of caption and clip: AudioCaps has integers, tools write 79.999 or 80.02

Origin = Literal["window", "recording", "tags", "file_tags", "label", "name", "none"]


@dataclass(frozen=True)
class Heard:
    """What a network that compares sounds with texts says of a clip."""

    tags: Sequence[str] = ()  # words that fit it, best first
    unfit: Set[str] = frozenset()  # captions that do not


UNHEARD = Heard()


@dataclass
class Description:
    """Captions and labels of a clip; `origin`: where the captions come from."""

    captions: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    origin: Origin = "none"


@dataclass
class Matching:
    """Descriptions by clip id, and the captions without a clip."""

    clips: dict[str, Description] = field(default_factory=dict)
    matched: int = 0  # captions of at least one clip
    missing: list[str] = field(default_factory=list)


def match(
    recordings: Iterable[dict[str, Any]],
    captions: Iterable[dict[str, Any]],
    clips: Iterable[dict[str, Any]],
    templates: Sequence[str],
    heard: Mapping[str, Heard] = MappingProxyType({}),
) -> Matching:
    """Describe every clip by the captions of its window, else of its recording, else by the first of `templates` that fits.

    Captions that `heard`, by clip id, calls unfit are left out; a clip that has no others is described by its tags only.

    A caption with a start belongs to the nearest clip within TOLERANCE, else to the clip that contains its window. The length of
    a recording's windows is the smallest distance between their starts. A caption without a start describes the whole recording,
    and so do the captions of its only window, if it starts with the recording: a ten-second AudioCaps row cut into two clips
    describes both. Rows are of manifest.RECORDINGS, CAPTIONS and CLIPS (with `seconds` of sound).
    """
    rows_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in captions:
        rows_of[row["recording_id"]].append(row)
    clips_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for clip in clips:
        clips_of[clip["recording_id"]].append(clip)

    result = Matching()
    for recording in recordings:
        rows, own_clips = rows_of.pop(recording["recording_id"], []), clips_of.get(recording["recording_id"], [])
        _match_recording(recording, rows, own_clips, templates, heard, result)
    for rows in rows_of.values():
        result.missing.extend(_name(row) for row in rows)
    return result


def _match_recording(
    recording: dict[str, Any],
    rows: list[dict[str, Any]],
    clips: list[dict[str, Any]],
    templates: Sequence[str],
    heard: Mapping[str, Heard],
    result: Matching,
) -> None:
    starts = {clip["clip_id"]: recording["start_time"] + clip["start"] for clip in clips}
    windowed: dict[str, list[dict[str, Any]]] = defaultdict(list)
    whole = [row for row in rows if row["start_time"] is None]
    elsewhere = []
    for row in rows:
        if row["start_time"] is None:
            continue
        nearest = min(starts, key=lambda clip_id: abs(starts[clip_id] - row["start_time"]), default=None)
        if nearest is not None and abs(starts[nearest] - row["start_time"]) <= TOLERANCE:
            windowed[nearest].append(row)
        else:
            elsewhere.append(row)
    strays = _place_within(elsewhere, rows, clips, starts, windowed)
    if not whole and rows and all(abs(row["start_time"] - recording["start_time"]) <= TOLERANCE for row in rows):
        whole = rows

    for clip in clips:
        clip_id = clip["clip_id"]
        chosen = windowed.get(clip_id) or whole
        labels = list(dict.fromkeys(label for row in chosen for label in row["labels"])) or list(recording["labels"])
        of_sound = heard.get(clip_id, UNHEARD)
        if captions := [row["caption"] for row in chosen if row["caption"] not in of_sound.unfit]:
            origin: Origin = "window" if clip_id in windowed else "recording"
            result.clips[clip_id] = Description(captions, labels, origin)
            continue
        facts = captioning.facts_of(recording, labels, of_sound.tags)
        if chosen:  # what else is said of the recording may fit no better than its captions
            facts = {field: value for field, value in facts.items() if field == "tags"}
        if (template := captioning.choose(templates, facts)) is not None:
            result.clips[clip_id] = Description([template.format_map(facts)], labels, _origin_of(template, labels))
        else:
            result.clips[clip_id] = Description([], labels)

    if not clips:
        strays += whole
    result.missing.extend(_name(row) for row in strays)
    result.matched += len(rows) - len(strays)


def _origin_of(template: str, labels: Sequence[str]) -> Origin:
    fields = set(captioning.fields_of(template))
    if "tags" in fields:
        return "tags"
    if not fields.isdisjoint(FILE_TAGS):
        return "file_tags"
    return "label" if labels else "name"


def _place_within(
    elsewhere: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    clips: list[dict[str, Any]],
    starts: dict[str, float],
    windowed: dict[str, list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Assign captions that start inside clips to the clips that contain their window; returns the others."""
    times = sorted({row["start_time"] for row in rows if row["start_time"] is not None})
    length = min((after - before for before, after in pairwise(times) if after - before > TOLERANCE), default=None)
    if length is None:  # a single window has no known end
        return elsewhere
    ends = {clip["clip_id"]: starts[clip["clip_id"]] + clip["seconds"] for clip in clips}
    strays = []
    for row in sorted(elsewhere, key=lambda row: row["start_time"]):
        end = min(row["start_time"] + length, max(ends.values(), default=0.0))  # the last window ends with the recording
        around = (one for one in starts if starts[one] <= row["start_time"] < ends[one] and end <= ends[one] + TOLERANCE)
        clip_id = next(around, None)
        (strays if clip_id is None else windowed[clip_id]).append(row)
    return strays


def _name(row: dict[str, Any]) -> str:
    return f"{row['recording_id']} ({row['origin']})"
