"""NSynth: `examples.json` with pitch, instrument and qualities of each note, beside a folder of audio."""

import os
import re
from collections.abc import Iterator
from typing import Any

from soundmill.corpora.inventory import Inventory
from soundmill.corpora.join import join
from soundmill.corpora.metadata import read_head, read_json
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.statements import Statement
from soundmill.corpora.tables import CorpusTables, Format
from soundmill.errors import UserError
from soundmill.manifest import escape_path

FORMAT = Format(
    name="nsynth",
    layout="`nsynth-{train,valid,test}/examples.json` (note → fields) and `nsynth-…/audio/{note}.wav`",
    id="hash of the path; the file is the note's name",
    caption="`instrument_source_str`, `instrument_family_str`, `qualities_str`: `electronic bass, dark, reverb`",
    label="`instrument_family_str`",
    split="the folder's name; group: `instrument_str`",
)

# Terms of the corpus as it is published, and the names of its notes: `{instrument}_{source}_{number}-{pitch}-{velocity}`.
STATEMENT = Statement("published with NSynth", "CC-BY-4.0", "Google Inc.", "https://magenta.tensorflow.org/datasets/nsynth")
NOTE = re.compile(rb"[a-z_]+_(?:acoustic|electronic|synthetic)_\d{3}-\d{3}-\d{3}\.\w+")

SPLITS = {"train": "train", "valid": "valid", "test": "test"}


def detect(inventory: Inventory) -> bool:
    return bool(_tables(inventory))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Tables of NSynth: captions made of its fields; notes of one instrument are a group."""
    names = _tables(inventory)
    if not names:
        raise inventory.lacks("`examples.json` of NSynth's notes", "put it beside its folder `audio`")
    tables = CorpusTables()
    return join(inventory, list(_rows(inventory, names, tables)), num_shards, tables)


def _tables(inventory: Inventory) -> list[bytes]:
    return [
        name
        for name in inventory.metadata
        if re.search(rb"(?:^|/)examples\.json$", name) and b'"instrument_family' in read_head(inventory, name)
    ]


def _rows(inventory: Inventory, names: list[bytes], tables: CorpusTables) -> Iterator[ManifestRow]:
    for name in names:
        examples = read_json(inventory, name)
        if not isinstance(examples, dict):
            raise UserError(f"{escape_path(name)}: expected an object of notes by name, as in NSynth")
        # If the corpus is one split of NSynth, the split is in the name of the corpus directory.
        folder = (os.path.dirname(name) or os.path.basename(os.path.realpath(bytes(inventory.root)))).decode("utf-8", "replace")
        split = next((SPLITS[word] for word in re.split(r"[^a-z]+", folder.lower()) if word in SPLITS), None)
        for note, fields in examples.items():
            if not isinstance(fields, dict) or not isinstance(fields.get("instrument_family_str"), str):
                tables.reject(name, "bad entry", f"{note!r:.80}: no `instrument_family_str`")
                continue
            family = fields["instrument_family_str"].replace("_", " ")
            group = fields.get("instrument_str")
            yield ManifestRow(
                name,
                note.encode("utf-8", "replace").decode(),  # JSON allows lone surrogates, tables do not
                f"audio/{note}",
                captions=[_caption(family, fields)],
                labels=[family],
                split=split,
                group=group if isinstance(group, str) and group else None,
            )


def _caption(family: str, fields: dict[str, Any]) -> str:
    source, qualities = fields.get("instrument_source_str"), fields.get("qualities_str")
    words = [quality.replace("_", " ") for quality in qualities if isinstance(quality, str)] if isinstance(qualities, list) else []
    return ", ".join([f"{source} {family}" if isinstance(source, str) else family, *words])
