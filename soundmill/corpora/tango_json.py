"""TANGO: JSON lines of `dataset`, `location`, `captions`, one a caption, beside the audio they were written for elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator

from soundmill.corpora.audiocaps import split_of_file
from soundmill.corpora.audioldm import MACHINE_ID, ClassNames
from soundmill.corpora.inventory import Inventory, begins_with, read_json_lines
from soundmill.corpora.rows import Row, join
from soundmill.corpora.tables import CorpusTables, Format
from soundmill.errors import UserError
from soundmill.manifest import escape_path

FORMAT = Format(
    name="tango_json",
    layout="`.json` or `.jsonl` files whose lines have `dataset,location,captions`",
    id="the file is `location`, found by its name wherever it lies; the YouTube id and start that the name tells, else a hash",
    caption="`captions`: a text, or a list of texts",
    label="`labels`, if there are any: a list, or a text with `;`; machine ids with commas through `mid,display_name` of "
    "AudioSet's class label csv",
    split="the manifest's name",
)
KEYS = {"location", "captions"}


def detect(inventory: Inventory) -> bool:
    """Whether the first line of a JSON file has TANGO's keys."""
    return any(True for _ in _manifests(inventory))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of TANGO's manifests: those of one location add up to one recording with several captions."""
    tables = CorpusTables()
    return join(inventory, list(_rows(inventory, tables)), num_shards, tables)


def _manifests(inventory: Inventory) -> Iterator[bytes]:
    for name in inventory.metadata:
        if re.search(rb"\.(?:jsonl?|ndjson)(?:\.gz)?$", name.lower()):
            if begins_with(inventory, name, KEYS):
                yield name


def _rows(inventory: Inventory, tables: CorpusTables) -> Iterator[Row]:
    manifests = list(_manifests(inventory))
    if not manifests:
        raise UserError(
            f"corpus.path: no JSON lines with {' and '.join(sorted(KEYS))} below {escape_path(bytes(inventory.root))}; "
            "put TANGO's manifests there, or choose another corpus.format"
        )
    classes = ClassNames.of(inventory)
    for name in manifests:
        split = split_of_file(name)
        for line, entry in read_json_lines(inventory, name):
            location = entry.get("location") if isinstance(entry, dict) else None
            if isinstance(location, str):
                captions, labels = texts(entry.get("captions")), _labels(entry.get("labels"), classes)
                yield Row(name, line, location, captions=captions, labels=labels, split=split)
            else:
                tables.reject(name, "bad entry", f"line {line}: no `location`")
    classes.remark(tables)


def _labels(value: object, classes: ClassNames) -> list[str]:
    """Labels as they are; of machine ids, several of which may be one text, their classes' names."""
    found = []
    for label in texts(value, ";"):
        mids = [mid.strip() for mid in label.split(",")]
        found += classes.call(mids) if all(map(MACHINE_ID.fullmatch, mids)) else [label]
    return found


def texts(value: object, separator: str | None = None) -> list[str]:
    """The texts of a JSON value that is a text, or a list of texts; a text may be several, put together with a separator."""
    if isinstance(value, str):
        value = value.split(separator) if separator else [value]
    return [text.strip() for text in value if isinstance(text, str) and text.strip()] if isinstance(value, list) else []
