"""Which file each row of a manifest describes: by path, name or id; what several rows or files claim is settled or ambiguous."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from soundmill.corpora.inventory import AudioFile, Inventory, composed_path
from soundmill.corpora.resolver import FileIndex, Resolution, compatible, folders_of_key, shared_folders
from soundmill.corpora.tables import CorpusTables, ManifestRow


@dataclass
class JoinState:
    """Intermediate results of a join; rows are referred to by number."""

    tables: CorpusTables
    owners: dict[int, bytes] = field(default_factory=dict)  # row number → raw path of its file
    claims: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))  # raw path → row numbers
    starts: dict[str, set[float]] = field(default_factory=lambda: defaultdict(set))  # YouTube id → starts in rows
    absent: list[int] = field(default_factory=list)  # rows without a file
    twins: dict[bytes, tuple[str, float | None]] = field(default_factory=dict)  # further files of a claimed clip
    reported: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)  # entries of `ambiguous`
    strays: dict[int, AudioFile] = field(default_factory=dict)  # row number → file in another folder than the row says
    whole: list[str] = field(default_factory=list)  # paths of files without a start in their name
    inside: list[str] = field(default_factory=list)  # origins of rows that start inside a file
    by_number: list[str] = field(default_factory=list)  # origins of rows matched by `audiocap_id`
    homes: dict[bytes, bytes] = field(default_factory=dict)  # manifest with the name of a local manifest → its folder

    def disown(self, lost: list[int], numbers: list[int]) -> None:
        """Remove `lost` from the rows (`numbers`) of a file."""
        for number in lost:
            del self.owners[number]
        numbers[:] = [number for number in numbers if number in self.owners]

    def report_ambiguous(
        self, key: str, files: Sequence[AudioFile], origins: list[str], reason: str, taken: str | None = None, clips: int = 1
    ) -> None:
        """Report an ambiguity and the file `taken`, in one entry per key; without one, `clips` count as listed and not found."""
        paths = [file.path for file in files]
        entry = {"id": key, "paths": paths, "origins": [], "reason": reason, "taken": taken}
        if (reported := self.reported.setdefault((key, reason, *paths), entry)) is entry:
            self.tables.ambiguous.append(entry)
            if taken is None:
                self.tables.counts["undecided_clips"] += clips
        reported["origins"].extend(origins)


def claim_all(
    inventory: Inventory, rows: list[ManifestRow], state: JoinState, parts: Mapping[str, str], index: FileIndex | None = None
) -> None:
    """Find the file of every row. The file index, the largest structure of a join, is freed on return, if it is not given."""
    index = index or FileIndex(inventory)
    numbered = _numbered(inventory, index, rows, state)
    local = _local_manifests(index, rows)
    taken: dict[bytes, set[bytes]] = defaultdict(set)  # name of a local manifest → its folders
    for source in local:
        taken[os.path.basename(source)].add(composed_path(os.path.dirname(source)))
    sources = {row.source for row in rows if os.path.basename(row.source) in taken}
    state.homes.update((source, os.path.dirname(source)) for source in sources)
    for number, row in enumerate(rows):
        named = sorted(numbered.get((row.key, row.start_time), ()), key=lambda file: file.raw_path)
        if named and not index.resolve_clip(row.key, row.start_time).files:
            state.by_number.append(row.origin)
        resolution = _in_part(row, parts, _resolve(index, row, named))
        if resolution.match in ("name", "stem") and row.may_be_anywhere:
            if row.source in local:
                resolution = _in_own_folder(index, row, resolution)
            elif folders := taken.get(row.source.rpartition(b"/")[2]):
                below = tuple(folder + b"/" for folder in folders if folder)
                outside = (file for file in resolution.files if not composed_path(file.raw_path).startswith(below))
                resolution = replace(resolution, files=tuple(outside))
        _claim(number, row, resolution, state)
    files = {file.raw_path: file for file in inventory.audio}
    for raw_path, numbers in state.claims.items():
        _settle_claims(files[raw_path], numbers, rows, state)
    for number, file in state.strays.items():
        if number in state.owners:
            state.report_ambiguous(rows[number].key, [file], [rows[number].origin], "found in another folder", file.path)


def _numbered(
    inventory: Inventory, index: FileIndex, rows: list[ManifestRow], state: JoinState
) -> dict[tuple[str, float | None], dict[AudioFile, None]]:
    """Files named after a row's `audiocap_id`, by the row's clip.

    If some rows find files by YouTube id, only folders where half of the numbers are rows' ids: Freesound's overlap with them.
    """
    files = {row.number: index.resolve(row.number).files for row in rows if row.number}
    matched = {file for some in files.values() for file in some}
    votes: dict[bytes, int] = defaultdict(int)  # by folder
    if matched and any(row.number and index.resolve_clip(row.key, row.start_time).files for row in rows):
        for file in inventory.audio:
            if file.stem.isdigit():
                votes[os.path.dirname(file.raw_path)] += 1 if file in matched else -1
    unrelated = {file for file in matched if votes[os.path.dirname(file.raw_path)] < 0}
    what = "files are named like a row's `audiocap_id` but not used, since most numbers in their folder belong to no row"
    state.tables.remark(sorted(file.path for file in unrelated), what)
    by_clip: dict[tuple[str, float | None], dict[AudioFile, None]] = defaultdict(dict)
    for row in rows:
        for file in files.get(row.number, ()):
            if file not in unrelated:
                by_clip[row.key, row.start_time][file] = None
    return by_clip


def _resolve(index: FileIndex, row: ManifestRow, numbered: list[AudioFile]) -> Resolution:
    """`numbered`: files named after the `audiocap_id` of this row or of another row of the same clip."""
    if row.start_time is None:
        return index.resolve(row.key, b"" if row.at_root else row.source.rpartition(b"/")[0], row.of_video)
    resolution = index.resolve_clip(row.key, row.start_time)
    if numbered:
        return Resolution(tuple(dict.fromkeys((*resolution.files, *numbered))), "stem", same_clip=True)
    return resolution if resolution.files else index.resolve_inside(row.key, row.start_time)


def _local_manifests(index: FileIndex, rows: list[ManifestRow]) -> set[bytes]:
    """Manifests with paths relative to their folder: at least half of the rows whose file exists find it that way."""
    votes: dict[bytes, int] = defaultdict(int)
    local: set[bytes] = set()
    for row in rows:
        if row.may_be_anywhere:
            if index.at(row.key, row.source.rpartition(b"/")[0]):
                votes[row.source] += 1
                local.add(row.source)
            else:
                votes[row.source] -= index.has_name_of(row.key)
    return {source for source in local if votes[source] >= 0}


def _in_own_folder(index: FileIndex, row: ManifestRow, resolution: Resolution) -> Resolution:
    """Of files matched by name only, those at the row's path, else those below its manifest's folder."""
    folder = composed_path(row.source.rpartition(b"/")[0])
    if there := index.at(row.key, folder):
        return replace(resolution, files=tuple(there), elsewhere=False)
    below = (file for file in resolution.files if not folder or composed_path(file.raw_path).startswith(folder + b"/"))
    return replace(resolution, files=tuple(below))


def _in_part(row: ManifestRow, parts: Mapping[str, str], resolution: Resolution) -> Resolution:
    """Of several files, those in the folder of the row's part; none in another part's, unless named by a YouTube id."""
    if not row.part or not resolution.files:
        return resolution
    above = composed_path(row.source).split(b"/")[:-1]
    places = {
        file: file.folders[len(above) :] if file.folders[: len(above)] == above else file.folders for file in resolution.files
    }
    synonyms = [part for part, meaning in parts.items() if meaning == parts[row.part]]
    others = [part for part in parts if part not in synonyms]
    files = (
        [file for file, folders in places.items() if _name_any(folders, [row.part])]
        or [file for file, folders in places.items() if _name_any(folders, synonyms)]
        or [file for file, folders in places.items() if row.clip or not _name_any(folders, others)]
    )
    return replace(resolution, files=tuple(files))


def _name_any(folders: Iterable[bytes], parts: Iterable[str]) -> bool:
    """Whether a part is a word in names of folders; one of eight or more letters may be spread over words (`Free_Sound`)."""
    names = [re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", folder.decode("utf-8", "replace")) for folder in folders]
    words = {word.lower() for words in names for word in words}
    text = "/".join("".join(words).lower() for words in names)
    return any(part in words or (len(part) > 7 and part in text) for part in parts)


def _claim(number: int, row: ManifestRow, resolution: Resolution, state: JoinState) -> None:
    if not resolution.files:
        state.absent.append(number)
        return
    first, *others = resolution.files
    if others and not resolution.same_clip:
        state.report_ambiguous(row.key, resolution.files, [row.origin], "several files have this name")
        return
    if resolution.elsewhere:
        state.strays[number] = first
    if resolution.match == "inside":
        state.inside.append(row.origin)
    state.owners[number] = first.raw_path
    state.claims[first.raw_path].append(number)
    if clip := row.clip:
        state.twins.update((file.raw_path, clip) for file in others)


def _settle_claims(file: AudioFile, numbers: list[int], rows: list[ManifestRow], state: JoinState) -> None:
    """If rows of different recordings claim one file, it goes to those whose folders agree with it, if they mean one recording."""
    clips = {number: clip[0] for number in numbers if (clip := rows[number].clip)}
    if len(set(clips.values())) > 1:  # matched by an `audiocap_id` of several videos
        return _give_up(file, list(clips), numbers, rows, state)
    if len({rows[number].part for number in numbers} - {""}) > 1:  # each part has a folder, and the file is in neither
        return _give_up(file, list(numbers), numbers, rows, state)
    named = {number: folders_of_key(rows[number].key) for number in numbers if number not in clips}
    if _are_one(named.values()):
        return
    agreeing = {number: path for number, path in named.items() if compatible(file, path[:-1])}
    if not agreeing or not _are_one(agreeing.values()):  # rows that share most folders, and suffixes of their paths
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


def _give_up(file: AudioFile, lost: list[int], numbers: list[int], rows: list[ManifestRow], state: JoinState) -> None:
    """Take the file away from rows of different recordings, and report it as ambiguous."""
    origins = [rows[number].origin for number in lost]
    clips = len({(rows[number].key, rows[number].start_time) for number in lost})
    state.report_ambiguous(rows[lost[0]].key, [file], origins, "rows with different names match only this file", clips=clips)
    state.disown(lost, numbers)


def _are_one(paths: Iterable[list[str]]) -> bool:
    """Whether all paths are suffixes of the longest."""
    ordered = sorted(paths, key=len)
    return all(ordered[-1][-len(path) :] == path for path in ordered)
