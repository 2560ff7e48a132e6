"""A union of corpora as one corpus: the tables of its parts, each path prefixed with the name of its part."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundmill.corpora.inventory import Inventory
from soundmill.corpora.tables import CorpusTables, id_of_path
from soundmill.manifest import VIDEO_ID

NAME = "union"


@dataclass(frozen=True)
class UnionPart:
    """One corpus of a union, read by its adapter. `name` is the first component of its paths; see sources.PART_NAME."""

    name: str
    weight: float  # expected number of draws of each of its clips per epoch of training
    inventory: Inventory
    tables: CorpusTables


def unite(parts: Iterable[UnionPart]) -> tuple[Inventory, CorpusTables]:
    """The union of corpora as one corpus; their order changes nothing. A part without a name is the whole corpus.

    Recordings keep their shards, ids and groups. An id that an earlier part (by name) has is a collision: the later recording gets
    a hash of its path; two files of one video still share a split, since they keep their group. Captions describe recordings of
    their own part only. A part's folds become splits (the highest is test), so that they can be combined with other parts' splits.
    """
    parts = list(parts)
    if not parts[0].name:
        return parts[0].inventory, parts[0].tables
    inventory, tables = Inventory(Path()), CorpusTables()
    for part in sorted(parts, key=lambda part: part.name):
        ids = _add_recordings(part, tables)
        _add_captions(part, ids, tables)
        tables.named |= {ids[name] for name in part.tables.named}
        _add_reports(part, inventory, tables)
    tables.settle(NAME)
    return inventory, tables


def _add_recordings(part: UnionPart, tables: CorpusTables) -> dict[str, str]:
    """Add a part's recordings; returns id in the part → id in the union."""
    splits = _splits(part.tables.recordings)
    starts = {row["recording_id"]: row["start_time"] for row in tables.recordings}
    ids = {}
    for row in part.tables.recordings:
        own_id, path, raw_path = row["recording_id"], f"{part.name}/{row['path']}", part.name.encode() + b"/" + row["raw_path"]
        # Files with one path in two corpora have the same hash but are different recordings.
        recording_id = None if own_id == id_of_path(row["raw_path"]) else own_id
        if VIDEO_ID.fullmatch(own_id) and starts.get(own_id, row["start_time"]) != row["start_time"]:
            recording_id = f"{own_id}_{row['start_time']:g}"  # another part of the video, as within one corpus
        ids[own_id] = tables.take_id(recording_id, raw_path, path)
        tables.recordings.append(
            {
                **row,
                "recording_id": ids[own_id],
                "path": path,
                "raw_path": raw_path,
                "split": splits.get(own_id),
                "corpus": part.name,
                "weight": row["weight"] * part.weight,
            }
        )
    return ids


def _splits(recordings: list[dict[str, Any]]) -> dict[str, str]:
    """Given splits by recording id. Without any, or if all are train, the highest of several folds is test and the others train, as
    in splits.assign."""
    given = {row["recording_id"]: row["split"] for row in recordings if row["split"]}
    folds = {row["recording_id"]: row["fold"] for row in recordings if row["fold"] is not None}
    if set(given.values()) - {"train"} or len(set(folds.values())) < 2:
        return given
    last = max(folds.values())
    return given | {recording_id: "test" if fold == last else "train" for recording_id, fold in folds.items()}


def _add_captions(part: UnionPart, ids: dict[str, str], tables: CorpusTables) -> None:
    for row in part.tables.captions:
        # Ids of missing recordings are prefixed, so that they do not match another part's: no id has a slash.
        owner = ids.get(row["recording_id"]) or f"{part.name}/{row['recording_id']}"
        tables.captions.append({**row, "recording_id": owner, "origin": f"{part.name}/{row['origin']}"})


def _add_reports(part: UnionPart, inventory: Inventory, tables: CorpusTables) -> None:
    tables.rejected.extend(_below(part.name, row) for row in part.tables.rejected)
    inventory.rejected.extend(_below(part.name, row) for row in part.inventory.rejected)
    for report in ("missing", "collisions", "ambiguous"):
        getattr(tables, report).extend(_below(part.name, entry) for entry in getattr(part.tables, report))
    tables.remarks.extend(f"{part.name}: {remark}" for remark in part.tables.remarks)
    for key, count in part.tables.counts.items():
        tables.count(key, count)
    for kind, count in part.inventory.ignored.items():
        inventory.ignored[kind] = inventory.ignored.get(kind, 0) + count
    inventory.num_files += part.inventory.num_files


def _below(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a report, its paths and origins prefixed with the name of the part."""
    entry = dict(entry)
    for key in ("path", "taken"):
        if isinstance(entry.get(key), str) and (key == "path" or entry[key] in entry.get("paths", ())):
            entry[key] = f"{name}/{entry[key]}"
    for key in ("paths", "origins"):
        if key in entry:
            entry[key] = [f"{name}/{value}" for value in entry[key]]
    return entry
