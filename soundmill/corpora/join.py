"""Joining the rows of manifests with files: the main part of most adapters."""

import os
import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from difflib import get_close_matches
from typing import Any

from soundmill.corpora import resolver
from soundmill.corpora.claims import JoinState, claim_all
from soundmill.corpora.csv_tables import csv_files_with, read_csv
from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.resolver import clip_of_file, folders_of_key, youtube_clip
from soundmill.corpora.splits import PROTECTED
from soundmill.corpora.tables import MAX_CAPTION, CorpusTables, ManifestRow, is_missing, split_of
from soundmill.manifest import escape_path, path_text

NEAREST = 3  # files named for a manifest that matches none
MAX_NAME = 255  # characters compared


def join(
    inventory: Inventory,
    rows: Iterable[ManifestRow],
    num_shards: int,
    tables: CorpusTables | None = None,
    *,
    unique: bool = False,
    parts: Mapping[str, str] | None = None,
) -> CorpusTables:
    """Recordings and captions of a corpus, independent of the order of rows and files; docs/corpora.md defines what is reported.

    Rows of one file are combined. `unique`: the format has one row per recording, so a second row is a collision (both describe
    it). `parts`: words in folder names and their meanings; words with one meaning are one part.
    """
    tables = tables or CorpusTables()
    kept = [row for row in rows if _is_usable(row, tables)]
    state = JoinState(tables)
    votes: dict[bytes, int] = defaultdict(int)  # whether the names in a manifest are certainly YouTube ids
    for row in kept:
        if row.start_time is None:
            votes[row.source] += 1 if youtube_clip(row.key) else -1
    for row in kept:  # then its other names of eleven characters are ids, too
        row.of_video |= votes[row.source] > 0
    for row in kept:
        if (clip := row.clip) and clip[1] is not None:
            state.starts[clip[0]].add(clip[1])
    claim_all(inventory, kept, state, {row.part: row.part for row in kept if row.part} | dict(parts or {}))
    _remark_strange(inventory, kept, state)
    _report_repeated(_drop_repeated(kept, state), unique, tables)
    ids = _add_recordings(inventory, kept, num_shards, state)
    absent = [row for row in map(kept.__getitem__, sorted(state.absent)) if row.captions or row.labels or row.bare]
    kept.reverse()
    for number in range(len(kept)):  # frees each row once its captions are added
        _add_captions(kept.pop(), ids.get(state.owners.get(number, b"")), state)
    _report_missing(absent, state)
    then = "; each is assumed to start at the second given by its rows. Rename files of whole videos to `{id}_0`"
    tables.remark(state.whole, "files are named by a YouTube id without a start", then)
    tables.remark(state.by_number, "rows matched a file named after their `audiocap_id`")
    then = "; each describes a clip that starts within 0.5 s of it or contains its window"
    tables.remark(state.inside, "rows start inside a longer file", then)
    return tables


def _remark_strange(inventory: Inventory, rows: list[ManifestRow], state: JoinState) -> None:
    """Remark manifests none of whose rows names a file, and the files that are named most like the first row of the first."""
    absent, all_rows = Counter(rows[number].source for number in state.absent), Counter(row.source for row in rows)
    strange = [source for source, count in all_rows.items() if absent[source] == count > 1]  # not those beside one recording
    if strange and inventory.audio:
        first = next(row for row in rows if row.source == min(strange))
        state.tables.remarks.append(
            f"{len(strange)} manifests have no row that names a file (first: {first.origin}, {nearest(inventory, first.key)})"
        )


def nearest(inventory: Inventory, key: str) -> str:
    """A key that names no file, and the files that are named most like it."""
    paths = {file.stem: file.path for file in inventory.audio}
    near = get_close_matches(folders_of_key(key)[-1][:MAX_NAME], paths, NEAREST)
    what = f"nearest: {', '.join(paths[stem] for stem in near)}" if near else f"no name is near; one is {min(paths.values())}"
    return f"{key!r:.80}; {what}"


def _drop_repeated(rows: list[ManifestRow], state: JoinState) -> list[ManifestRow]:
    """Drop captions that another manifest has for the same file, or for the same second of a missing video; returns the rows that
    still have captions.

    A subset or another version of a list is often beside it. Rows with labels take precedence, then manifests by name. Captions
    repeated within one manifest stay, as do those for another split or `audiocap_id`.
    """
    absent = {number: clip for number in state.absent if (clip := rows[number].clip) and clip[1] is not None}
    places: dict[int, Any] = state.owners | absent

    def identity(number: int, caption: str) -> tuple[Any, ...]:
        row = rows[number]
        return places[number], row.start_time, row.split, row.number, caption

    first: dict[tuple[Any, ...], tuple[bool, bytes, tuple[str, ...]]] = {}
    for number in places:
        row = rows[number]
        for caption in row.captions:
            rank = not row.labels, row.source, tuple(row.labels)
            key = identity(number, caption)
            first[key] = min(first.get(key, rank), rank)

    def is_new(number: int, caption: str) -> bool:
        _, source, labels = first[identity(number, caption)]
        return source == rows[number].source or not set(rows[number].labels) <= set(labels)

    repeated: list[int] = []
    for number in sorted(places):
        row = rows[number]
        captions = tuple(caption for caption in row.captions if is_new(number, caption))
        if len(captions) < len(row.captions):
            row.captions = captions
            repeated.append(number)
    what = "rows repeat another manifest's captions of the same recording"
    state.tables.remark([rows[number].origin for number in repeated], what, "; they count once")
    dropped = {number for number in repeated if not rows[number].captions}
    state.absent = [number for number in state.absent if number not in dropped]
    return [row for number, row in enumerate(rows) if number not in dropped]


def _is_usable(row: ManifestRow, tables: CorpusTables) -> bool:
    at = f"line {row.at}" if isinstance(row.at, int) else row.at
    row.captions = tuple(tables.said(row.captions, row.origin))
    row.labels = tables.said(row.labels, row.origin, labels=True)
    row.group = None if row.group and is_missing(row.group) else row.group
    if problem := resolver.key_problem(row.key):
        tables.reject(row.source, "bad id", f"{at}: {row.key!r:.80}: {problem}")
        return False
    # Without its text, the recording still has the split, fold and group of the row.
    if any(len(caption) > MAX_CAPTION for caption in row.captions):
        tables.reject(row.source, "caption too long", f"{at}: {row.key:.80}: over {MAX_CAPTION} characters")
        row.captions = ()
    elif not row.captions and not row.labels and not row.bare:
        tables.reject(row.source, "no caption or label", f"{at}: {row.key:.80}")
    return True


def _add_recordings(inventory: Inventory, rows: list[ManifestRow], num_shards: int, state: JoinState) -> dict[bytes, str]:
    """Add every file; returns recording ids by raw path."""
    tables = state.tables
    own_of = {file.raw_path: [rows[number] for number in state.claims.get(file.raw_path, [])] for file in inventory.audio}
    windows = {file.raw_path: _window(file, own_of[file.raw_path], state) for file in inventory.audio}
    begins: dict[str, float] = {}
    in_pieces = {video for video, start in filter(None, windows.values()) if begins.setdefault(video, start) != start}

    clip_ids = {path: f"{clip[0]}_{clip[1]:g}" if clip[0] in in_pieces else clip[0] for path, clip in windows.items() if clip}
    files_of: dict[str, list[AudioFile]] = defaultdict(list)  # by id: described files, then the others, by path
    for file in sorted(inventory.audio, key=lambda file: not state.claims.get(file.raw_path)):
        if recording_id := clip_ids.get(file.raw_path):
            files_of[recording_id].append(file)
    several = ((recording_id, files) for recording_id, files in files_of.items() if len(files) > 1)
    tables.collisions.extend({"id": recording_id, "paths": [file.path for file in files]} for recording_id, files in several)

    ids = {}
    for file in inventory.audio:
        own = own_of[file.raw_path]
        recording_id, window = clip_ids.get(file.raw_path), windows[file.raw_path]
        if window is None:
            tables.counts["without_id"] += 1
        splits = {row.split for row in own if row.split}
        if len(splits) > 1:
            tables.counts["recordings_in_two_splits"] += 1
            origins = [row.origin for row in own if row.split]
            reason = f"rows put it into {' and '.join(sorted(splits))}"
            state.report_ambiguous(own[0].key, [file], origins, reason, min(splits, key=PROTECTED.index))
        ids[file.raw_path] = recording_id = tables.add_recording(
            file,
            num_shards,
            recording_id=recording_id if recording_id and files_of[recording_id][0] is file else None,
            start_time=window[1] if window else 0.0,
            labels=dict.fromkeys(label for row in own if row.start_time is None for label in row.labels),
            fold=next((row.fold for row in own if row.fold is not None), None),
            split=min(splits, key=PROTECTED.index, default=None),
            group=next((row.group for row in own if row.group), window[0] if window else None),
        )
        if own and not any(row.captions or row.labels for row in own):
            tables.named.add(recording_id)
    return ids


def _window(file: AudioFile, rows: list[ManifestRow], state: JoinState) -> tuple[str, float] | None:
    """(YouTube id, start) of a file; without a start in its name, that of the only window in rows, else 0."""
    clip = next((row.clip for row in rows if row.clip), None) or state.twins.get(file.raw_path)
    own = clip_of_file(file)
    if clip is None:
        if own is None or not (youtube_clip(path_text(file.name)) or own[0] in state.starts):
            return None
        clip = own
    video = clip[0]
    if own and own[0] == video and own[1] is not None:
        milliseconds = clip[1] is not None and own[1] == 1000 * clip[1]  # under a second, they look like seconds
        return video, clip[1] if milliseconds else own[1]
    starts = state.starts.get(video, set())
    if len(starts) == 1:
        if own and own[0] == video and min(starts):
            state.whole.append(file.path)
        return video, min(starts)
    if starts and own and own[0] == video:
        reason = f"rows have {len(starts)} starts, the file name has none"
        state.report_ambiguous(video, [file], [row.origin for row in rows], reason, "as the whole video")
        return video, 0.0
    return video, clip[1] or 0.0


def _absent(row: ManifestRow, state: JoinState) -> str:
    """Identity of a missing recording that is not a YouTube clip: part, manifest's folder, key."""
    place = state.homes.get(row.source, b"") if row.may_be_anywhere else b""
    return "/".join(filter(None, (row.part, escape_path(place), row.key)))


def _add_captions(row: ManifestRow, recording_id: str | None, state: JoinState) -> None:
    owner, tables = recording_id, state.tables
    if owner is None:
        clip = row.clip
        # Never a recording's id: hashes and YouTube ids have no colon, and no recording of this video has this start.
        owner = f"{clip[0]}_{clip[1]:g}" if clip and clip[1] is not None else f"missing:{_absent(row, state)}"
    labels = row.labels if row.start_time is not None else ()
    for caption in row.captions:
        tables.add_caption(owner, caption, row.origin, row.start_time, labels)
    if row.captions:
        tables.counts["captions_with_audio" if recording_id else "captions_without_audio"] += len(row.captions)


def _report_repeated(rows: list[ManifestRow], unique: bool, tables: CorpusTables) -> None:
    """Report repeated ids as collisions: `audiocap_id`s, and keys of formats with one row per recording."""
    origins: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for row in rows:
        if row.number:
            origins["", row.number, None].append(row.origin)
        if unique and (row.captions or row.labels or row.bare):
            origins[row.part, row.key, row.start_time].append(row.origin)
    tables.collisions.extend({"id": key, "origins": several} for (_, key, _), several in origins.items() if len(several) > 1)


def _report_missing(rows: list[ManifestRow], state: JoinState) -> None:
    """Add one entry per missing clip; captions, origins and `audiocap_ids` are lists of equal length."""
    entries: dict[Any, dict[str, Any]] = {}
    for row in rows:
        clip = row.clip
        video, start = clip or (None, None)
        about = {"id": row.key, "youtube_id": video, "start_time": start, "captions": [], "origins": [], "audiocap_ids": []}
        entry = entries.setdefault(clip or _absent(row, state), about)
        for caption in row.captions or [""]:
            entry["captions"].append(caption)
            entry["origins"].append(row.origin)
            entry["audiocap_ids"].append(row.number)
    state.tables.missing.extend(entries.values())


MACHINE_ID = re.compile(r"/[mtg]/[0-9a-z_]+")
DETECTED = 50  # rows, lines or jsons beside recordings, of which most must be as a format has them


def name_classes(described: Iterable[Any], inventory: Inventory, tables: CorpusTables) -> None:
    """Replace machine ids of AudioSet's classes in `labels` by the names in csv files of the corpus; others are left out."""
    names: dict[str, str] | None = None  # read once there is such an id
    nameless: list[str] = []
    for row in described:
        if not any(map(MACHINE_ID.fullmatch, row.labels)):
            continue
        if names is None:
            named = csv_files_with(inventory, {"mid", "display_name"})
            cells = (cells for name in named for _, cells in read_csv(inventory, name))
            known = {row["mid"].strip(): row["display_name"].strip() for row in cells}
            names = {mid: name for mid, name in known.items() if mid and name}
        called = [names.get(label, label) for label in row.labels]
        nameless += filter(MACHINE_ID.fullmatch, called)
        row.labels = [label for label in called if not MACHINE_ID.fullmatch(label)]
    if nameless:
        tables.counts["labels_without_name"] += len(nameless)
        then = " without a name and are left out; put AudioSet's class_labels_indices.csv (`mid,display_name`) into the corpus"
        tables.remark(nameless, "labels are machine ids of AudioSet classes", then)


class ManifestFormat(ABC):
    """The adapter (`FORMAT`, `detect`, `read`) of one format; subclasses find its manifests and read their rows."""

    FORMAT: str
    looks: str  # description of its manifests, in errors
    remedy: str  # what to do, in errors
    unique: bool = False  # one row per recording
    needs_rows: bool = False  # manifests without a row are none
    columns: Set[str] = frozenset()  # of its csv files, unless it has other manifests
    parts: Mapping[str, str] | None = None  # as in join

    def detect(self, inventory: Inventory) -> bool:
        return any(self.is_own(inventory, name) for name in self.manifests(inventory))

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Read all manifests; unless `unique`, rows of one file are one recording with several captions."""
        tables, names = CorpusTables(), list(self.manifests(inventory))
        rows = list(self.all_rows(inventory, names, tables))
        if not rows and (self.needs_rows or not names):
            raise inventory.lacks(self.looks, self.remedy)
        name_classes(rows, inventory, tables)
        join(inventory, rows, num_shards, tables, unique=self.unique, parts=self.parts_of(names))
        placed = [(os.path.dirname(recording["raw_path"]), recording) for recording in tables.recordings]
        splits: dict[bytes, set[str | None]] = defaultdict(set)  # by folder: those that rows give
        for folder, recording in placed:
            splits[folder].add(recording["split"])
        for folder, recording in placed:
            if (split := split_of(folder)) and splits[folder] <= {split, None}:
                recording["split"] = split  # what no row gives one, `eval_audio` does
        return tables

    def is_own(self, inventory: Inventory, name: bytes) -> bool:
        """Whether one of its manifests shows the format, for detection: other formats may have such files too."""
        return True

    def parts_of(self, names: Iterable[bytes]) -> Mapping[str, str] | None:
        return self.parts

    def all_rows(self, inventory: Inventory, names: Iterable[bytes], tables: CorpusTables) -> Iterator[ManifestRow]:
        for name in names:
            yield from self.rows(inventory, name, tables)

    def manifests(self, inventory: Inventory) -> Iterable[bytes]:
        """Names of its manifests in the inventory."""
        return csv_files_with(inventory, self.columns)

    @abstractmethod
    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
        """Rows of one manifest; those that describe no recording are quarantined."""
