"""Take the inventory of an external corpus: which files may be recordings, and what is known of them. Only digests are computed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from soundmill import manifest, shards, stage
from soundmill.corpora import inventory, registry, union
from soundmill.corpora.sources import PART_NAME
from soundmill.errors import UserError
from soundmill.params import StageParams

NAMED = 20  # how many of each the metrics name; `soundmill corpus check` names all


class Part(StageParams):
    """One corpus of a union."""

    format: Literal[registry.NAMES]
    path: str
    weight: float = Field(gt=0, le=1000, description="expected number of draws of each of its clips per epoch of training")


class ScanParams(StageParams):
    format: Literal[(*registry.NAMES, union.NAME)]
    path: str | None = Field(description="the corpus directory; a relative one starts at the checkout; null for a union")
    parts: dict[Annotated[str, Field(pattern=rf"^{PART_NAME.pattern}$")], Part] = Field(description="of a union, by name")
    embedded: list[str] = Field(max_length=0)
    external: list[str] = Field(min_length=1, max_length=1)
    shards: int = Field(ge=1, le=4096)


def run(params: ScanParams, ctx: stage.Context, corpus: stage.Output) -> dict[str, Any]:
    """Write the tables of recordings and captions; what cannot be a recording goes to quarantine, unopened."""
    parts = _read_parts(params, ctx)
    found, tables = union.unite(parts) if params.format == union.NAME else (parts[0].inventory, parts[0].tables)
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
        "parts": {
            part.name: {
                "format": part.tables.format,
                "weight": part.weight,
                "recordings": len(part.tables.recordings),
                "captions": len(part.tables.captions),
                "missing": len(part.tables.missing),
            }
            for part in parts
            if part.name
        },
        **tables.counts,
    }


def _read_parts(params: ScanParams, ctx: stage.Context) -> list[union.Part]:
    """The corpus, or those that it is the union of."""
    if params.format != union.NAME:
        if params.parts:
            raise UserError("params.yaml: corpus.parts is of a union alone; set corpus.format to union, or corpus.parts to {}")
        return [_read("", params.format, corpus_directory(params.path, ctx.home), 1.0, params.shards, ctx)]
    if params.path is not None or not params.parts:
        raise UserError(
            "params.yaml: a union has its directories in corpus.parts, and corpus.path is null; "
            "set corpus.parts to {name: {format: auto, path: DIR, weight: 1.0}, …} (docs/corpora.md)"
        )
    parts = []
    for name, part in sorted(params.parts.items()):
        try:
            root = corpus_directory(part.path, ctx.home)
            parts.append(_read(name, part.format, root, part.weight, params.shards, ctx))
        except UserError as error:
            raise UserError(f"corpus.parts.{name}: {error}") from None
    return parts


def _read(name: str, format: str, root: Path, weight: float, num_shards: int, ctx: stage.Context) -> union.Part:
    with ctx.progress(0, f"scan {name}".strip(), "file") as tick:
        found = inventory.take(root, ctx.workers, cache=ctx.digests, progress=tick)
    found.check_not_empty()
    return union.Part(name, weight, found, registry.read(format, found, num_shards))


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
