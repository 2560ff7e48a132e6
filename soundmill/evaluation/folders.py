"""A folder of sounds as a set to be scored; a sound's id is its path without suffix."""

import csv
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundmill import manifest
from soundmill.corpora import inventory
from soundmill.errors import UserError, first_of
from soundmill.evaluation import features
from soundmill.params import parse_json


@dataclass(frozen=True)
class Folder:
    """The sounds below one folder, sorted by id, and remarks on the other files."""

    root: Path
    sounds: tuple[features.Sound, ...]
    remarks: tuple[str, ...]  # on files that are not scored
    refused: tuple[Mapping[str, str], ...] = ()  # possible sounds that cannot be read, for features.refuse

    @property
    def ids(self) -> list[str]:
        return [sound.clip_id for sound in self.sounds]


def read(root: Path, workers: int, digests: Path | None = None) -> Folder:
    """All possible sounds below `root`; `digests` is a cache, see hashing.file_digests.

    Metadata, dot files and links to folders already visited are not scored; `remarks` names them, and links out of the folder,
    which are followed. Files with the same id raise a UserError naming them all.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give one with audio files")
    inventoried = inventory.list_files(root, workers, cache=digests, follow_links=True, max_seconds=features.MAX_SECONDS)
    links = [row for row in inventoried.rejected if row["reason"] == "directory link"]
    remarks = [*inventoried.remarks.values(), *(f"{row['path']}: {row['reason']}, {row['detail']}" for row in links)]
    refused = [{**row, "path": str(root / row["path"])} for row in inventoried.rejected if row["reason"] != "directory link"]
    if inventoried.ignored:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(inventoried.ignored.items()))
        remarks.append(f"not audio by name or content, so not scored: {listed}")
    by_id: dict[str, list[features.Sound]] = defaultdict(list)
    for file in inventoried.audio:
        clip_id = manifest.escape_path(os.path.splitext(file.raw_path)[0])
        path = os.path.join(os.fsencode(root), file.raw_path)
        by_id[clip_id].append(features.file(clip_id, path, file.digest))
    if not by_id and not refused:
        raise UserError(f"{root}: no sounds to score ({'; '.join(remarks) or 'it is empty'})")
    collisions = [sounds for sounds in by_id.values() if len(sounds) > 1]
    if collisions:
        lines = "".join(f"\n  {' and '.join(sound.shown for sound in sounds)}" for sounds in collisions)
        raise UserError(f"{root}: files that differ only in their suffix have the same id; keep one of each:{lines}")
    return Folder(root, tuple(sounds[0] for _, sounds in sorted(by_id.items())), tuple(remarks), tuple(refused))


@dataclass(frozen=True)
class About:
    """What the model recorded about its sounds, if anything."""

    made_by: str = "generate"  # or "reconstruct"
    trained_against: tuple[str, ...] = ()  # embedders whose networks were in its losses
    chosen_by: tuple[str, ...] = ()  # embedders whose scores chose its weights
    weights: str = ""  # description of the checkpoint's weights
    loops: bool = False  # the sounds can be looped
    candidates: int | None = None  # sounds made per prompt, of which one was kept

    @property
    def seen(self) -> dict[str, str]:
        """Embedders that the training used, with the reason why they do not rank the model."""
        chosen = {name: f"the model's weights were chosen by {name}" for name in self.chosen_by}
        return chosen | {name: f"the model was trained against {name}" for name in self.trained_against}

    def facts(self) -> dict[str, Any]:
        """Which weights made the sounds, as part of a result; empty if unknown."""
        chosen = {"chosen_by": list(self.chosen_by)} if self.chosen_by else {}
        return chosen | ({"weights": self.weights} if self.weights else {})


def about(root: Path) -> About:
    """Read ABOUT_SOUNDS beside the sounds; another tool's file of that name is ignored, an invalid one raises UserError."""
    path = root / manifest.ABOUT_SOUNDS
    try:
        record = parse_json(path.read_bytes()) if path.is_file() else None
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {"family", "made_by"} <= record.keys():
        return About()
    lists = {key: record.get(key, []) for key in ("trained_against", "chosen_by")}
    for key, names in lists.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: {key}: expected a list of embedder names")
    return About(
        str(record["made_by"]),
        weights=str(record.get("weights", "")),
        loops=record.get("loops") is True,
        candidates=1,  # as `generate` does
        **{key: tuple(names) for key, names in lists.items()},
    )


def pairs(generated: Folder, reference: Folder, remedy: str = "add them, or use --unpaired to ignore equal names") -> bool:
    """Whether the sounds are pairs by id: all (True) or none (False); partial overlap raises UserError naming what is missing."""
    first, second = set(generated.ids), set(reference.ids)
    if first == second:
        return True
    if not first & second:
        return False
    sides = (second - first, second, reference, generated), (first - second, first, generated, reference)
    problems = [
        f"{len(unpaired)} of {len(ids)} in {folder.root} have no partner in {other.root}: {first_of(sorted(unpaired))}"
        for unpaired, ids, folder, other in sides
        if unpaired
    ]
    raise UserError(f"{'; '.join(problems)}. Pairs are never skipped: {remedy}")


def read_captions(path: Path, generated: Folder) -> dict[str, str]:
    """Prompts by id, from a csv with the columns `id` and `caption`; a sound of the folder without one raises UserError."""
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
        raise UserError(f"{path}: no caption for {first_of(missing)}; every sound needs its prompt")
    return {clip_id: captions[clip_id] for clip_id in generated.ids}
