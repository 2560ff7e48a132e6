"""AudioCaps as in PANNs' lists and WavCaps' code: csv or JSON with five captions per `Y{ytid}.wav`."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from soundmill.corpora.audiocaps import split_of_file
from soundmill.corpora.class_names import ClassNames
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.join import join
from soundmill.corpora.json_entries import WAVCAPS
from soundmill.corpora.metadata import csv_columns, read_csv
from soundmill.corpora.resolver import youtube_clip
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format

FORMAT = Format(
    name="panns",
    layout='csv with `file_name,caption_1..5`, or JSON `{"data": [{caption_1..5, wav, audio, duration, id}]}`, of YouTube names',
    id="`file_name`, or `id`: `Y{ytid}.wav`",
    caption="`caption_1` … `caption_5`, `caption`",
    label="none",
    split="the manifest's name",
)
_PREFIXED = re.compile(r"Y[A-Za-z0-9_-]{11}\.wav$")
# JSON as in WavCaps, but with several captions per entry; other files may have one caption per entry.
FIVE_CAPTIONS = replace(WAVCAPS, keys=("id", "caption_1"))
ANY_CAPTIONS = replace(WAVCAPS, keys=("id", r"caption\w*"))
DETECTION_ROWS = 50  # rows, for detection: Clotho has the same columns but free text as names


def detect(inventory: Inventory) -> bool:
    """Whether a csv or JSON has numbered captions of files named after YouTube videos."""
    return any(_is_of_videos(inventory, name) for name in _csv_files(inventory)) or FIVE_CAPTIONS.detect(inventory)


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Read all such csv and JSON files, also JSON files with one caption per entry."""
    tables = CorpusTables()
    rows = [row for name in _csv_files(inventory) for row in _rows(inventory, name)]
    rows += [
        row
        for name in ANY_CAPTIONS.manifests(inventory)
        for row in ANY_CAPTIONS.rows(inventory, name, tables, ClassNames(inventory), of_video=True)
    ]
    if not rows:
        raise inventory.lacks("csv with `file_name,caption_1` and no JSON with `id` and `caption_1`", "put one there")
    return join(inventory, rows, num_shards, tables, unique=True, parts=WAVCAPS.parts)


def _csv_files(inventory: Inventory) -> list[bytes]:
    return [name for name in inventory.csv_files() if {"file_name", "caption_1"} <= set(csv_columns(inventory, name))]


def _is_of_videos(inventory: Inventory, name: bytes) -> bool:
    if b"clotho" in name.rpartition(b"/")[2].lower():  # its file names are free text
        return False
    keys = [cells["file_name"] for _, cells in islice(read_csv(inventory, name), DETECTION_ROWS)]
    return 2 * sum(youtube_clip(key) is not None or _PREFIXED.match(key) is not None for key in keys) > len(keys)


def _rows(inventory: Inventory, name: bytes) -> Iterator[ManifestRow]:
    split = split_of_file(name)
    for line, cells in read_csv(inventory, name):
        captions = [text for column, text in cells.items() if re.fullmatch(r"caption(?:_\d+)?", column)]
        yield ManifestRow(name, line, cells["file_name"].strip(), captions=captions, split=split, of_video=True)
