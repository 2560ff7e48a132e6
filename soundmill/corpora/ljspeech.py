"""LJSpeech: `metadata.csv` of `id|transcript|normalised transcript`, without header and quotes, and a folder `wavs`."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from soundmill.corpora.inventory import Inventory, composed
from soundmill.corpora.join import join
from soundmill.corpora.metadata import head_lines, read_lines
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format

FORMAT = Format(
    name="ljspeech",
    layout="`metadata.csv` without header: id, transcript, normalised transcript, separated by vertical bars; `wavs/{id}.wav`",
    id="hash of the path; the file is `id` in `wavs`",
    caption="the normalised transcript, else the plain one",
    label="none",
    split="none",
)

DETECTION_LINES = 50  # lines, for detection among other tables of this name
ID = re.compile(r"[^\s/\\]+")


def detect(inventory: Inventory) -> bool:
    return any(_is_ljspeech(inventory, name) for name in _tables(inventory))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Tables of LJSpeech: the transcript as the caption."""
    names = _tables(inventory)
    if not names:
        raise inventory.lacks("`metadata.csv` of lines `id|transcript|normalised transcript`", "put it beside its folder `wavs`")
    tables = CorpusTables()
    return join(inventory, list(_rows(inventory, names, tables)), num_shards, tables, unique=True)


def _tables(inventory: Inventory) -> list[bytes]:
    return [name for name in inventory.metadata if os.path.basename(name) == b"metadata.csv"]


def _is_ljspeech(inventory: Inventory, name: bytes) -> bool:
    """Whether half of the first lines have an id and one or two texts, and one of these files exists or there is no audio."""
    ids = []
    lines = [line for line in head_lines(inventory, name)[:DETECTION_LINES] if line.strip()]
    for line in lines:
        first, *texts = line.split("|")
        if len(texts) in (1, 2) and ID.fullmatch(first):
            ids.append(first)
    folder = os.path.join(os.path.dirname(name), b"wavs")
    stems = {composed(file.stem) for file in inventory.audio if os.path.dirname(file.raw_path) == folder}
    return 2 * len(ids) >= len(lines) > 0 and (not inventory.audio or not stems.isdisjoint(map(composed, ids)))


def _rows(inventory: Inventory, names: list[bytes], tables: CorpusTables) -> Iterator[ManifestRow]:
    for name in names:
        lines = [(line, text.split("|")) for line, text in read_lines(inventory, name)]
        usual = Counter(len(cells) for _, cells in lines).most_common(1)
        pieces: set[int] = set()
        for (before, first), (line, second) in pairwise(lines):
            if len(second) == 1 or (len(first) == len(second) == 2 and usual[0][0] == 3):
                pieces |= {before, line}
        for line, (key, *texts) in lines:
            if len(texts) not in (1, 2) or line in pieces:
                what = "a piece of a broken line" if line in pieces else f"{len(texts)} `|`"
                tables.reject(name, "bad row", f"line {line}: {what}, expected `id|transcript|normalised transcript`")
            elif not key.strip():
                tables.reject(name, "bad id", f"line {line}: empty")
            else:
                captions = [text for text in reversed(texts) if text.strip()][:1]
                yield ManifestRow(name, line, f"wavs/{key.strip()}", captions=captions)
