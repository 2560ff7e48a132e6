"""Assign recordings to train, valid and test, without duplicates across splits, for all variants of clips."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from soundmill import manifest, shards, stage, terminal
from soundmill.corpora import catalog
from soundmill.corpora import splits as assignment
from soundmill.errors import UserError
from soundmill.params import Probability, Seed, StageParams

Pairs = list[tuple[int, int]]  # rows of a table of clips


class SplitsParams(StageParams):
    valid_fraction: Probability
    test_fraction: Probability
    duplicates: Literal["fail", "drop"] = Field(description="if the corpus's own splits share a sound: fail, or drop the copies")
    seed: Seed

    @model_validator(mode="after")
    def _leaves_training(self) -> Self:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction + test_fraction must be below 1, or nothing would be left for training")
        return self


def run(
    params: SplitsParams,
    ctx: stage.Context,
    corpus: stage.Input,
    clips: stage.Input,
    quality: stage.Input,
    duplicates: stage.Input,
    splits: stage.Output,
    refused: stage.Input = None,
) -> dict[str, Any]:
    """Write the split of every recording, and its stretches that are copies of sound in another split.

    Recordings that `corpus.terms` has `refused` have no split, nor have those of which every clip is a copy of a refused sound.
    Other such clips are among the copies.

    Shares count recordings with a clip of the variant `default` that `quality` keeps. Recordings with `duplicates` of each other
    share a split; if the corpus's own splits separate them, the run fails or drops one of them, depending on the parameters.
    """
    recordings = shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS)
    captions = shards.read_table(corpus / "captions.parquet", manifest.CAPTIONS, ["recording_id", "labels"])
    labels_of, described = assignment.describe(*map(_labels, (recordings, captions)))
    table = catalog.kept_clips(corpus, recordings, clips, quality)
    recordings, table, copied = _without_refused(ctx, recordings, table, clips, duplicates, refused)
    pairs = assignment.row_pairs(duplicates, table)
    split_of, decided_by, sources = _assign(params, recordings, table, pairs, labels_of, described)
    table = catalog.with_splits(table, split_of)
    left_out = _leave_out(params, ctx, recordings, table, pairs, decided_by)
    stretch_of = catalog.stretches(quality, left_out | copied)
    stretches: dict[str, list[dict[str, float]]] = defaultdict(list)
    for clip_id, recording_id in (left_out | copied).items():
        start, end = stretch_of[clip_id]
        stretches[recording_id].append({"start": start, "end": end})
    all_splits = assignment.extend(recordings.to_pylist(), split_of, decided_by)
    rows = [{"recording_id": name, "split": split, "copies": stretches[name]} for name, split in all_splits.items()]
    shards.write_rows(rows, splits, manifest.RECORDING_SPLITS)
    if decided_by != "given" and pc.any(pc.is_valid(recordings["split"])).as_py():
        terminal.say(
            f"{ctx.name}: the given splits are ignored, because they have no training part, or only one although there are folds; "
            f"splits are by {decided_by}"
        )
    rows = zip(*(table[name].to_pylist() for name in ("clip_id", "recording_id", "split")), strict=True)
    used = {recording_id: split for clip_id, recording_id, split in rows if clip_id not in left_out}
    labels_by_split = ((split, labels_of.get(recording_id, ())) for recording_id, split in used.items())
    for line in assignment.warnings(labels_by_split, params.test_fraction, sources):
        terminal.warn(f"{ctx.name}: warning: {line}")
    counts = Counter(all_splits.values())
    return {
        "splits_by": decided_by,
        "recordings_by_split": {split: counts[split] for split in manifest.SPLITS},
        "without_default_clip": len(all_splits) - len(split_of),
        "duplicate_pairs": len(pairs),
        "duplicates_dropped": len(left_out),
        "copies_of_refused": len(copied),
    }


def _without_refused(
    ctx: stage.Context, recordings: pa.Table, table: pa.Table, clips: Path, duplicates: Path, refused: Path | None
) -> tuple[pa.Table, pa.Table, dict[str, str]]:
    """The recordings and their clips without refused ones and all copies of their sound, which go to quarantine.

    Also the copies (id → recording) in recordings of which other clips are left. Clips that `quality` rejects are among the copies,
    because other variants may have their sound.
    """
    rows = shards.read_table(refused, manifest.REFUSED).to_pylist() if refused else []
    if not rows:
        return recordings, table, {}
    why = {row["recording_id"]: f"{row['path']}: {row['detail']}" for row in rows}
    every = [shards.read_table(path, manifest.CLIPS, ["clip_id", "recording_id", "source"]) for path in shards.shard_paths(clips)]
    all_clips = pa.concat_tables(every)
    origin_of = assignment.of_recordings(duplicates, all_clips, set(why))
    gone = set(why)
    own = table.filter(pc.invert(pc.is_in(table["recording_id"], pa.array(gone, pa.string()))))
    left = own.filter(pc.invert(pc.is_in(own["clip_id"], pa.array(origin_of, pa.string()))))
    copied = all_clips.filter(pc.is_in(all_clips["clip_id"], pa.array(origin_of, pa.string()))).to_pylist()
    for row in copied:
        clip_id, owner = origin_of[row["clip_id"]]
        ctx.reject(
            row["source"], manifest.TERMS_REASON, f"{row['clip_id']} is the same sound or video as {clip_id} of {why[owner]}"
        )
    if not left.num_rows:
        raise UserError(
            f"corpus.terms: no clip is left: all are of refused recordings or copies of them ({next(iter(why.values()))})"
        )
    remaining = set(left["recording_id"].to_pylist())
    gone |= {row["recording_id"] for row in copied} - remaining
    kept = recordings.filter(pc.invert(pc.is_in(recordings["recording_id"], pa.array(gone, pa.string()))))
    return kept, left, {row["clip_id"]: row["recording_id"] for row in copied if row["recording_id"] in remaining}


def _labels(table: pa.Table) -> Iterator[tuple[str, list[str]]]:
    return zip(table["recording_id"].to_pylist(), table["labels"].to_pylist(), strict=True)


def _assign(
    params: SplitsParams, recordings: pa.Table, table: pa.Table, pairs: Pairs, labels_of: dict[str, list[str]], described: set[str]
) -> tuple[dict[str, str], assignment.Source, int]:
    """Split of every recording with a clip, which `pairs` share if they may; what decided it; and the number of sources."""
    names = table["recording_id"].to_pylist()
    usable = recordings.filter(pc.is_in(recordings["recording_id"], table["recording_id"].combine_chunks())).to_pylist()
    joined = [(names[a], names[b]) for a, b in pairs]
    rows = assignment.join(usable, joined) if joined else usable
    fractions = {"valid_fraction": params.valid_fraction, "test_fraction": params.test_fraction}
    main = {name: labels[0] for name, labels in labels_of.items() if labels}
    split_of, decided_by = assignment.assign(rows, main, described, **fractions, seed=params.seed)
    return split_of, decided_by, len({row["group"] or row["recording_id"] for row in rows})


def _leave_out(
    params: SplitsParams, ctx: stage.Context, recordings: pa.Table, table: pa.Table, pairs: Pairs, decided_by: assignment.Source
) -> dict[str, str]:
    """Clips to drop (id → recording) because another split has the same sound; UserError if dropping is not allowed."""
    stays_of, split = assignment.to_leave_out(recordings, table, pairs, decided_by)
    ids, owners, sources = (table[name].to_pylist() for name in ("clip_id", "recording_id", "source"))
    if stays_of and params.duplicates == "fail":
        first = "; ".join(
            f"{sources[copy]} ({ids[copy]}, {split[copy]}) and {sources[stays]} ({ids[stays]}, {split[stays]})"
            for copy, stays in sorted(stays_of.items())[:5]
        )
        raise UserError(
            f"{len(stays_of)} clips are the same sound or video as one in another of the corpus's own splits ({decided_by}), "
            f"first: {first}. Correct the corpus, or set `splits.duplicates: drop` to drop the copies in training and validation"
        )
    for copy, stays in stays_of.items():
        what = f"{ids[copy]} ({split[copy]}) is the same sound or video as {ids[stays]} ({split[stays]})"
        ctx.reject(sources[copy], "duplicate", what)
    return {ids[copy]: owners[copy] for copy in sorted(stays_of)}


if __name__ == "__main__":
    stage.main(run, section="splits")
