"""What manifests say of recordings, row by row, and how that is joined with the files of a corpus: the body of most adapters."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.resolver import (
    FileIndex,
    Resolution,
    clip_of_file,
    compatible,
    folders_of_key,
    is_absolute,
    key_problem,
    shared_folders,
    youtube_clip,
)
from soundmill.corpora.splits import PROTECTED
from soundmill.corpora.tables import CorpusTables
from soundmill.manifest import escape_path

MAX_CAPTION = 1 << 16  # characters


@dataclass(slots=True)
class Row:
    """What one row of a manifest says of one recording."""

    source: bytes  # the manifest, by its name in the inventory
    at: int | str  # line or key in it
    key: str  # path, file name or id of the recording; a bare YouTube id where `start_time` is given
    captions: Sequence[str] = ()
    labels: Sequence[str] = ()
    start_time: float | None = None  # seconds into the YouTube video; None: the row holds for the whole recording
    split: str | None = None
    fold: int | None = None
    group: str | None = None  # recordings of one group never part; a YouTube video is one by itself
    number: str = ""  # AudioCaps' own id of the row, after which some name the file
    part: str = ""  # a word in the folder of its file that tells it from files of the same name in other folders
    of_video: bool = False  # the key is named after a YouTube video, though its id may look like words
    at_root: bool = False  # the key is a path in the corpus, not one from the manifest's folder
    about: tuple[str, float | None] | None = None  # the YouTube id and start in other columns than the key's
    bare: bool = False  # the format may list recordings that it says nothing of: no captions and no labels are no fault

    @property
    def origin(self) -> str:
        return f"{escape_path(self.source)}:{self.at}"

    @property
    def clip(self) -> tuple[str, float | None] | None:
        """(YouTube id, start) where the row is about a video."""
        return self.about or ((self.key, self.start_time) if self.start_time is not None else youtube_clip(self.key, self.of_video))


@dataclass
class _Join:
    tables: CorpusTables
    owners: dict[int, bytes] = field(default_factory=dict)  # row number → raw path of its file
    claims: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))  # raw path → numbers of rows
    starts: dict[str, set[float]] = field(default_factory=lambda: defaultdict(set))  # YouTube id → starts that rows give
    absent: list[int] = field(default_factory=list)
    twins: dict[bytes, tuple[str, float | None]] = field(default_factory=dict)  # further files of a claimed clip
    reported: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)  # entries of `ambiguous`
    strays: dict[int, AudioFile] = field(default_factory=dict)  # row number → file in another folder than the row says
    whole: list[str] = field(default_factory=list)  # paths of files that only their rows say the start of
    inside: list[str] = field(default_factory=list)  # origins of rows for a later second than any file begins at
    by_number: list[str] = field(default_factory=list)  # origins of rows whose file is called by their `audiocap_id` alone
    homes: dict[bytes, bytes] = field(
        default_factory=dict
    )  # manifest called like one that names files from its folder → its folder

    def disown(self, lost: list[int], numbers: list[int]) -> None:
        """Take rows from those (`numbers`) of a file."""
        for number in lost:
            del self.owners[number]
        numbers[:] = [number for number in numbers if number in self.owners]

    def report_ambiguous(
        self, key: str, files: Sequence[AudioFile], origins: list[str], reason: str, taken: str | None = None, clips: int = 1
    ) -> None:
        """Report what may mean several things, and what was made of it; rows of one key share an entry. `clips`: see Report of
        check.py; those of which nothing was taken count as described and not found."""
        paths = [file.path for file in files]
        entry = {"id": key, "paths": paths, "origins": [], "reason": reason, "taken": taken}
        if (known := self.reported.setdefault((key, reason, *paths), entry)) is entry:
            self.tables.ambiguous.append(entry)
            if taken is None:
                self.tables.count("undecided_clips", clips)
        known["origins"].extend(origins)


def join(
    inventory: Inventory,
    rows: Iterable[Row],
    num_shards: int,
    tables: CorpusTables | None = None,
    *,
    unique: bool = False,
    parts: Mapping[str, str] | None = None,
) -> CorpusTables:
    """Recordings and captions of a corpus whose manifests say `rows`; nothing depends on the order of rows or files.

    Rows that mean the same file add up. A row without file is `missing`. A row that may mean several files, or several rows
    that mean different recordings and find but one file, are `ambiguous` and describe nothing. Several files of one YouTube clip
    collide: one whose name tells the start, else the first in the order of paths, is described; the others are recordings
    without captions. `unique`: the format has one row per recording, so a second one is a collision too (both describe it).
    `parts`: the words that folders of the format may have, and what they mean; words of one meaning are no other part.
    """
    tables = tables or CorpusTables()
    kept = [row for row in rows if _is_usable(row, tables)]
    state = _Join(tables)
    _mark_videos(kept)
    for row in kept:
        if (clip := row.clip) and clip[1] is not None:
            state.starts[clip[0]].add(clip[1])
    _claim_all(inventory, kept, state, {row.part: row.part for row in kept if row.part} | dict(parts or {}))
    _report_repeated(_drop_repeated(kept, state), unique, tables)
    ids = _add_recordings(inventory, kept, num_shards, state)
    absent = [kept[number] for number in sorted(state.absent)]
    kept.reverse()
    for number in range(len(kept)):  # each row's room goes to its captions
        _add_captions(kept.pop(), ids.get(state.owners.get(number, b"")), state)
    _report_missing(absent, state)
    _remark(state)
    return tables


def _mark_videos(rows: list[Row]) -> None:
    """Where most names in a manifest surely have a YouTube id, those of eleven characters that may be words have one too."""
    votes: dict[bytes, int] = defaultdict(int)
    for row in rows:
        if row.start_time is None:
            votes[row.source] += 1 if youtube_clip(row.key) else -1
    for row in rows:
        row.of_video |= votes[row.source] > 0


def _drop_repeated(rows: list[Row], state: _Join) -> list[Row]:
    """Take from rows the captions that another manifest gives the same file, or of the same second of a video without file;
    returns the rows that say more than that.

    A subset or another version of a list often lies beside it. Rows with labels go first, then the manifests' names decide; what
    one manifest repeats stays, and so does what is told for another split or under another number.
    """

    absent = {number: clip for number in state.absent if (clip := rows[number].clip) and clip[1] is not None}
    places: dict[int, Any] = state.owners | absent

    def what(number: int, caption: str) -> tuple[Any, ...]:
        row = rows[number]
        return places[number], row.start_time, row.split, row.number, caption

    first: dict[tuple[Any, ...], tuple[bool, bytes, tuple[str, ...]]] = {}
    for number in places:
        row = rows[number]
        for caption in row.captions:
            rank = not row.labels, row.source, tuple(row.labels)
            key = what(number, caption)
            first[key] = min(first.get(key, rank), rank)

    def is_news(number: int, caption: str) -> bool:
        _, source, labels = first[what(number, caption)]
        return source == rows[number].source or not set(rows[number].labels) <= set(labels)

    again: dict[int, None] = {}
    for number in sorted(places):
        row = rows[number]
        captions = tuple(caption for caption in row.captions if is_news(number, caption))
        if len(captions) < len(row.captions):
            row.captions = captions
            again[number] = None
    if again:
        where = rows[next(iter(again))].origin
        state.tables.remarks.append(
            f"{len(again)} rows say again what another manifest says of the same recording (first: {where}); it counts once"
        )
    said = {number for number in again if not rows[number].captions}
    state.absent = [number for number in state.absent if number not in said]
    return [row for number, row in enumerate(rows) if number not in said]


def _remark(state: _Join) -> None:
    """Report what was taken for granted."""
    if state.whole:
        state.tables.remarks.append(
            f"{len(state.whole)} files are called by their YouTube id alone (first: {state.whole[0]}); each is taken to begin at "
            "the second that its rows are for. One that is the whole video should be called `{id}_0`"
        )
    if state.by_number:
        state.tables.remarks.append(
            f"{len(state.by_number)} rows found their file by its name being their `audiocap_id` (first: {state.by_number[0]})"
        )
    if state.inside:
        state.tables.remarks.append(
            f"{len(state.inside)} rows are for a second inside of a file that begins before it (first: {state.inside[0]}); they "
            "describe it only if one of its clips begins within half a second of that"
        )


def _claim_all(inventory: Inventory, rows: list[Row], state: _Join, parts: Mapping[str, str]) -> None:
    """Find every row its file. What the files are found by takes more memory than all else, and is gone afterwards."""
    index = FileIndex(inventory)
    numbered = _numbered(inventory, index, rows, state)
    local = _local_manifests(index, rows)
    taken: dict[bytes, set[bytes]] = defaultdict(set)  # name of a manifest → folders that such a one has for its own
    for source in local:
        folder, _, name = source.rpartition(b"/")
        taken[name].add(folder)
    for source in {row.source for row in rows}:
        folder, _, name = source.rpartition(b"/")
        if name in taken:
            state.homes[source] = folder
    for number, row in enumerate(rows):
        named = sorted(numbered.get((row.key, row.start_time), ()), key=lambda file: file.raw_path)
        if named and not index.resolve_clip(row.key, row.start_time).files:
            state.by_number.append(row.origin)
        resolution = _in_part(row, parts, _resolve(index, row, named))
        if row.source in local:
            resolution = _in_own_folder(index, row, resolution)
        elif folders := taken.get(row.source.rpartition(b"/")[2]):
            resolution = _in_nobodys_folder(row, resolution, folders)
        _claim(number, row, resolution, state)
    files = {file.raw_path: file for file in inventory.audio}
    for raw_path, numbers in state.claims.items():
        _settle_claims(files[raw_path], numbers, rows, state)
    for number, file in state.strays.items():
        if number in state.owners:
            state.report_ambiguous(rows[number].key, [file], [rows[number].origin], "found in another folder", file.path)


def _numbered(
    inventory: Inventory, index: FileIndex, rows: list[Row], state: _Join
) -> dict[tuple[str, float | None], dict[AudioFile, None]]:
    """Files called by AudioCaps' number of a row, by the row's clip.

    Where some rows find theirs by YouTube id, only those in folders of whose numbers as many are rows' as are not: Freesound's
    numbers, which files of other corpora are called by, are AudioCaps' too.
    """
    files = {row.number: index.resolve(row.number).files for row in rows if row.number}
    known = {file for some in files.values() for file in some}
    votes: dict[bytes, int] = defaultdict(int)  # by folder
    if known and any(row.number and index.resolve_clip(row.key, row.start_time).files for row in rows):
        for file in inventory.audio:
            if file.stem.isdigit():
                votes[os.path.dirname(file.raw_path)] += 1 if file in known else -1
    strange = {file for file in known if votes[os.path.dirname(file.raw_path)] < 0}
    if strange:
        state.tables.remarks.append(
            f"{len(strange)} files are called by a row's `audiocap_id` and not taken for it, for most numbers in their folder "
            f"are no row's (first: {min(file.path for file in strange)})"
        )
    by_clip: dict[tuple[str, float | None], dict[AudioFile, None]] = defaultdict(dict)
    for row in rows:
        for file in files.get(row.number, ()):
            if file not in strange:
                by_clip[row.key, row.start_time][file] = None
    return by_clip


def _is_usable(row: Row, tables: CorpusTables) -> bool:
    at = f"line {row.at}" if isinstance(row.at, int) else row.at
    row.captions = tuple(caption for caption in row.captions if caption.strip())
    if problem := key_problem(row.key):
        tables.reject(row.source, "bad id", f"{at}: {row.key!r:.80}: {problem}")
    elif any(len(caption) > MAX_CAPTION for caption in row.captions):
        tables.reject(row.source, "caption too long", f"{at}: {row.key:.80}: over {MAX_CAPTION} characters")
    elif not row.captions and not row.labels and not row.bare:
        tables.reject(row.source, "empty caption", f"{at}: {row.key:.80}")
    else:
        return True
    return False


def _resolve(index: FileIndex, row: Row, numbered: list[AudioFile]) -> Resolution:
    """`numbered`: files that are called by AudioCaps' number of this row, or of another one of the same clip."""
    if row.start_time is None:
        return index.resolve(row.key, b"" if row.at_root else row.source.rpartition(b"/")[0], row.of_video)
    resolution = index.resolve_clip(row.key, row.start_time)
    if numbered:
        return Resolution(tuple(dict.fromkeys((*resolution.files, *numbered))), "stem", same_clip=True)
    return resolution if resolution.files else index.resolve_inside(row.key, row.start_time)


def _local_manifests(index: FileIndex, rows: list[Row]) -> set[bytes]:
    """Manifests that name files by paths from their own folder: no fewer rows find theirs so than find its name elsewhere only."""
    votes: dict[bytes, int] = defaultdict(int)
    local: set[bytes] = set()
    for row in rows:
        if _may_be_anywhere(row):
            if index.at(row.key, row.source.rpartition(b"/")[0]):
                votes[row.source] += 1
                local.add(row.source)
            else:
                votes[row.source] -= index.bears(row.key)
    return {source for source in local if votes[source] >= 0}


def _may_be_anywhere(row: Row) -> bool:
    """Whether a row says no more of its file's place than its folder may."""
    return row.start_time is None and row.clip is None and not row.at_root and not is_absolute(row.key)


def _in_own_folder(index: FileIndex, row: Row, resolution: Resolution) -> Resolution:
    """Of files that a row's name alone found, those where its path says, or at least below its manifest's folder."""
    if resolution.match not in ("name", "stem") or not _may_be_anywhere(row):
        return resolution
    folder = row.source.rpartition(b"/")[0]
    if there := index.at(row.key, folder):
        return replace(resolution, files=tuple(there), elsewhere=False)
    return replace(
        resolution, files=tuple(file for file in resolution.files if not folder or file.raw_path.startswith(folder + b"/"))
    )


def _in_nobodys_folder(row: Row, resolution: Resolution, folders: set[bytes]) -> Resolution:
    """Of files that a row's name alone found, those below none of the folders that other manifests have for their own."""
    if resolution.match not in ("name", "stem") or not _may_be_anywhere(row):
        return resolution
    return replace(resolution, files=tuple(file for file in resolution.files if not folders.intersection(_above(file))))


def _above(file: AudioFile) -> Iterator[bytes]:
    """The folders that a file lies in, but for the corpus itself."""
    path = file.raw_path
    while path := path.rpartition(b"/")[0]:
        yield path


def _in_part(row: Row, parts: Mapping[str, str], resolution: Resolution) -> Resolution:
    """Of several files those in the folder of the row's part; a file in the folder of another part is not the row's, unless it is
    called by a YouTube id, which only one recording has."""
    if not row.part or not resolution.files:
        return resolution
    above = row.source.split(b"/")[:-1]
    places = {
        file: _Words(file.folders[len(above) :] if file.folders[: len(above)] == above else file.folders)
        for file in resolution.files
    }
    alike = [part for part, meaning in parts.items() if meaning == parts[row.part]]
    others = [part for part in parts if part not in alike]
    files = (
        [file for file, words in places.items() if words.have(row.part)]
        or [file for file, words in places.items() if any(map(words.have, alike))]
        or [file for file, words in places.items() if row.clip or not any(map(words.have, others))]
    )
    return replace(resolution, files=tuple(files))


class _Words:
    """The words of folders' names."""

    def __init__(self, folders: Iterable[bytes]):
        names = [re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", folder.decode("utf-8", "replace")) for folder in folders]
        self._words = {word.lower() for words in names for word in words}
        self._text = "/".join("".join(words).lower() for words in names)

    def have(self, part: str) -> bool:
        """Whether a word is `part`, or, of a long one, which is a piece of no other, some words together have it: `Free_Sound`."""
        return part in self._words or (len(part) > 7 and part in self._text)


def _claim(number: int, row: Row, resolution: Resolution, state: _Join) -> None:
    if not resolution.files:
        state.absent.append(number)
        return
    first, *others = resolution.files
    if others and not resolution.same_clip:
        state.report_ambiguous(row.key, resolution.files, [row.origin], "several files bear this name")
        return
    if resolution.elsewhere:
        state.strays[number] = first
    if resolution.match == "inside":
        state.inside.append(row.origin)
    state.owners[number] = first.raw_path
    state.claims[first.raw_path].append(number)
    if clip := row.clip:
        state.twins.update((file.raw_path, clip) for file in others)


def _settle_claims(file: AudioFile, numbers: list[int], rows: list[Row], state: _Join) -> None:
    """Rows that mean different recordings cannot all have the one file: those whose folders agree with it do, if they are one."""
    clips = {number: clip[0] for number in numbers if (clip := rows[number].clip)}
    if len(set(clips.values())) > 1:  # found by a number that rows of several videos have
        return _give_up(file, list(clips), numbers, rows, state)
    if len({rows[number].part for number in numbers} - {""}) > 1:  # each has its folder, and the file lies in neither
        return _give_up(file, list(numbers), numbers, rows, state)
    named = {number: folders_of_key(rows[number].key) for number in numbers if number not in clips}
    if _are_one(named.values()):
        return
    agreeing = {number: path for number, path in named.items() if compatible(file, path[:-1])}
    if not agreeing or not _are_one(agreeing.values()):  # who shares most of its folders, and who says fewer of the same
        shared = {number: shared_folders(file, path[:-1]) for number, path in named.items()}
        most = max(shared.values())
        longest = max((path for number, path in named.items() if shared[number] == most), key=len)
        same = {number for number, path in named.items() if shared[number] == most or longest[-len(path) :] == path}
        agreeing = {number: named[number] for number in same} if most else {}
    lost = [number for number in named if number not in agreeing]
    if agreeing and _are_one(agreeing.values()):
        state.absent.extend(lost)
        state.disown(lost, numbers)
    else:
        _give_up(file, list(named), numbers, rows, state)


def _give_up(file: AudioFile, lost: list[int], numbers: list[int], rows: list[Row], state: _Join) -> None:
    """Rows of different recordings find this file alone, and nothing tells whose it is."""
    origins = [rows[number].origin for number in lost]
    clips = len({(rows[number].key, rows[number].start_time) for number in lost})
    state.report_ambiguous(rows[lost[0]].key, [file], origins, "rows of different names find only this file", clips=clips)
    state.disown(lost, numbers)


def _are_one(paths: Iterable[list[str]]) -> bool:
    """Whether all paths may be one, told from more or fewer of its folders."""
    ordered = sorted(paths, key=len)
    return all(ordered[-1][-len(path) :] == path for path in ordered)


def _add_recordings(inventory: Inventory, rows: list[Row], num_shards: int, state: _Join) -> dict[bytes, str]:
    """Add every file; returns recording ids by raw path."""
    tables = state.tables
    windows = {
        file.raw_path: _window(file, [rows[n] for n in state.claims.get(file.raw_path, [])], state) for file in inventory.audio
    }
    begins: dict[str, float] = {}
    in_pieces = {video for video, start in filter(None, windows.values()) if begins.setdefault(video, start) != start}

    def wanted_id(file: AudioFile) -> str | None:
        if window := windows[file.raw_path]:
            video, start = window
            return f"{video}_{start:g}" if video in in_pieces else video
        return None

    bearers: dict[str, AudioFile] = {}  # a described one, else the first in the order of paths
    collisions: dict[str, list[AudioFile]] = {}
    for file in sorted(inventory.audio, key=lambda file: not state.claims.get(file.raw_path)):
        if (recording_id := wanted_id(file)) and bearers.setdefault(recording_id, file) is not file:
            collisions.setdefault(recording_id, [bearers[recording_id]]).append(file)
    for recording_id in filter(collisions.__contains__, bearers):
        tables.collisions.append({"id": recording_id, "paths": [file.path for file in collisions[recording_id]]})

    ids = {}
    for file in inventory.audio:
        own = [rows[number] for number in state.claims.get(file.raw_path, [])]
        recording_id, window = wanted_id(file), windows[file.raw_path]
        if window is None:
            tables.count("without_id")
        splits = {row.split for row in own if row.split}
        if len(splits) > 1:
            tables.count("recordings_in_two_splits")
            origins = [row.origin for row in own if row.split]
            reason = f"rows put it into {' and '.join(sorted(splits))}"
            state.report_ambiguous(own[0].key, [file], origins, reason, min(splits, key=PROTECTED.index))
        ids[file.raw_path] = recording_id = tables.add_recording(
            file,
            num_shards,
            recording_id=recording_id if recording_id and bearers[recording_id] is file else None,
            start_time=window[1] if window else 0.0,
            labels=dict.fromkeys(label for row in own if row.start_time is None for label in row.labels),
            fold=next((row.fold for row in own if row.fold is not None), None),
            split=min(splits, key=PROTECTED.index, default=None),
            group=next((row.group for row in own if row.group), window[0] if window else None),
        )
        if own and not any(row.captions or row.labels for row in own):
            tables.named.add(recording_id)
    return ids


def _window(file: AudioFile, rows: list[Row], state: _Join) -> tuple[str, float] | None:
    """(YouTube id, start) of a file; without a start in its name, the one window that rows tell of its video, else all of it."""
    clip = next((row.clip for row in rows if row.clip), None) or state.twins.get(file.raw_path)
    own = clip_of_file(file)
    if clip is None:
        if own is None or not (youtube_clip(os.fsdecode(file.name)) or own[0] in state.starts):
            return None
        clip = own
    video = clip[0]
    if own and own[0] == video and own[1] is not None:
        milliseconds = clip[1] is not None and own[1] == 1000 * clip[1]  # less than a second of them looks like seconds
        return video, clip[1] if milliseconds else own[1]
    starts = state.starts.get(video, set())
    if len(starts) == 1:
        if own and own[0] == video and min(starts):
            state.whole.append(file.path)
        return video, min(starts)
    if starts and own and own[0] == video:
        reason = f"rows tell {len(starts)} starts, the file's name none"
        state.report_ambiguous(video, [file], [row.origin for row in rows], reason, "the whole video, from its beginning")
        return video, 0.0
    return video, clip[1] or 0.0


def _absent(row: Row, state: _Join) -> str:
    """What tells a row of no video that has no file from others of its name: its part, and the folder that it names files from."""
    place = state.homes.get(row.source, b"") if _may_be_anywhere(row) else b""
    return "/".join(filter(None, (row.part, escape_path(place), row.key)))


def _add_captions(row: Row, recording_id: str | None, state: _Join) -> None:
    owner, tables = recording_id, state.tables
    if owner is None:
        clip = row.clip
        # No recording has such an id: hashes and YouTube ids have no colon, and no recording of that video has this start.
        owner = f"{clip[0]}_{clip[1]:g}" if clip and clip[1] is not None else f"missing:{_absent(row, state)}"
    labels = row.labels if row.start_time is not None else ()
    for caption in row.captions:
        tables.add_caption(owner, caption, row.origin, row.start_time, labels)
    if row.captions:
        tables.count("captions_with_audio" if recording_id else "captions_without_audio", len(row.captions))


def _report_repeated(rows: list[Row], unique: bool, tables: CorpusTables) -> None:
    """Ids that two rows have and only one may: AudioCaps' numbers, and where a format has one row per recording its key."""
    origins: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for row in rows:
        if row.number:
            origins["", row.number, None].append(row.origin)
        if unique:
            origins[row.part, row.key, row.start_time].append(row.origin)
    tables.collisions.extend({"id": key, "origins": several} for (_, key, _), several in origins.items() if len(several) > 1)


def _report_missing(rows: list[Row], state: _Join) -> None:
    """One entry per described clip; its captions, their origins and AudioCaps' ids are lists of one length."""
    entries: dict[Any, dict[str, Any]] = {}
    for row in rows:
        clip = row.clip
        entry = entries.setdefault(
            clip or _absent(row, state),
            {
                "id": row.key,
                "youtube_id": clip[0] if clip else None,
                "start_time": clip[1] if clip else None,
                "captions": [],
                "origins": [],
                "audiocap_ids": [],
            },
        )
        for caption in row.captions or [""]:
            entry["captions"].append(caption)
            entry["origins"].append(row.origin)
            entry["audiocap_ids"].append(row.number)
    state.tables.missing.extend(entries.values())
