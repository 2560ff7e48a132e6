"""Amphion's text-to-audio lists: JSON of `Dataset`, `Uid`, `Caption`, where a Uid is `{ytid}_{startms}_{endms}`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from soundmill.corpora.audiocaps import split_of_file
from soundmill.corpora.inventory import Inventory, read_head, read_json
from soundmill.corpora.rows import Row, join
from soundmill.corpora.tables import CorpusTables, Format
from soundmill.corpora.tango_json import texts
from soundmill.errors import UserError
from soundmill.manifest import escape_path

FORMAT = Format(
    name="amphion",
    layout="JSON lists of `Dataset,Uid,Caption`",
    id="the file is `Uid` with any extension, `{ytid}_{startms}_{endms}`",
    caption="`Caption`",
    label="none",
    split="the JSON's name",
)

_UID = re.compile(r"Y?(?P<video>[A-Za-z0-9_-]{11})_(?P<start>[0-9]{1,9})_[0-9]{1,9}")


def detect(inventory: Inventory) -> bool:
    """Whether a JSON list begins with an object that has `Uid` and `Caption`."""
    return any(True for _ in _manifests(inventory))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of Amphion's lists; entries of one Uid add up to one recording."""
    tables = CorpusTables()
    return join(inventory, list(_rows(inventory, tables)), num_shards, tables)


def _manifests(inventory: Inventory) -> Iterator[bytes]:
    for name in inventory.metadata:
        if name.lower().endswith(b".json"):
            first = re.match(rb"\s*(?:\xef\xbb\xbf)?\s*\[\s*\{[^{}]*", read_head(inventory, name))
            if first and b'"Uid"' in first[0] and b'"Caption"' in first[0]:
                yield name


def _rows(inventory: Inventory, tables: CorpusTables) -> Iterator[Row]:
    manifests = list(_manifests(inventory))
    if not manifests:
        raise UserError(
            f"corpus.path: no JSON list of `Uid` and `Caption` below {escape_path(bytes(inventory.root))}; "
            "put Amphion's train.json there, or choose another corpus.format"
        )
    for name in manifests:
        split = split_of_file(name)
        for number, entry in enumerate(read_json(inventory, name)):
            if isinstance(entry, dict) and isinstance(entry.get("Uid"), str):
                uid = entry["Uid"].strip()
                yield Row(name, f"[{number}]", uid, captions=texts(entry.get("Caption")), split=split, about=_clip(uid))
            else:
                tables.reject(name, "bad entry", f"[{number}]: no `Uid`")


def _clip(uid: str) -> tuple[str, float] | None:
    match = _UID.fullmatch(uid)
    return (match["video"], int(match["start"]) / 1000) if match else None
