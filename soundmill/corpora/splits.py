"""Assigning recordings to train, valid and test: by given split, fold or a stable hash; and which copies of one sound to leave
out if they are in several splits."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from soundmill import hashing, manifest, shards

PROTECTED = ("test", "valid", "train")  # a source with several splits gets the first of these that occurs

Source = Literal["given", "folds", "hash"]
NAMED = 12  # labels, in a warning


@dataclass(slots=True)
class _Unit:
    """Recordings that must share a split: parts of one video or original."""

    key: str
    stratum: str = ""
    given: str | None = None
    fold: int | None = None
    order: str = ""
    size: int = 0  # recordings
    described: bool = False


def assign(
    recordings: Iterable[dict[str, Any]],
    labels: dict[str, str],
    described: set[str],
    *,
    valid_fraction: float,
    test_fraction: float,
    seed: int,
) -> tuple[dict[str, str], Source]:
    """Split of every recording (rows of manifest.RECORDINGS) and what decided it; docs/corpora.md says how.

    Test, then valid, if empty, get shares of the training recordings, which count recordings, are spread over their main label
    (`labels`, by recording id), and are taken from `described` recordings, if any, since others are useful only for training; if
    only one source is described, test is taken from all. Train is never empty: splits or folds without it are ignored.
    """
    units: dict[str, _Unit] = {}
    key_of: dict[str, str] = {}
    for row in recordings:
        key = key_of[row["recording_id"]] = row["group"] or row["recording_id"]
        if (unit := units.get(key)) is None:
            unit = units[key] = _Unit(key, order=hashing.digest(seed, key))
        unit.size += 1
        unit.described |= row["recording_id"] in described
        unit.stratum = unit.stratum or labels.get(row["recording_id"], "")
        if row["split"]:
            unit.given = min(unit.given or row["split"], row["split"], key=PROTECTED.index)
        if row["fold"] is not None:
            unit.fold = max(unit.fold or 0, row["fold"])

    everything = sorted(units.values(), key=lambda unit: unit.order)
    folds = {unit.fold for unit in everything if unit.fold is not None}
    given = {unit.key: unit.given for unit in everything if unit.given}
    by_fold = {unit.key: "test" for unit in everything if len(folds) > 1 and unit.fold == max(folds)}
    splits: dict[str, str] = {}
    source: Source = "hash"
    choices: list[tuple[Source, dict[str, str]]] = [("given", given), ("folds", by_fold)]
    if set(given.values()) == {"train"} and by_fold:
        choices.reverse()  # all train means no splits; folds are more useful
    for name, choice in choices:
        if choice and (len(choice) < len(everything) or "train" in choice.values()):
            splits, source = choice, name
            break
    for split, fraction in (("test", test_fraction), ("valid", valid_fraction)):
        if split not in splits.values():
            rest = [unit for unit in everything if splits.get(unit.key, "train") == "train"]
            useful = [unit for unit in rest if unit.described]
            if len(useful) < (2 if split == "test" else 1):
                useful = rest
            more = split == "test" and valid_fraction > 0 and "valid" not in splits.values()
            splits.update(dict.fromkeys(_share(useful, fraction, keep=2 if more else 1), split))
    return {recording_id: splits.get(key, "train") for recording_id, key in key_of.items()}, source


def describe(
    recordings: Iterable[tuple[str, Sequence[str]]], captions: Iterable[tuple[str, Sequence[str]]]
) -> tuple[dict[str, list[str]], set[str]]:
    """Labels by recording (id, labels), those of its captions first, and the recordings that have a caption or a label."""
    labels_of: dict[str, list[str]] = defaultdict(list)
    for name, labels in captions:
        labels_of[name] += labels
    described = set(labels_of)
    for name, labels in recordings:
        labels_of[name] += labels
    return dict(labels_of), described | {name for name, labels in labels_of.items() if labels}


def warnings(recordings: Iterable[tuple[str, Sequence[str]]], test_fraction: float, sources: int) -> list[str]:
    """Problems of these splits and labels of recordings, each with its remedy; `sources`: groups that share a split."""
    of_split: dict[str, set[str]] = defaultdict(set)
    for split, labels in recordings:
        of_split[split].update(labels)
    lines = []
    if "test" not in of_split:
        if test_fraction == 0:
            remedy = "raise splits.test_fraction"
        elif sources < 2:
            remedy = "all recordings have one source or are copies of one sound, so they share a split: add others"
        else:
            remedy = "raise splits.test_fraction, or add recordings"
        instead = "validation clips, or those that were trained on"
        lines.append(f"no clip is in test, so `generate` and `evaluate` take {instead}: {remedy}")
    every = sorted(set().union(*of_split.values()))
    for split in ("train", "test"):
        if lacking := [label for label in every if label not in of_split[split]] if split in of_split else []:
            named = ", ".join(lacking[:NAMED]) + (" …" if len(lacking) > NAMED else "")
            what = "they are not learned" if split == "train" else "they are not scored"
            lines.append(
                f"{len(lacking)} of {len(every)} labels have no clip in {split}: {named}; add recordings of them, or {what}"
            )
    return lines


def extend(recordings: Iterable[dict[str, Any]], split_of: dict[str, str], decided_by: Source) -> dict[str, str]:
    """Split of every recording: that in `split_of`, else its group's, else its own if splits were `decided_by` that, else train."""
    rows = list(recordings)
    assigned = [row for row in rows if row["recording_id"] in split_of]
    of_group = {row["group"]: split_of[row["recording_id"]] for row in assigned if row["group"]}
    test_fold = max(row["fold"] for row in assigned if row["fold"] is not None) if decided_by == "folds" else None

    def rest(row: dict[str, Any]) -> str:
        own = row["split"] if decided_by == "given" else "test" if row["fold"] == test_fold else None
        return of_group.get(row["group"]) or own or "train"

    return {row["recording_id"]: split_of.get(row["recording_id"]) or rest(row) for row in rows}


def join(recordings: Iterable[dict[str, Any]], pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """The rows with a `group` that is shared by all recordings connected by `pairs` of ids or by their groups.

    Pairs whose given splits or folds differ are not joined: a duplicate in test would take the other one with it.
    """
    rows = list(recordings)
    key_of = {row["recording_id"]: row["group"] or row["recording_id"] for row in rows}
    given, _ = assign(rows, {}, set(), valid_fraction=0, test_fraction=0, seed=0)
    joined = near((key_of[a], key_of[b]) for a, b in pairs if given[a] == given[b])
    least = {key: min(group) for group in groups(joined) for key in group}
    return [{**row, "group": least.get(key, key)} for row, key in zip(rows, key_of.values(), strict=True)]


def near(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    """The neighbours of each."""
    neighbours: dict[Any, list[Any]] = defaultdict(list)
    for a, b in pairs:
        neighbours[a].append(b)
        neighbours[b].append(a)
    return neighbours


def groups(near: Mapping[Any, list[Any]]) -> Iterator[set[Any]]:
    """Each of `near` with everything connected with it, once."""
    seen: set[Any] = set()
    for start in sorted(near):
        if start not in seen:
            reached, todo = {start}, [start]
            while todo:
                new = [one for one in near.get(todo.pop(), ()) if one not in reached]
                reached.update(new)
                todo.extend(new)
            seen |= reached
            yield reached


def _share(units: list[_Unit], fraction: float, keep: int) -> list[str]:
    """Keys of units with a share of the recordings, at least one if the fraction is not 0, spread evenly over strata.

    `units` are sorted by hash. A stratum loses its only unit last, so that every class stays in training. At least one unit is
    left, and `keep` if there are more.
    """
    most = len(units) - min(keep, max(1, len(units) - 1))
    total = sum(unit.size for unit in units)
    target = max(1, math.floor(total * fraction + 0.5)) if fraction > 0 and len(units) > 1 else 0
    strata: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        strata[unit.stratum].append(unit)
    taken: dict[str, _Unit] = {}
    seen = 0
    for _, members in sorted(strata.items()):
        before = math.floor(seen * target / total + 0.5)
        seen += sum(unit.size for unit in members)
        due = math.floor(seen * target / total + 0.5) - before
        _take(members, due, min(len(members) - 1, most - len(taken)), taken)
    left = {name: sum(unit.key not in taken for unit in members) for name, members in strata.items()}
    missing = target - sum(unit.size for unit in taken.values())
    for at_least in (2, 1):  # units left in a stratum before it gives one more
        for unit in units:
            lacking = missing if len(taken) < most else 0
            if lacking < 1:
                return sorted(taken)
            fits = unit.size <= lacking or (not taken and 2 * unit.size <= total)
            if unit.key not in taken and left[unit.stratum] >= at_least and fits:
                taken[unit.key] = unit
                missing -= unit.size
                left[unit.stratum] -= 1
    if target and not taken:  # each candidate has more than half of the recordings
        smallest = min(units, key=lambda unit: (left[unit.stratum] < 2, unit.size, unit.order))
        taken[smallest.key] = smallest
    return sorted(taken)


def _take(members: list[_Unit], due: int, most: int, taken: dict[str, _Unit]) -> None:
    """Add at most `most` units of one stratum with `due` recordings in all, or the smallest if each has more, to `taken`."""
    fitting = []
    room = due
    for unit in members:
        if unit.size <= room and len(fitting) < most:
            fitting.append(unit)
            room -= unit.size
    if not fitting and due > 0 and most > 0:
        fitting = [min(members, key=lambda unit: (unit.size, unit.order))]
    taken.update((unit.key, unit) for unit in fitting)


def row_pairs(duplicates: Path, clips: pa.Table) -> list[tuple[int, int]]:
    """Pairs of rows of `clips` of two recordings that are the same sound, also by pairs with clips that are not in the table."""
    row_of = {clip_id: row for row, clip_id in enumerate(clips["clip_id"].to_pylist())}
    recordings = clips["recording_id"].to_pylist()
    table = shards.read_table(duplicates, manifest.DUPLICATES, ["a", "b"])
    named = list(zip(table["a"].to_pylist(), table["b"].to_pylist(), strict=True))
    pairs = [(row_of[a], row_of[b]) for a, b in named if {a, b} <= row_of.keys()]
    absent = {name: neighbours for name, neighbours in near(named).items() if name not in row_of}
    for connected in groups(absent):
        kept = sorted(row_of[name] for name in connected & row_of.keys())
        own = [row for row in kept if recordings[row] == recordings[kept[0]]]
        others = [row for row in kept if recordings[row] != recordings[kept[0]]]
        pairs.extend(itertools.product(kept[:1], others))
        pairs.extend(itertools.product(own[1:], others[:1]))
    return [(a, b) for a, b in dict.fromkeys(pairs) if recordings[a] != recordings[b]]


def of_recordings(duplicates: Path, clips: pa.Table, owners: set[str]) -> dict[str, tuple[str, str]]:
    """Clips that are, also by way of other duplicates, copies of clips of `owners` → the clip with their sound, its owner."""
    table = shards.read_table(duplicates, manifest.DUPLICATES, ["a", "b"])
    owner_of = dict(zip(clips["clip_id"].to_pylist(), clips["recording_id"].to_pylist(), strict=True))
    origin_of: dict[str, tuple[str, str]] = {}
    for connected in groups(near(zip(table["a"].to_pylist(), table["b"].to_pylist(), strict=True))):
        if first := min((clip_id for clip_id in connected if owner_of.get(clip_id) in owners), default=None):
            origin_of |= dict.fromkeys(connected, (first, owner_of[first]))
    return {clip_id: origin for clip_id, origin in origin_of.items() if owner_of.get(clip_id) not in owners}


def to_leave_out(
    recordings: pa.Table, clips: pa.Table, pairs: list[tuple[int, int]], decided_by: Source
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
    """Rows to drop → the row that stays, for rows in several splits that `pairs` connect, also if these two are no pair."""
    stays_of: dict[int, int] = {}
    for connected in groups(near(pairs)):
        stays = min(connected, key=lambda row: (PROTECTED.index(split[row]), row))
        stays_of.update((row, stays) for row in connected if split[row] != split[stays])
    return stays_of


def _across_given_splits(recordings: list[dict[str, Any]], owners: list[str], split: list[str]) -> dict[int, int]:
    """`across_splits` of recordings of one video with several given splits, to which the `split` of their clips is set."""
    videos = manifest.youtube_videos(recordings)
    given = {row["recording_id"]: (row["group"], row["split"]) for row in recordings if row["split"] and row["group"] in videos}
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, owner in enumerate(owners):
        if owner in given:
            video, split[row] = given[owner]
            rows_of[video].append(row)
    return across_splits(split, [pair for rows in rows_of.values() for pair in itertools.pairwise(rows)])
