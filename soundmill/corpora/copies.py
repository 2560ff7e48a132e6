"""Groups of clips that are copies of one sound, and which of them to leave out if they are in several splits."""

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from soundmill import manifest, shards
from soundmill.corpora import splits


def row_pairs(duplicates: Path, clips: pa.Table) -> list[tuple[int, int]]:
    """Pairs of rows of `clips` (`clip_id`, `recording_id`) that are the same sound, of two recordings each.

    They are a pair in manifest.DUPLICATES, or connected by pairs with clips that are not in the table.
    """
    row_of = {clip_id: row for row, clip_id in enumerate(clips["clip_id"].to_pylist())}
    recordings = clips["recording_id"].to_pylist()
    table = shards.read_table(duplicates, manifest.DUPLICATES, ["a", "b"])
    pairs = []
    near: dict[str, list[str]] = defaultdict(list)  # neighbours of clips that are not in the table
    for a, b in zip(table["a"].to_pylist(), table["b"].to_pylist(), strict=True):
        if {a, b} <= row_of.keys():
            pairs.append((row_of[a], row_of[b]))
        for one, other in ((a, b), (b, a)):
            if one not in row_of:
                near[one].append(other)
    for connected in splits.groups(near):
        kept = sorted(row_of[name] for name in connected & row_of.keys())
        own = [row for row in kept if recordings[row] == recordings[kept[0]]]
        others = [row for row in kept if recordings[row] != recordings[kept[0]]]
        pairs.extend(itertools.product(kept[:1], others))
        pairs.extend(itertools.product(own[1:], others[:1]))
    return [(a, b) for a, b in dict.fromkeys(pairs) if recordings[a] != recordings[b]]


def of_recordings(duplicates: Path, clips: pa.Table, owners: set[str]) -> dict[str, tuple[str, str]]:
    """Clips (`clip_id`, `recording_id`) that are copies of those of `owners`, or connected with them by pairs of duplicates.

    Clip → the clip of an owner with its sound, and that owner.
    """
    table = shards.read_table(duplicates, manifest.DUPLICATES, ["a", "b"])
    near = splits.near(zip(table["a"].to_pylist(), table["b"].to_pylist(), strict=True))
    owner_of = dict(zip(clips["clip_id"].to_pylist(), clips["recording_id"].to_pylist(), strict=True))
    origin_of: dict[str, tuple[str, str]] = {}
    for connected in splits.groups(near):
        if first := min((clip_id for clip_id in connected if owner_of.get(clip_id) in owners), default=None):
            origin_of |= dict.fromkeys(connected, (first, owner_of[first]))
    return {clip_id: origin for clip_id, origin in origin_of.items() if owner_of.get(clip_id) not in owners}


def to_leave_out(
    recordings: pa.Table, clips: pa.Table, pairs: list[tuple[int, int]], decided_by: splits.Source
) -> tuple[dict[int, int], list[str]]:
    """Rows of `clips` to drop → the row that stays in another split with their sound or video; and the split of each row.

    `clips` has `recording_id` and `split`; `recordings` are rows of manifest.RECORDINGS (`recording_id`, `split`, `group`).
    """
    split = clips["split"].to_pylist()
    stays_of = across_splits(split, pairs)
    if decided_by == "given":
        # Pairs by sound take precedence: they are the better reason.
        stays_of = _across_given_splits(recordings.to_pylist(), clips["recording_id"].to_pylist(), split) | stays_of
        for copy, stays in stays_of.items():  # a row that stays by sound may be dropped by video
            while stays in stays_of:
                stays = stays_of[stays]
            stays_of[copy] = stays
    return stays_of, split


def across_splits(split: list[str], pairs: list[tuple[int, int]]) -> dict[int, int]:
    """Rows to drop → the row that stays, for connected rows in several splits.

    Not every two of many copies are a pair, so a dropped row need not be paired with the one that stays.
    """
    stays_of: dict[int, int] = {}
    for connected in splits.groups(splits.near(pairs)):
        stays = min(connected, key=lambda row: (splits.PROTECTED.index(split[row]), row))
        stays_of.update((row, stays) for row in connected if split[row] != split[stays])
    return stays_of


def _across_given_splits(recordings: list[dict[str, Any]], owners: list[str], split: list[str]) -> dict[int, int]:
    """`across_splits` for recordings of one YouTube video that the corpus itself puts into several splits.

    The `split` of their clips, so far that of the video, becomes that of the recording.
    """
    videos = manifest.youtube_videos(recordings)
    given = {row["recording_id"]: (row["group"], row["split"]) for row in recordings if row["split"] and row["group"] in videos}
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, owner in enumerate(owners):
        if owner in given:
            video, split[row] = given[owner]
            rows_of[video].append(row)
    return across_splits(split, [pair for rows in rows_of.values() for pair in itertools.pairwise(rows)])
