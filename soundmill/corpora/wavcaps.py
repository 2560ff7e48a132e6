"""WavCaps: JSON of one caption per sound id, from Freesound, BBC Sound Effects, SoundBible and AudioSet, beside folders of flac."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from soundmill.corpora.audiocaps import split_of_file
from soundmill.corpora.inventory import Inventory, read_head, read_json
from soundmill.corpora.rows import Row, join
from soundmill.corpora.tables import CorpusTables, Format
from soundmill.corpora.tango_json import texts
from soundmill.errors import UserError
from soundmill.manifest import escape_path

FORMAT = Format(
    name="wavcaps",
    layout='JSON with `id` and `caption`: `{"num_captions_per_audio": 1, "data": [{…}]}`, or the bare list',
    id="the file is `id`, any extension, in its source's folder (FreeSound, BBC, SoundBible, AudioSet); AudioSet: `Y{ytid}.wav`",
    caption="`caption`",
    label="none",
    split="the JSON's name; the published ones tell none",
)
# Numbers of Freesound and of SoundBible overlap: a word in the JSON's path → the word in the folder of its sounds.
SOURCES = {
    "freesound": "freesound",
    "fsd": "freesound",
    "bbc": "bbc",
    "soundbible": "soundbible",
    "sb": "soundbible",
    "audioset": "audioset",
    "as": "audioset",
}
PARTS = {source: source for source in SOURCES.values()}  # also those that no JSON is there of: their sounds are nobody else's


def detect(inventory: Inventory) -> bool:
    """Whether a JSON file begins with entries that have `id` and `caption`."""
    return any(True for _ in manifests(inventory, b'"caption"'))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of WavCaps: one caption for each id; an id of AudioSet is a YouTube video."""
    tables = CorpusTables()
    names = list(manifests(inventory, b'"caption"'))
    if not names:
        raise UserError(
            f"corpus.path: no JSON with entries of `id` and `caption` below {escape_path(bytes(inventory.root))}; "
            "put WavCaps' json_files there, or choose another corpus.format"
        )
    rows = [row for name in names for row in entries(inventory, name, tables)]
    return join(inventory, rows, num_shards, tables, unique=True, parts=PARTS)


def manifests(inventory: Inventory, caption: bytes) -> Iterator[bytes]:
    """JSON files, a list or an object with a list `data`, whose first entries have an `id` and a key like `caption`."""
    for name in inventory.metadata:
        if name.lower().endswith(b".json"):
            head = read_head(inventory, name)
            if (
                re.match(rb'\s*(?:\xef\xbb\xbf)?\s*(?:\[|\{[^\[{]*"data"\s*:\s*\[)\s*\{', head)
                and caption in head
                and b'"id"' in head
            ):
                yield name


def entries(inventory: Inventory, name: bytes, tables: CorpusTables, of_video: bool = False) -> Iterator[Row]:
    """Rows of one such file; an entry without id is quarantined. `of_video`: ids without a source are of YouTube videos."""
    value = read_json(inventory, name)
    found = value.get("data") if isinstance(value, dict) else value
    if not isinstance(found, list):
        raise UserError(f'{escape_path(name)}: expected a list of entries, or `{{"data": [{{…}}, …]}}`')
    split, part = split_of_file(name), _source_of(name)
    for number, entry in enumerate(found):
        at = f"data[{number}]" if isinstance(value, dict) else f"[{number}]"
        key = _key(entry) if isinstance(entry, dict) else ""
        if key:
            video = part == "audioset" or (of_video and not part)
            yield Row(name, at, key, captions=_captions(entry), split=split, part=part, of_video=video)
        else:
            tables.reject(name, "bad entry", f"{at}: no `id`")


def _key(entry: dict[str, Any]) -> str:
    """The id, else the path of the audio; Freesound's ids may be numbers."""
    for name in ("id", "audio", "wav"):
        value = entry.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    return ""


def _captions(entry: dict[str, Any]) -> list[str]:
    return [text for key, value in entry.items() if re.fullmatch(r"captions?(?:_\d+)?", key) for text in texts(value)]


def _source_of(name: bytes) -> str:
    """What the JSON's name, else its folders, tell of where its sounds are from; empty where they tell nothing."""
    for part in reversed(name.decode("utf-8", "replace").lower().split("/")):
        found = {SOURCES[word] for word in re.split(r"[^a-z]+", part) if word in SOURCES}
        if len(found) == 1:
            return found.pop()
    return ""
