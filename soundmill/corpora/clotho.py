"""Clotho: csv files with five captions per recording, file names of free text, and a folder of audio for each split."""

import html
import re
from collections.abc import Iterator
from itertools import islice

from soundmill.corpora.folder_names import SPLIT_NAMES
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.join import join
from soundmill.corpora.metadata import csv_columns, read_csv
from soundmill.corpora.resolver import MAX_KEY, FileIndex, youtube_clip
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format, whole_number

FORMAT = Format(
    name="clotho",
    layout="`clotho_captions_{development,validation,evaluation}.csv` with `file_name,caption_1..5`; `development/*.wav` …",
    id="hash of the path; the file is `file_name`, free text, found in the folder of its csv's split",
    caption="`caption_1` … `caption_5`",
    label="none",
    split="the csv's name (development means train, validation valid, evaluation test); for a file in no csv, its folder's; "
    "group: `sound_id` of `clotho_metadata_*.csv`",
)

COLUMNS = {"file_name", "caption_1"}
METADATA_COLUMNS = {"file_name", "sound_id"}
SPLITS = {"development": "train", **SPLIT_NAMES}
OWN_WORDS = ("development", "validation", "evaluation")
DETECTION_ROWS = 50  # rows, for detection: lists of YouTube clips have the same columns


def detect(inventory: Inventory) -> bool:
    """Whether a csv has Clotho's columns and names that are not YouTube ids."""
    return any(_is_clotho(inventory, name) for name in _tables(inventory, COLUMNS))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Tables of Clotho: five captions per recording, its split, and the Freesound original as its group."""
    names = _tables(inventory, COLUMNS)
    if not names:
        raise inventory.lacks(
            f"csv with the columns {', '.join(sorted(COLUMNS))}",
            "put `clotho_captions_development.csv` beside the folders of audio",
        )
    tables = CorpusTables()
    originals = dict(_originals(inventory))
    index = FileIndex(inventory)
    named = {SPLITS[part] for part in map(part_of, names) if part not in ("", "dev")}
    # In Clotho `dev` means development, if there is another validation set and no other training set.
    splits = {**SPLITS, "dev": "train" if "valid" in named and "train" not in named else SPLITS["dev"]}
    tables = join(
        inventory, _rows(inventory, names, originals, index, splits, tables), num_shards, tables, unique=True, parts=splits
    )
    folders = {file.raw_path: file.folders for file in inventory.audio}
    for recording in tables.recordings:
        if recording["split"] is None and folders[recording["raw_path"]]:  # the test set: no captions, not for training
            recording["split"] = splits.get(part_of(folders[recording["raw_path"]][-1]))
    return tables


def _tables(inventory: Inventory, columns: set[str]) -> list[bytes]:
    return [name for name in inventory.csv_files() if columns <= set(csv_columns(inventory, name))]


def _is_clotho(inventory: Inventory, name: bytes) -> bool:
    if part_of(name) in OWN_WORDS:
        return True
    keys = [cells["file_name"] for _, cells in islice(read_csv(inventory, name), DETECTION_ROWS)]
    return 2 * sum(youtube_clip(key) is not None for key in keys) < len(keys)


def part_of(name: bytes) -> str:
    """The word for the split in a csv's name; empty if there is none."""
    words = re.split(r"[^a-z]+", name.rpartition(b"/")[2].decode("utf-8", "replace").lower())
    return next((word for word in SPLITS if word in words), "")


def _rows(
    inventory: Inventory,
    names: list[bytes],
    originals: dict[tuple[str, str], str],
    index: FileIndex,
    splits: dict[str, str],
    tables: CorpusTables,
) -> Iterator[ManifestRow]:
    for name in names:
        part = part_of(name)
        if not part:
            tables.count("csv_without_split")
        for line, cells in read_csv(inventory, name):
            captions = [text for column, text in cells.items() if re.fullmatch(r"caption_\d+", column) and text.strip()]
            yield ManifestRow(
                source=name,
                at=line,
                key=_key(cells["file_name"], index),
                captions=captions,
                split=splits.get(part),
                group=originals.get((part, _decoded(cells["file_name"]))),
                part=part,
            )


def _key(written: str, index: FileIndex) -> str:
    """The name in a csv as written or decoded, whichever a file has."""
    if index.resolve(written).files:
        return written
    return decoded if index.resolve(decoded := _decoded(written)).files else written


def _decoded(name: str) -> str:
    """A name without HTML entities (`&#39;`) and surrounding spaces; not decoded if too long for a key."""
    return html.unescape(name).strip() if len(name) <= MAX_KEY else name


def _originals(inventory: Inventory) -> Iterator[tuple[tuple[str, str], str]]:
    """((word for the split, file name), Freesound number) from the metadata tables, which are in Latin-1."""
    for name in _tables(inventory, METADATA_COLUMNS):
        for _, cells in read_csv(inventory, name):
            if number := whole_number(cells["sound_id"]):
                yield (part_of(name), _decoded(cells["file_name"])), number
