"""Rows of manifests joined with files that are only names, for tests."""

from pathlib import Path

from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.join import join
from soundmill.corpora.tables import ManifestRow

VIDEO = "r1nicOVtvkQ"


def inventory(*names: str) -> Inventory:
    return Inventory(Path("/corpus"), audio=[AudioFile(name.encode(), 1, "") for name in sorted(names)])


def row(key: str, caption: str = "a sound", at: int = 2, source: bytes = b"m.csv", **rest) -> ManifestRow:
    return ManifestRow(source, at, key, captions=[caption], **rest)


def joined(names, rows, **options):
    tables = join(inventory(*names), rows, 4, **options)
    tables.settle("test")
    return tables


def captions_of(tables):
    """Captions by path; `None` are those without a recording."""
    of = {recording["recording_id"]: recording["path"] for recording in tables.recordings}
    result: dict[str | None, list[str]] = {}
    for caption in tables.captions:
        result.setdefault(of.get(caption["recording_id"]), []).append(caption["caption"])
    return result
