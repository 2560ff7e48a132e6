"""Take the inventory of an external corpus: which files may be recordings, and what is known of them. Only digests are computed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from soundmill import manifest, shards, stage
from soundmill.corpora import inventory, registry
from soundmill.errors import UserError
from soundmill.params import StageParams

NAMED = 20  # how many of each the metrics name; `soundmill corpus check` names all


class ScanParams(StageParams):
    format: Literal[registry.NAMES]
    path: str | None = Field(description="the corpus directory; a relative one starts at the checkout")
    embedded: list[str] = Field(max_length=0)
    external: list[str] = Field(min_length=1, max_length=1)
    shards: int = Field(ge=1, le=4096)


def run(params: ScanParams, ctx: stage.Context, corpus: stage.Output) -> dict[str, Any]:
    """Write the tables of recordings and captions; what cannot be a recording goes to quarantine, unopened."""
    root = corpus_directory(params.path, ctx.home)
    with ctx.progress(0, "scan", "file") as tick:
        found = inventory.take(root, ctx.workers, cache=ctx.digests, progress=tick)
    found.check_not_empty()
    tables = registry.read(params.format, found, params.shards)
    ctx.quarantine.extend(found.rejected + tables.rejected)

    corpus.mkdir(parents=True)
    shards.write_rows(tables.recordings, corpus / "recordings.parquet", manifest.RECORDINGS)
    shards.write_rows(tables.captions, corpus / "captions.parquet", manifest.CAPTIONS)
    return {
        "files": found.num_files,
        "recordings": len(tables.recordings),
        "bytes": sum(row["size"] for row in tables.recordings),
        "ignored": sum(found.ignored.values()),
        "ignored_kinds": found.ignored,
        "captions": len(tables.captions),
        "labels": len({label for row in tables.recordings + tables.captions for label in row["labels"]}),
        "splits": Counter(row["split"] for row in tables.recordings if row["split"]),
        "folds": Counter(str(row["fold"]) for row in tables.recordings if row["fold"] is not None),
        "format": tables.format,
        "matched": len(tables.matched),
        "missing": len(tables.missing),
        "missing_first": tables.missing[:NAMED],
        "orphans": len(tables.orphans),
        "orphans_first": tables.orphans[:NAMED],
        "collisions": len(tables.collisions),
        "collisions_first": tables.collisions[:NAMED],
        "ambiguous": len(tables.ambiguous),
        "ambiguous_first": tables.ambiguous[:NAMED],
        "remarks": tables.remarks,
        **tables.counts,
    }


def corpus_directory(path: str | None, home: Path) -> Path:
    """The directory that corpus.path names, or a UserError that says what is wrong with it."""
    remedy = "set it to the directory of your recordings: `make run CORPUS=DIR`, or `dvc exp run -S corpus.path=DIR`"
    if not path:
        raise UserError(f"params.yaml: corpus.path is not set; {remedy}")
    root = home / path
    if not root.exists():
        raise UserError(f"corpus.path: {root}: no such directory; {remedy}")
    if not root.is_dir():
        raise UserError(f"corpus.path: {root} is a file, not a directory; {remedy}")
    return root.resolve()


if __name__ == "__main__":
    stage.main(run, section="corpus")
