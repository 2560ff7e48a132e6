"""Titles, genres and descriptions in sound files, for captions."""

from soundmill.corpora import sound_tags
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.statements import MAX_CELL, NOTHING, clean
from soundmill.corpora.tables import CorpusTables
from soundmill.manifest import FILE_TAGS
from soundmill.params import parse_json


def fill(tables: CorpusTables, inventory: Inventory) -> None:
    """Set `file_tags` of a corpus's recordings, each as one line of printable characters; those beyond MAX_CELL are left out."""
    of_file = {file.raw_path: file.tags for file in inventory.audio if file.tags}
    long = []
    for row in tables.recordings:
        stated = [tags for place, tags in tables.stated.get(row["recording_id"], ()) if place == sound_tags.FOUND]
        if row["raw_path"] in of_file:
            stated.append(parse_json(of_file[row["raw_path"]]))
        found: dict[str, str] = {name: text for tags in stated for name, text in tags.items() if name in FILE_TAGS}
        long += [row["path"] for text in found.values() if len(text) > MAX_CELL]
        texts = {name: clean(text) for name, text in found.items() if len(text) <= MAX_CELL}
        known = {name: text for name, text in texts.items() if text.lower() not in NOTHING}
        row["file_tags"] = {name: known.get(name) for name in FILE_TAGS} if known else None
    if long:
        what = f"{len(long)} titles, genres or descriptions in files have more than {MAX_CELL} characters and are left out"
        tables.remarks.append(f"{what} (first: {long[0][:200]})")
