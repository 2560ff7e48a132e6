"""Splits in the names of folders and files: `train/`, `test-clean/`, `train_1.wav`."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable

from soundmill.corpora.folder import layout_of, split_of_folder
from soundmill.corpora.folder_names import SPLIT_NAMES
from soundmill.corpora.inventory import AudioFile, Inventory, composed_path
from soundmill.corpora.resolver import with_slashes
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import split_of

DEEPEST = 4  # folders above those of splits
METADATA = re.compile(rb"(?:^|/)metadata\.(csv|jsonl?|ndjson|parquet)$")


def splits_of_folders(files: Iterable[AudioFile]) -> dict[bytes, str]:
    """Splits by raw path from folder names, by the rule of the format `folder`: `train` may also be a class.

    If split folders are in several folders (`en/train`, `de/train`), all of these must have them.
    """
    files = list(files)
    if not any(split_of_folder(folder) for file in files for folder in file.folders):
        return _splits_of_words(files)
    files = [file for file in files if file.folders]
    for depth in range(min(DEEPEST, max(len(file.folders) for file in files))):
        parts: dict[tuple[bytes, ...], list[AudioFile]] = defaultdict(list)
        for file in files:
            parts[tuple(file.folders[:depth])].append(file)
        layouts = {part: layout_of(inside) for part, inside in parts.items()}
        if all(layout.above is not None and len(layout.above) >= depth for layout in layouts.values()):
            splits = {file.raw_path: layouts[part].split_and_label(file)[0] for part, inside in parts.items() for file in inside}
            return {raw_path: split for raw_path, split in splits.items() if split}
    return _splits_of_words(files)


def _splits_of_words(files: list[AudioFile]) -> dict[bytes, str]:
    """Splits by raw path from words in the names of all sibling folders (`train-clean-100`, `test-clean`), else from the first word
    of all file names (`train_1.wav`, `test_1.wav`)."""
    files = [file for file in files if not METADATA.search(file.raw_path)]
    if not files:
        return {}
    for depth in range(min(DEEPEST, min(len(file.folders) for file in files))):
        of_folder = {folder: split_of(folder) for folder in {file.folders[depth] for file in files}}
        if None not in of_folder.values() and len(set(of_folder.values())) > 1:
            return {file.raw_path: of_folder[file.folders[depth]] for file in files}
    words = {file.raw_path: re.split(rb"[^a-z]", file.name.lower(), maxsplit=1)[0].decode() for file in files}
    splits = {raw_path: SPLIT_NAMES.get(word) for raw_path, word in words.items()}
    return splits if None not in splits.values() and len(set(splits.values())) > 1 else {}


def split_by_folders(rows: list[ManifestRow], inventory: Inventory, splits: dict[bytes, str]) -> None:
    """Set missing splits of rows from the folders in their keys, else those of the manifest. `splits`: of files and manifests."""
    places = [
        composed_path(os.path.normpath(os.path.join(os.path.dirname(row.source), with_slashes(row.key).encode("utf-8", "replace"))))
        for row in rows
    ]
    files = {composed_path(file.raw_path): file.raw_path for file in inventory.audio}
    # If files were moved, the paths in the manifest still have the published splits.
    named = {} if files.keys() >= set(places) else splits_of_folders(AudioFile(place, 0, "") for place in places)
    for row, place in zip(rows, places, strict=True):
        found = splits.get(files[place]) if place in files else named.get(place)
        row.split = row.split or found or splits.get(row.source)
