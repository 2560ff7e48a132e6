"""The table of clips that weights were trained on, stored beside them."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from soundmill import manifest, shards

FROM_CATALOG = ["clip_id", "recording_id", "source", "start", "seconds", "digest"]


def write_trained_on(
    directory: Path,
    catalog: Path,
    clip_ids: Iterable[str],
    mixes: Mapping[str, tuple[str, str]] | None = None,
    start: Path | None = None,
) -> None:
    """Write the table of manifest.TRAINED_ON into a directory of weights: the clips, both clips of each of the `mixes` (by id).

    `start` is the directory of weights that the training started from; the rows of its tables are added, and the attribution that
    was published with it is kept.
    """
    catalogued = {row["clip_id"]: row for row in shards.read_table(catalog, manifest.CATALOG, FROM_CATALOG).to_pylist()}
    clips = [(None, clip_id) for clip_id in sorted(clip_ids)]
    clips += [(mix, clip_id) for mix, both in sorted((mixes or {}).items()) for clip_id in both]
    rows = ({"clip_id": clip_id, **catalogued.get(clip_id, {}), "mix": mix, "earlier": False} for mix, clip_id in clips)
    with shards.ShardWriter(directory / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON) as writer:
        for row in (*rows, *_earlier(start)):
            writer.write(row)
    if start:
        known = manifest.attribution_of(start) or start / manifest.EARLIER_ATTRIBUTION
        if known.is_file():
            shutil.copyfile(known, directory / manifest.EARLIER_ATTRIBUTION)


def _earlier(start: Path | None) -> Iterator[dict[str, Any]]:
    """Distinct rows of all tables below a directory of weights."""
    seen = set()
    for table in sorted(start.rglob(manifest.TRAINED_ON_FILE)) if start else ():
        for row in shards.read_rows(table, manifest.TRAINED_ON):
            row["earlier"] = True
            if (key := tuple(row.values())) not in seen:
                seen.add(key)
                yield row
