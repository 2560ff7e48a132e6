"""Corpus formats by name, in the order of detection."""

from typing import Protocol

from soundmill.corpora import audiofolder, sources
from soundmill.corpora.csv_rows import AUDIOCAPS, BBC, CLASS_TABLE, CLOTHO, FSD50K, MUSICCAPS, URBANSOUND8K, LjSpeech
from soundmill.corpora.folder import SC09, SPEECH_COMMANDS, Esc, Folder, Gtzan
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.json_entries import AMPHION, AUDIOLDM, NSYNTH, TANGO, WAVCAPS, Audiocraft, Panns, StableAudio
from soundmill.corpora.tables import CorpusTables, Format
from soundmill.decoding.decode import DecodeError
from soundmill.errors import UserError
from soundmill.manifest import escape_path
from soundmill.params import did_you_mean

AUTO = "auto"


class Adapter(Protocol):
    """The reader of one format: a module, or an object."""

    FORMAT: Format

    def detect(self, inventory: Inventory) -> bool: ...

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables: ...


# The first adapter whose `detect` is true; a plain folder is the last.
ADAPTERS: dict[str, Adapter] = {
    adapter.FORMAT.name: adapter
    for adapter in (
        audiofolder,
        NSYNTH,
        URBANSOUND8K,
        FSD50K,
        CLASS_TABLE,
        BBC,
        AUDIOLDM,
        MUSICCAPS,
        Panns(),
        CLOTHO,
        AMPHION,
        Audiocraft(),
        AUDIOCAPS,
        TANGO,
        WAVCAPS,
        Esc(),
        Gtzan(),
        StableAudio(),
        LjSpeech(),
        SC09,
        SPEECH_COMMANDS,
        Folder(),
    )
}
NAMES = (AUTO, *ADAPTERS)


def read(name: str, inventory: Inventory, num_shards: int, needs_audio: bool = True) -> CorpusTables:
    """The tables of a corpus in the named format (`auto`: detect it), in stable order.

    A corpus without recordings is a UserError if `needs_audio`.
    """
    if name == AUTO:
        name = detect(inventory)
    if name not in ADAPTERS:
        raise UserError(f"corpus.format: {name!r} is unknown{did_you_mean(name, NAMES)}; choose one of {', '.join(NAMES)}")
    inventory.opened.clear()  # by detection
    tables = ADAPTERS[name].read(inventory, num_shards)
    if needs_audio and not tables.recordings:
        raise UserError(
            f"corpus.path: no recording in {escape_path(bytes(inventory.root))}, read as {name}{_parquet(inventory)}; "
            "see docs/corpora.md for the formats"
        )
    tables.remarks += sorted(inventory.remarks.values())
    if unread := inventory.unread():
        what = f"{len(unread)} tables, lists or texts not read, since they are not part of the format {name}"
        tables.remarks.append(f"{what} (first: {escape_path(unread[0])}); if they contain captions, see docs/corpora.md")
    tables.settle(name)
    return tables


def detect(inventory: Inventory) -> str:
    """Detect the format of a corpus from its metadata and file names; opens metadata only."""
    for name, adapter in ADAPTERS.items():
        if adapter.detect(inventory):
            return name
    inventory.check_not_empty()
    raise UserError(
        f"corpus.path: no recording in {escape_path(bytes(inventory.root))}{_parquet(inventory)}; "
        "set it to the directory of the audio files"
    )


def _parquet(inventory: Inventory) -> str:
    """The part of an error about Parquet tables, if there is nothing else."""
    names = [name for name in inventory.metadata if name.lower().endswith(b".parquet")]
    if inventory.audio or not names:
        return ""
    why = ""
    try:
        sources.open_table(inventory.metadata[names[0]]).close()
    except DecodeError as error:
        why = f": {error}"
    return f" ({len(names)} Parquet tables without a readable column of recordings, first: {escape_path(names[0])}{why})"
