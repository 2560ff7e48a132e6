"""Formats with a JSON file beside each recording: audiocraft's, which also has manifests, and that of stable-audio-tools."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from soundmill.corpora.folder import layout_of
from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.join import join
from soundmill.corpora.json_entries import JSON, texts
from soundmill.corpora.manifest_format import DETECTED, ClassNames, ManifestFormat
from soundmill.corpora.metadata import MAX_TEXT_BYTES, first_keys, read_entries, read_head, read_json, read_sidecar
from soundmill.corpora.resolver import FileIndex
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format, keyword_in
from soundmill.errors import UserError
from soundmill.manifest import SPLIT_NAMES
from soundmill.params import parse_json


class Audiocraft(ManifestFormat):
    """Manifests of JSON lines give recordings and splits, the json beside a recording its description."""

    FORMAT = Format(
        name="audiocraft",
        layout="`data.jsonl(.gz)` of `path,duration,sample_rate,…`; "
        "beside every recording a `.json` with `description`, `keywords` …",
        id="hash of the path, or the YouTube id in the file's name; the file is `path`, anywhere below the corpus",
        caption="`description` of the json beside the recording: a text or a list of texts",
        label="`genre` of that json, else its `keywords`",
        split="the folder or name of the manifest: train, valid, evaluate (and generate) are train, valid, test",
    )
    looks = "manifest of JSON lines with duration, path, sample_rate"
    remedy = "put audiocraft's data.jsonl.gz there"

    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        keys = {"path", "duration", "sample_rate"}
        return (name for name in filter(JSON.search, inventory.metadata) if keys <= first_keys(inventory, name))

    def all_rows(
        self, inventory: Inventory, names: Iterable[bytes], tables: CorpusTables, classes: ClassNames
    ) -> Iterator[ManifestRow]:
        index = FileIndex(inventory)
        for row in super().all_rows(inventory, names, tables, classes):
            files = index.resolve(row.key, row.source.rpartition(b"/")[0]).files
            about = _sidecar(inventory, files[0].raw_path, tables) if len(files) == 1 else {}
            row.captions = texts(about.get("captions")) or texts(about.get("description"))
            row.labels = _tags(about.get("genre")) or _tags(about.get("keywords"))
            yield row

    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables, classes: ClassNames) -> Iterator[ManifestRow]:
        split = keyword_in(name, {**SPLIT_NAMES, "evaluate": "test", "generate": "test"})
        for line, entry in read_entries(inventory, name):
            if isinstance(entry, dict) and isinstance(entry.get("path"), str):
                yield ManifestRow(name, line, entry["path"], split=split, bare=True)
            else:
                tables.reject(name, "bad entry", f"{line}: no `path`")


def _sidecar(inventory: Inventory, raw_path: bytes, tables: CorpusTables) -> dict[str, Any]:
    """The json beside a recording; empty if there is none or it cannot be read."""
    name = inventory.beside(os.path.splitext(raw_path)[0], b".json")
    if name is None:
        return {}
    try:
        value = read_json(inventory, name)
    except UserError as error:
        tables.reject(name, "unreadable caption", str(error))
        return {}
    return value if isinstance(value, dict) else {}


def _tags(value: Any) -> list[str]:
    """Tags in a list or a comma-separated text."""
    return [text.lower() for text in texts(value, ",")]


AUDIOCRAFT = Audiocraft()
KEYS = ("prompt", "text")  # the first non-empty one is used


class StableAudio:
    """A `.json` (or `.txt`) with the prompt beside each recording; LAION-CLAP's key is `text`."""

    FORMAT = Format(
        name="stable_audio",
        layout='beside every recording a `.json` of the same name with `{"prompt": …}`, or `{"text": …}`, as in WebDataset',
        id="hash of the path, or the YouTube id in the file's name; the file is the one with the json's name",
        caption="`prompt` of the json, else its `text` (a text or a list of texts); "
        "without a json, the whole `.txt` of the same name",
        label="none",
        split="folders named after splits, as in `folder`",
    )

    def detect(self, inventory: Inventory) -> bool:
        """Whether most of the first jsons beside recordings have a prompt or a text."""
        pairs = list(islice((name for _, name in _pairs(inventory, b".json")), DETECTED))
        return 2 * sum(any(b'"%s"' % key.encode() in read_head(inventory, name) for key in KEYS) for name in pairs) > len(pairs)

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Tables of such a corpus: the prompt of each recording that has one."""
        tables = CorpusTables()
        rows = list(_rows(inventory, tables))
        if not rows:
            raise inventory.lacks('json with a "prompt" beside a recording of its name', "put them there")
        tables = join(inventory, rows, num_shards, tables)
        layout, files = layout_of(inventory.audio), {file.raw_path: file for file in inventory.audio}
        for recording in tables.recordings:
            recording["split"] = layout.split_and_label(files[recording["raw_path"]])[0]
        return tables


STABLE_AUDIO = StableAudio()


def _pairs(inventory: Inventory, extension: bytes) -> Iterator[tuple[AudioFile, bytes]]:
    for file in inventory.audio:
        if name := inventory.beside(os.path.splitext(file.raw_path)[0], extension):
            yield file, name


def _rows(inventory: Inventory, tables: CorpusTables) -> Iterator[ManifestRow]:
    described, paired = set(), set()
    keys = set(KEYS)
    for file, name in _pairs(inventory, b".json"):
        described.add(file.raw_path)
        paired.add(name)
        value = _value(inventory, name, tables)
        keys.update(value)
        if prompts := _prompts(value):
            yield ManifestRow(name, "prompt", os.fsdecode(file.raw_path), captions=prompts, at_root=True)
    for name in inventory.metadata:
        # A json with only the keys of sidecars has lost its recording; others are not sidecars.
        if name.lower().endswith(b".json") and name not in paired and (prompts := _prompts(value := _peek(inventory, name))):
            if value.keys() <= keys:
                inventory.opened.add(name)
                yield ManifestRow(name, "prompt", os.fsdecode(os.path.splitext(name)[0]), captions=prompts, at_root=True)
    for file, name in _pairs(inventory, b".txt"):
        if file.raw_path not in described and (text := read_sidecar(inventory, name, tables.reject)):
            yield ManifestRow(name, 1, os.fsdecode(file.raw_path), captions=[text], at_root=True)


def _value(inventory: Inventory, name: bytes, tables: CorpusTables) -> dict[str, Any]:
    """The json beside a recording; one without a prompt is quarantined."""
    text = read_sidecar(inventory, name, tables.reject)
    if text is None:
        return {}
    try:
        value = parse_json(text) if text else None
    except ValueError:
        tables.reject(name, "unreadable caption", "not JSON")
        return {}
    value = value if isinstance(value, dict) else {}
    if not _prompts(value):
        tables.reject(name, "empty caption", "no `prompt` and no `text`")
    return value


def _peek(inventory: Inventory, name: bytes) -> dict[str, Any]:
    """The object in any json; empty if it is too long for a sidecar."""
    try:
        value = parse_json(read_head(inventory, name, MAX_TEXT_BYTES))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _prompts(value: dict[str, Any]) -> list[str]:
    return next(filter(None, (texts(value.get(key)) for key in KEYS)), [])
