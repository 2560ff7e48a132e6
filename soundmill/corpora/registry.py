"""The formats of corpora by name, and the guess at a directory's format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from soundmill.corpora import audiocaps, esc, folder
from soundmill.corpora.inventory import Inventory, csv_columns, take
from soundmill.corpora.tables import CorpusTables
from soundmill.errors import UserError

Adapter = Callable[[Inventory, int], CorpusTables]

ADAPTERS: dict[str, Adapter] = {"folder": folder.read, "esc": esc.read, "audiocaps": audiocaps.read}


def read(name: str, inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of the corpus in the named format; recordings and captions in stable order."""
    if name not in ADAPTERS:
        raise UserError(f"corpus.format: {name!r} is not known; choose one of {', '.join(sorted(ADAPTERS))}")
    return ADAPTERS[name](inventory, num_shards)


def detect(directory: Path) -> str:
    """The format a directory seems to be in: `audiocaps`, `esc` or `folder`; opens the headers of its csv files only."""
    inventory = take(directory, digests=False)
    inventory.check_not_empty()
    if any(audiocaps.is_audiocaps(csv_columns(inventory, name)) for name in inventory.csv_files()):
        return "audiocaps"
    if esc.meta_csv(inventory) or 2 * sum(map(esc.is_esc10, inventory.audio)) > len(inventory.audio):
        return "esc"
    return "folder"
