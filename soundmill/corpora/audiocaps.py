"""AudioCaps: csv files of captions per YouTube id and start, beside audio files under any of the names in use."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from soundmill.corpora.inventory import Inventory, csv_columns, read_csv
from soundmill.corpora.tables import SPLIT_NAMES, CorpusTables
from soundmill.errors import UserError
from soundmill.manifest import escape_path

VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")
# `{id}`, `{id}_{start}`, `{id}_{start}_{end}` (with decimals, to tell seconds from milliseconds), each perhaps after a `Y`.
_TIMES = r"(?:_(?P<start>\d{1,6}(?:\.\d+)?)(?:(?<=\.\d\d\d)_\d+\.\d{3})?)?"
_NAMES = tuple(re.compile(prefix + r"(?P<video>[A-Za-z0-9_-]{11})" + _TIMES) for prefix in ("", "Y"))
ALIASES = {"ytid": "youtube_id", "youtubeid": "youtube_id", "start_seconds": "start_time", "start": "start_time"}
COLUMNS = ("youtube_id", "start_time", "caption")
LABEL_COLUMNS = ("youtube_id", "start_time", "labels")
TOLERANCE = 0.5  # seconds by which the starts of a caption and its recording may differ: other tools write 80, 80.0 or 79.999


@dataclass
class _Captions:
    """The rows of all csv files, by video."""

    rows: dict[str, list[tuple[float, str, str]]] = field(default_factory=lambda: defaultdict(list))  # start, caption, origin
    labels: dict[tuple[str, float], list[str]] = field(default_factory=dict)
    splits: dict[tuple[str, float], str] = field(default_factory=dict)
    caption_ids: dict[str, tuple[str, float]] = field(default_factory=dict)  # audiocap_id → window


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of an AudioCaps corpus: csv files and audio anywhere below its root; each csv's name tells the split.

    A caption belongs to the recording of its video that starts last before it. Audio that no csv knows stays a recording
    without captions; captions without audio stay in the table, so that coverage can be told.
    """
    tables = CorpusTables()
    captions = _read_captions(inventory, tables)
    known = captions.rows.__contains__

    windows: list[tuple[str, float] | None] = []
    for file in inventory.audio:
        window = captions.caption_ids.get(file.stem) or _window_of_name(file.stem, captions, known)
        windows.append(window)
    starts: dict[str, set[float]] = defaultdict(set)
    for window in windows:
        if window:
            starts[window[0]].add(window[1])

    recordings: dict[str, list[tuple[float, str]]] = defaultdict(list)  # video → (start, recording_id)
    for file, window in zip(inventory.audio, windows, strict=True):
        if window is None:
            tables.add_recording(file, num_shards)
            tables.count("without_id")
            continue
        video, start = window
        wanted = video if len(starts[video]) == 1 else f"{video}_{start:g}"
        split = _split_of(captions, video, start)
        found = tables.add_recording(file, num_shards, recording_id=wanted, start_time=start, split=split, group=video)
        if found == wanted:
            recordings[video].append((start, found))

    for video, rows in captions.rows.items():
        known_starts = sorted(recordings.get(video, []))
        for start, caption, origin in rows:
            owners = [recording_id for begin, recording_id in known_starts if begin <= start + TOLERANCE]
            owner = owners[-1] if owners else f"{video}_{start:g}"
            tables.add_caption(owner, caption, origin, start, captions.labels.get((video, start), []))
            tables.count("captions_with_audio" if owners else "captions_without_audio")
    return tables


def video_of_name(stem: str, known: Callable[[str], bool]) -> tuple[str, float] | None:
    """(YouTube id, start) that a file's stem tells with its start, for an id that `known` accepts; else None."""
    match = next((match for match in _matches(stem) if match["start"] and known(match["video"])), None)
    return (match["video"], float(match["start"])) if match else None


def _matches(stem: str) -> list[re.Match[str]]:
    return [match for pattern in _NAMES if (match := pattern.fullmatch(stem))]


def _window_of_name(stem: str, captions: _Captions, known: Callable[[str], bool]) -> tuple[str, float] | None:
    """(YouTube id, start) of a file; `Y` is dropped only where eleven characters remain, and an id that a csv has wins.

    Without a start in its name, a file is the one window that the csv files have of its video, else the whole video.
    """
    matches = _matches(stem)
    match = next((match for match in matches if known(match["video"])), matches[0] if matches else None)
    if match is None:
        return None
    video = match["video"]
    if match["start"]:
        return video, float(match["start"])
    starts = {start for start, _, _ in captions.rows[video]} if known(video) else set()
    return video, starts.pop() if len(starts) == 1 else 0.0


def _split_of(captions: _Captions, video: str, start: float) -> str | None:
    """The split of the recording's first window; of a video cut elsewhere, that of any of its windows."""
    if split := captions.splits.get((video, start)):
        return split
    return next((captions.splits.get((video, begin)) for begin, _, _ in sorted(captions.rows.get(video, []))), None)


def is_audiocaps(columns: list[str]) -> bool:
    """Whether a csv header has the columns of AudioCaps, v1 or v2."""
    return set(COLUMNS) <= {ALIASES.get(column, column) for column in columns}


def _read_captions(inventory: Inventory, tables: CorpusTables) -> _Captions:
    captions = _Captions()
    names, strangers = [], []
    for name in inventory.csv_files():
        columns = {ALIASES.get(column, column) for column in csv_columns(inventory, name)}
        path = escape_path(name)
        if set(COLUMNS) <= columns or set(LABEL_COLUMNS) <= columns:
            names.append((name, set(COLUMNS) <= columns))
        elif columns & {"audiocap_id", *COLUMNS}:
            missing = ", ".join(column for column in COLUMNS if column not in columns)
            raise UserError(
                f"{path}: an AudioCaps csv needs the columns {', '.join(COLUMNS)}; {missing} missing "
                f"(found: {', '.join(sorted(columns))}); mend its header, or take it out of the corpus"
            )
        else:
            strangers.append(f"{path} ({', '.join(sorted(columns)) or 'no header'})")
    if not any(has_captions for _, has_captions in names):
        found = "; ".join(strangers) or "none"
        raise UserError(
            f"corpus.path: no csv with the columns {', '.join(COLUMNS)} below {escape_path(bytes(inventory.root))} "
            f"(csv files: {found}); put AudioCaps' train.csv, val.csv, test.csv beside the audio, or use `corpus=folder`"
        )
    tables.count("other_csv", len(strangers))
    for name, has_captions in names:
        _read_windows(inventory, name, has_captions, captions, tables)
    return captions


def _read_windows(inventory: Inventory, name: bytes, has_captions: bool, captions: _Captions, tables: CorpusTables) -> None:
    split = split_of_file(name)
    for line, row in read_csv(inventory, name):
        row = {ALIASES.get(column, column): text for column, text in row.items()}
        video, start = row["youtube_id"].strip(), _seconds(row["start_time"])
        if not VIDEO_ID.fullmatch(video):
            tables.reject(name, "bad id", f"line {line}: {video!r:.80} is no YouTube id")
        elif start is None:
            tables.reject(name, "bad start time", f"line {line}: {row['start_time']!r:.80} is no number of seconds")
        elif not has_captions:
            captions.labels[video, start] = [label for part in row["labels"].split(";") if (label := part.strip())]
        elif not row["caption"].strip():
            tables.reject(name, "empty caption", f"line {line}: {video}")
        else:
            captions.rows[video].append((start, row["caption"], f"{escape_path(name)}:{line}"))
            if row.get("audiocap_id", "").isdecimal():
                captions.caption_ids[row["audiocap_id"]] = video, start
            if split and captions.splits.setdefault((video, start), split) != split:
                # What is ever tested on must not be trained on.
                order = ("test", "valid", "train")
                captions.splits[video, start] = min(captions.splits[video, start], split, key=order.index)
                tables.count("windows_in_two_splits")


def split_of_file(name: bytes) -> str | None:
    """The split that a file's name tells (`train.csv`, `audiocaps_val.csv`), None where it tells none or several."""
    words = re.split(r"[^a-z]+", name.rpartition(b"/")[2].decode("utf-8", "replace").lower())
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value < 1e6 else None
