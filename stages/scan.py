"""List the recordings and captions of an external corpus. Files are digested, not decoded."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from soundmill import disk, hashing, manifest, shards, stage
from soundmill.corpora import forgotten as lists
from soundmill.corpora import inventory, registry, terms
from soundmill.corpora.forgotten import Forgotten
from soundmill.corpora.registry import Directory, ScanParams, UnionPart, directories, named, unite
from soundmill.stage import Context, Input, Output

TABLES = ("recordings.parquet", "captions.parquet")
NAMED = 20  # entries of each kind in the metrics; `soundmill corpus check` lists all


def run(params: ScanParams, ctx: Context, corpus: Output, refused: Output = None, forgotten: Input = None) -> dict[str, Any]:
    """Write the tables of recordings and captions; unusable files and `forgotten` recordings go to quarantine.

    Recordings that `corpus.terms` refuses are in quarantine and `refused`, but also in the tables, so that copies of their sound
    are found and other terms rerun no stage before `splits`.

    Runs in every `dvc repro`. If no file has changed, it links the last tables and records no run.
    """
    left_out = lists.read(forgotten)
    taken = [(directory, _take(directory, params, left_out, ctx)) for directory in directories(params, ctx.home)]
    kept = ctx.kept / hashing.digest([_facts(files, ctx) for _, files in taken], left_out.identity())
    corpus.mkdir(parents=True)
    try:
        outcome = hashing.load_checksummed((kept / "outcome.json").read_bytes())
        damaged = [name for name in TABLES if not hashing.is_intact(kept / name, outcome["tables"][name])]
    except OSError:
        outcome, damaged = None, []
    except ValueError:
        outcome, damaged = None, ["outcome.json"]
    if damaged:
        outcome = None
        disk.break_cache_link(kept)
        ctx.report_damaged(kept, damaged)
    if outcome:
        for name in TABLES:
            os.link(kept / name, corpus / name)
    else:
        ctx.tracking.start()
        outcome = _write_tables(params, taken, left_out, corpus)
        _keep(outcome, corpus, kept)
    if refused:
        shards.write_rows(outcome["refused"], refused, manifest.REFUSED)
    ctx.quarantine.extend(outcome["rejected"])
    for row in outcome["refused"]:
        ctx.reject(row["path"], manifest.TERMS_REASON, row["detail"])
    return outcome["metrics"]


def _facts(files: inventory.Inventory, ctx: Context) -> list[Any]:
    """Everything that the tables depend on."""
    audio = [[manifest.path_text(file.raw_path), file.size, file.digest] for file in files.audio]
    names = map(manifest.path_text, sorted(files.metadata))
    metadata = list(map(list, zip(names, files.metadata_digests(ctx.workers), strict=True)))
    return [audio, metadata, files.rejected, files.ignored, files.num_files, list(files.remarks.values())]


def _keep(outcome: dict[str, Any], corpus: Path, kept: Path) -> None:
    """Keep the tables for the next run, in place of the last ones."""
    shutil.rmtree(kept.parent, ignore_errors=True)
    kept.mkdir(parents=True)
    for name in TABLES:
        os.link(corpus / name, kept / name)
    packed = hashing.dump_checksummed({**outcome, "tables": {name: hashing.file_digest(kept / name) for name in TABLES}})
    disk.write_atomically(kept / "outcome.json", lambda path: path.write_bytes(packed))


def _write_tables(
    params: ScanParams, taken: list[tuple[Directory, inventory.Inventory]], left_out: Forgotten, corpus: Path
) -> dict[str, Any]:
    """Read captions and labels, and write the tables; returns rejected rows, refused ones and metrics."""
    parts = []
    for directory, files in taken:
        with named(directory.name):
            tables = registry.read(directory.format, files, params.shards)
            terms.fill(tables, files)
            tables.fill_file_tags(files)
        parts.append(UnionPart(directory.name, directory.weight, files, tables))
    files, tables = unite(parts)
    left_out.leave_out_recordings(tables)
    refused = params.terms.refused(tables.recordings)
    shards.write_rows(tables.recordings, corpus / "recordings.parquet", manifest.RECORDINGS)
    shards.write_rows(tables.captions, corpus / "captions.parquet", manifest.CAPTIONS)
    reported = {kind: getattr(tables, kind) for kind in ("missing", "orphans", "collisions", "ambiguous")}
    metrics = {
        "files": files.num_files,
        "recordings": len(tables.recordings),
        "refused": len(refused),
        "bytes": sum(row["size"] for row in tables.recordings),
        "ignored": sum(files.ignored.values()),
        "ignored_kinds": files.ignored,
        "captions": len(tables.captions),
        "labels": len({label for row in tables.recordings + tables.captions for label in row["labels"]}),
        "splits": Counter(row["split"] for row in tables.recordings if row["split"]),
        "folds": Counter(str(row["fold"]) for row in tables.recordings if row["fold"] is not None),
        "format": tables.format,
        "matched": len(tables.matched),
        **{kind: len(entries) for kind, entries in reported.items()},
        **{f"{kind}_first": entries[:NAMED] for kind, entries in reported.items()},
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
    return {"rejected": files.rejected + tables.rejected, "refused": refused, "metrics": metrics}


def _take(directory: Directory, params: ScanParams, left_out: Forgotten, ctx: Context) -> inventory.Inventory:
    with named(directory.name):
        with ctx.progress(0, f"scan {directory.name}".strip(), "file") as tick:
            files = inventory.list_files(
                directory.root,
                ctx.workers,
                cache=ctx.digests,
                follow_links=directory.follow_links,
                max_seconds=params.max_seconds,
                progress=tick,
            )
        files.check_not_empty()
        left_out.leave_out_files(files)
    return files


if __name__ == "__main__":
    stage.main(run, section="corpus", always_runs=True)
