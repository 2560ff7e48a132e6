"""A folder of sounds as a set to be scored: every file counts, by an id that is its path without suffix, or the run fails."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from soundmill import manifest
from soundmill.corpora import inventory
from soundmill.errors import UserError
from soundmill.evaluation import features
from soundmill.params import parse_json

LISTED = 20  # ids that a message names


@dataclass(frozen=True)
class Folder:
    """The sounds below one folder, in the order of their ids, and what lay beside them."""

    root: Path
    sounds: tuple[features.Sound, ...]
    remarks: tuple[str, ...]  # what was passed over, for people
    refused: tuple[Mapping[str, str], ...] = ()  # what may be a sound and cannot be read, as features.refuse takes it

    @property
    def ids(self) -> list[str]:
        return [sound.clip_id for sound in self.sounds]


def read(root: Path, workers: int, digests: Path | None = None) -> Folder:
    """Everything below `root` that may be a sound; `digests` as in hashing.file_digests.

    Metadata, dot files and links to folders that were seen already are not scored, and named in `remarks`, as are links out of the
    folder, which are followed. Two files of one id raise UserError naming all such.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give one that holds audio files")
    taken = inventory.take(root, workers, cache=digests, follow_links=True, max_seconds=features.MAX_SECONDS)
    remarks = [*taken.remarks.values()]
    remarks += [f"{row['path']}: {row['reason']}, {row['detail']}" for row in taken.rejected if row["reason"] == "directory link"]
    refused = [{**row, "path": str(root / row["path"])} for row in taken.rejected if row["reason"] != "directory link"]
    if taken.ignored:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(taken.ignored.items()))
        remarks.append(f"no sounds by their names or content, so not scored: {listed}")
    by_id: dict[str, list[features.Sound]] = defaultdict(list)
    for file in taken.audio:
        clip_id = manifest.escape_path(os.path.splitext(file.raw_path)[0])
        path = os.path.join(os.fsencode(root), file.raw_path)
        by_id[clip_id].append(features.file(clip_id, path, file.digest))
    if not by_id and not refused:
        raise UserError(f"{root}: no sounds to score ({'; '.join(remarks) or 'it is empty'})")
    collisions = [sounds for sounds in by_id.values() if len(sounds) > 1]
    if collisions:
        lines = "".join(f"\n  {' and '.join(sound.shown for sound in sounds)}" for sounds in collisions)
        raise UserError(f"{root}: files that differ in their suffix alone have one id; keep one of each:{lines}")
    return Folder(root, tuple(sounds[0] for _, sounds in sorted(by_id.items())), tuple(remarks), tuple(refused))


@dataclass(frozen=True)
class About:
    """A model's own record of its sounds, if it left one."""

    made_by: str = "generate"  # or "reconstruct"
    trained_against: tuple[str, ...] = ()  # embedders whose networks were in its losses
    weights: str = ""  # which of its checkpoint's, in words
    loops: bool = False  # they go on at their beginning


def about(root: Path) -> About:
    """What ABOUT_SOUNDS beside the sounds says; another tool's file of that name says nothing, a broken one is an error."""
    path = root / manifest.ABOUT_SOUNDS
    if not path.is_file():
        return About()
    try:
        record = parse_json(path.read_bytes())
    except ValueError:
        return About()
    if not isinstance(record, dict) or not {"family", "made_by"} <= record.keys():
        return About()
    against = record.get("trained_against", [])
    if not isinstance(against, list) or not all(isinstance(name, str) for name in against):
        raise UserError(f"{path}: trained_against: expected a list of embedders' names")
    return About(str(record["made_by"]), tuple(against), str(record.get("weights", "")), record.get("loops") is True)


def pairs(generated: Folder, reference: Folder) -> bool:
    """Whether the sounds are pairs by id: all of them (True) or none (False); anything between raises UserError naming the rest."""
    first, second = set(generated.ids), set(reference.ids)
    if first == second:
        return True
    if not first & second:
        return False
    problems = [
        f"{len(lonely)} of {len(other)} in {folder.root} have no partner in {where.root}: {named(sorted(lonely))}"
        for lonely, other, folder, where in (
            (second - first, second, reference, generated),
            (first - second, first, generated, reference),
        )
        if lonely
    ]
    raise UserError(
        f"{'; '.join(problems)}. A pair is never skipped: add what is missing, or give --unpaired if equal names mean nothing here"
    )


def read_captions(path: Path, generated: Folder) -> dict[str, str]:
    """The prompt of every sound of a folder by id, from a csv with the columns `id` and `caption`; one without raises UserError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"id", "caption"} <= set(rows.fieldnames or ()):
                raise UserError(f"{path}: expected the columns id and caption, found {', '.join(rows.fieldnames or ['none'])}")
            captions: dict[str, str] = {}
            for row in rows:
                if captions.setdefault(row["id"], row["caption"]) != row["caption"]:
                    raise UserError(f"{path}:{rows.line_num}: {row['id']} has two captions; keep one")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as csv in UTF-8 ({error})") from None
    missing = [clip_id for clip_id in generated.ids if not captions.get(clip_id)]
    if missing:
        raise UserError(f"{path}: no caption for {named(missing)}; a sound is never scored without its prompt")
    return {clip_id: captions[clip_id] for clip_id in generated.ids}


def named(ids: list[str]) -> str:
    more = len(ids) - LISTED
    return ", ".join(ids[:LISTED]) + (f" and {more} more" if more > 0 else "")
