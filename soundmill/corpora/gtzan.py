"""GTZAN: a folder per genre with files like `blues.00000.wav`."""

import re

from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.tables import CorpusTables, Format

FORMAT = Format(
    name="gtzan",
    layout="`genres_original/blues/blues.00000.wav` … (or `.au`)",
    id="hash of the path",
    caption="none (made from the label)",
    label="the genre, first word of the file's name",
    split="none",
)

NAME = re.compile(r"(?P<genre>[a-z]+)\.(?P<number>\d{5})")


def detect(inventory: Inventory) -> bool:
    """Whether most files are named after the folder of their genre."""
    return 2 * sum(genre(file) is not None for file in inventory.audio) > len(inventory.audio)


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Tables of GTZAN: one label per recording. Its known repetitions are left to the stage `duplicates`."""
    tables = CorpusTables()
    for file in inventory.audio:
        label = genre(file)
        if label is None:
            tables.count("without_genre")
        tables.add_recording(file, num_shards, labels=[label] if label else [])
    if tables.counts.get("without_genre", 0) == len(inventory.audio):
        raise inventory.lacks("file like `blues/blues.00000.wav`", "put GTZAN's folders of genres there")
    return tables


def genre(file: AudioFile) -> str | None:
    """The genre of a file whose folder and name are as in GTZAN, else None."""
    match = NAME.fullmatch(file.stem)
    return match["genre"] if match and file.folders and file.folders[-1] == match["genre"].encode() else None
