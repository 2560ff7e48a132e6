"""Joining the rows of manifests with files: the main part of most adapters."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from soundmill.corpora.claims import claim_all
from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.resolver import clip_of_file, key_problem, youtube_clip
from soundmill.corpora.rows import MAX_CAPTION, JoinState, ManifestRow
from soundmill.corpora.splits import PROTECTED
from soundmill.corpora.tables import MISSING, CorpusTables
from soundmill.manifest import escape_path


def join(
    inventory: Inventory,
    rows: Iterable[ManifestRow],
    num_shards: int,
    tables: CorpusTables | None = None,
    *,
    unique: bool = False,
    parts: Mapping[str, str] | None = None,
) -> CorpusTables:
    """Recordings and captions of a corpus, independent of the order of rows and files.

    Rows of one file are combined. A row without a file is `missing`. A row that matches several files, and rows of different
    recordings that match only one file, are `ambiguous` and describe nothing. Several files of one YouTube clip collide: the one
    with the start in its name, else the first by path, is described; the others are recordings without captions. `unique`: the
    format has one row per recording, so a second row is a collision (both describe it). `parts`: words in folder names and
    their meanings; words with one meaning are one part.
    """
    tables = tables or CorpusTables()
    kept = [row for row in rows if _is_usable(row, tables)]
    state = JoinState(tables)
    _mark_videos(kept)
    for row in kept:
        if (clip := row.clip) and clip[1] is not None:
            state.starts[clip[0]].add(clip[1])
    claim_all(inventory, kept, state, {row.part: row.part for row in kept if row.part} | dict(parts or {}))
    _report_repeated(_drop_repeated(kept, state), unique, tables)
    ids = _add_recordings(inventory, kept, num_shards, state)
    absent = [kept[number] for number in sorted(state.absent)]
    kept.reverse()
    for number in range(len(kept)):  # frees each row once its captions are added
        _add_captions(kept.pop(), ids.get(state.owners.get(number, b"")), state)
    _report_missing(absent, state)
    _remark(state)
    return tables


def _mark_videos(rows: list[ManifestRow]) -> None:
    """If most names in a manifest are certainly YouTube ids, its other names of eleven characters are too."""
    votes: dict[bytes, int] = defaultdict(int)
    for row in rows:
        if row.start_time is None:
            votes[row.source] += 1 if youtube_clip(row.key) else -1
    for row in rows:
        row.of_video |= votes[row.source] > 0


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

    repeated: dict[int, None] = {}
    for number in sorted(places):
        row = rows[number]
        captions = tuple(caption for caption in row.captions if is_new(number, caption))
        if len(captions) < len(row.captions):
            row.captions = captions
            repeated[number] = None
    if repeated:
        where = rows[next(iter(repeated))].origin
        state.tables.remarks.append(
            f"{len(repeated)} rows repeat another manifest's captions of the same recording (first: {where}); they count once"
        )
    dropped = {number for number in repeated if not rows[number].captions}
    state.absent = [number for number in state.absent if number not in dropped]
    return [row for number, row in enumerate(rows) if number not in dropped]


def _remark(state: JoinState) -> None:
    """Report assumptions about starts and names."""
    if state.whole:
        state.tables.remarks.append(
            f"{len(state.whole)} files are named by a YouTube id without a start (first: {state.whole[0]}); each is assumed to "
            "start at the second given by its rows. Rename files of whole videos to `{id}_0`"
        )
    if state.by_number:
        state.tables.remarks.append(
            f"{len(state.by_number)} rows matched a file named after their `audiocap_id` (first: {state.by_number[0]})"
        )
    if state.inside:
        state.tables.remarks.append(
            f"{len(state.inside)} rows start inside a longer file (first: {state.inside[0]}); each "
            "describes a clip that starts within 0.5 s of it or contains its window"
        )


def _is_usable(row: ManifestRow, tables: CorpusTables) -> bool:
    at = f"line {row.at}" if isinstance(row.at, int) else row.at
    row.captions = tuple(tables.said(row.captions, row.origin))
    row.labels = tables.said(row.labels, row.origin, labels=True)
    row.group = None if row.group and row.group.strip().lower() in MISSING else row.group
    if problem := key_problem(row.key):
        tables.reject(row.source, "bad id", f"{at}: {row.key!r:.80}: {problem}")
    elif any(len(caption) > MAX_CAPTION for caption in row.captions):
        tables.reject(row.source, "caption too long", f"{at}: {row.key:.80}: over {MAX_CAPTION} characters")
    elif not row.captions and not row.labels and not row.bare:
        tables.reject(row.source, "empty caption", f"{at}: {row.key:.80}")
    else:
        return True
    return False


def _add_recordings(inventory: Inventory, rows: list[ManifestRow], num_shards: int, state: JoinState) -> dict[bytes, str]:
    """Add every file; returns recording ids by raw path."""
    tables = state.tables
    windows = {
        file.raw_path: _window(file, [rows[n] for n in state.claims.get(file.raw_path, [])], state) for file in inventory.audio
    }
    begins: dict[str, float] = {}
    in_pieces = {video for video, start in filter(None, windows.values()) if begins.setdefault(video, start) != start}

    def clip_id(file: AudioFile) -> str | None:
        if window := windows[file.raw_path]:
            video, start = window
            return f"{video}_{start:g}" if video in in_pieces else video
        return None

    file_of: dict[str, AudioFile] = {}  # by id: the described file, else the first by path
    collisions: dict[str, list[AudioFile]] = {}
    for file in sorted(inventory.audio, key=lambda file: not state.claims.get(file.raw_path)):
        if (recording_id := clip_id(file)) and file_of.setdefault(recording_id, file) is not file:
            collisions.setdefault(recording_id, [file_of[recording_id]]).append(file)
    for recording_id in filter(collisions.__contains__, file_of):
        tables.collisions.append({"id": recording_id, "paths": [file.path for file in collisions[recording_id]]})

    ids = {}
    for file in inventory.audio:
        own = [rows[number] for number in state.claims.get(file.raw_path, [])]
        recording_id, window = clip_id(file), windows[file.raw_path]
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
            recording_id=recording_id if recording_id and file_of[recording_id] is file else None,
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
        if own is None or not (youtube_clip(os.fsdecode(file.name)) or own[0] in state.starts):
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
        tables.count("captions_with_audio" if recording_id else "captions_without_audio", len(row.captions))


def _report_repeated(rows: list[ManifestRow], unique: bool, tables: CorpusTables) -> None:
    """Report repeated ids as collisions: `audiocap_id`s, and keys of formats with one row per recording."""
    origins: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for row in rows:
        if row.number:
            origins["", row.number, None].append(row.origin)
        if unique:
            origins[row.part, row.key, row.start_time].append(row.origin)
    tables.collisions.extend({"id": key, "origins": several} for (_, key, _), several in origins.items() if len(several) > 1)


def _report_missing(rows: list[ManifestRow], state: JoinState) -> None:
    """Add one entry per missing clip; captions, origins and `audiocap_ids` are lists of equal length."""
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
