"""Give clips their captions, labels and splits, and lay them out as TANGO reads them: JSON lines and AudioCaps names."""

from __future__ import annotations

import io
import itertools
import os
import wave
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import soundfile
from pydantic import Field, field_validator, model_validator

from soundmill import manifest, shards, stage
from soundmill.corpora import matching, splits
from soundmill.errors import UserError
from soundmill.params import Probability, Seed, StageParams

NAMED = 20  # how many missing or orphan ids the metrics name
ROWS_AT_ONCE = 4096


class RenameParams(StageParams):
    dataset: str = Field(min_length=1)
    location: str = Field(min_length=1, description="what stands before the file names in the JSON lines")
    caption_template: str
    valid_fraction: Probability
    test_fraction: Probability
    duplicates: Literal["fail", "drop"] = Field(description="what becomes of the same sound in two of the corpus's own splits")
    seed: Seed

    @field_validator("caption_template")
    @classmethod
    def _has_label(cls, template: str) -> str:
        if "{label}" not in template:
            raise ValueError("must contain {label}, the place of the clip's label")
        return template

    @model_validator(mode="after")
    def _leaves_training(self) -> RenameParams:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction + test_fraction must be below 1: nothing would be left to train on")
        return self


def run(
    params: RenameParams,
    ctx: stage.Context,
    corpus: stage.Input,
    segments: stage.Input,
    clips: stage.Input,
    audiocaps: stage.Output,
    catalog: stage.Output,
    quality: stage.Input = None,
    duplicates: stage.Input = None,
) -> dict[str, Any]:
    """Write the catalog (one row per clip), train/valid/test JSON lines and the named WAVs; report what did not match.

    Clips that `quality` rejects are left out. Recordings that `duplicates` joins share a split, or, where the corpus's own splits
    part them, the run fails or drops one of the two, as `duplicates` in the parameters says.
    """
    rejected = _rejected(quality)
    described = _describe(corpus, segments, clips, rejected, params.caption_template)
    pairs = _pairs(duplicates, described.clips)
    split_of, decided_by = _assign(params, corpus, described.clips, pairs)
    table = described.clips.append_column("split", _strings(split_of[name] for name in _values(described.clips, "recording_id")))
    dropped = _parted(params, ctx, corpus, table, pairs, decided_by)
    table = table.filter(pc.invert(pc.is_in(table["clip_id"], _strings(dropped))))
    with shards.ShardWriter(catalog, manifest.CATALOG) as writer:
        writer.write_table(table)

    left_out = rejected | set(dropped)
    _write_audio(ctx, described.ids, left_out, audiocaps / "audio")
    json_rows = {split: _write_json(params, table, split, audiocaps / f"{split}.json") for split in manifest.SPLITS}
    orphans = _values(table.filter(pc.equal(pc.list_value_length(table["captions"]), 0)), "clip_id")
    label_counts = Counter(pc.list_flatten(table["labels"]).to_pylist())
    training = table.filter(pc.equal(table["split"], "train"))
    clip_counts, recording_counts = (_count_by_split(rows) for rows in (table, _one_per_recording(table)))
    _say_gaps(ctx.name, described.missing, orphans)
    if decided_by != "given" and described.given:
        print(
            f"{ctx.name}: the given splits leave nothing to train on, or call all of it train where there are folds; they are put "
            f"aside, and splits are by {decided_by}"
        )
    return {
        "clips": table.num_rows,
        "rejected": len(rejected),
        "duplicate_pairs": len(pairs),
        "duplicates_dropped": len(dropped),
        "matched": described.matched,
        "missing": len(described.missing),
        "missing_first": described.missing[:NAMED],
        "orphans": len(orphans),
        "orphans_first": orphans[:NAMED],
        "uncaptioned": len(orphans),
        "captioned_by": dict(described.origins),
        "splits_by": decided_by,
        "clips_by_split": clip_counts,
        "recordings_by_split": recording_counts,
        "captions_by_split": json_rows,
        "labels": len(label_counts),
        "clips_by_label": dict(sorted(label_counts.items())),
        "labels_absent_from_train": sorted(set(label_counts) - set(pc.list_flatten(training["labels"]).to_pylist())),
    }


@dataclass
class _Described:
    """Every clip that is kept, as the catalog has it but for the split (a table: lists of mappings take ten times as much)."""

    clips: pa.Table
    matched: int  # captions
    missing: list[str]
    origins: Counter[str]
    given: bool  # whether any recording brings a split
    ids: dict[Path, pa.Array]  # of all clips, by shard


UNSPLIT = pa.schema([column for column in manifest.CATALOG if column.name != "split"])


def _describe(corpus: Path, segments: Path, clips: Path, rejected: set[str], template: str) -> _Described:
    """Match captions with clips, one shard of recordings after the other."""
    columns = ["recording_id", "shard", "start_time", "labels", "split", "corpus", "weight", "group"]
    recordings = shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS, columns)
    captions = shards.read_table(corpus / "captions.parquet", manifest.CAPTIONS)
    # A caption whose recording is absent goes with none of the shards, at the end.
    owners = pc.index_in(captions["recording_id"], recordings["recording_id"].combine_chunks())
    captions = captions.append_column("shard", pc.fill_null(recordings["shard"].take(owners), -1))
    recordings_of, captions_of = shards.by_shard(recordings), shards.by_shard(captions)
    planned_of = shards.by_shard(shards.read_table(segments, manifest.SEGMENTS, columns=["clip_id", "shard"]))
    paths = {path.name: path for path in shards.shard_paths(clips)}
    found = _Described(UNSPLIT.empty_table(), 0, [], Counter(), pc.any(pc.is_valid(recordings["split"])).as_py() or False, {})
    tables, strange = [], []
    for shard in [*recordings_of, -1]:
        own = _rows(recordings_of.get(shard))
        origin = {row["recording_id"]: row for row in own}
        path = paths.pop(shards.shard_name(shard), None)
        rows = _clip_rows(path, planned_of.get(shard), clips)
        if path:
            found.ids[path] = _strings(row["clip_id"] for row in rows)
        strange += [row["clip_id"] for row in rows if row["recording_id"] not in origin]
        rows = [row for row in rows if row["recording_id"] in origin]
        matched = matching.match(own, _rows(captions_of.get(shard)), rows, template)
        found.matched += matched.matched
        found.missing += matched.missing
        entries = []
        for row in rows:
            if row["clip_id"] in rejected:
                continue
            recording, said = origin[row["recording_id"]], matched.clips[row["clip_id"]]
            found.origins[said.origin] += 1
            told = {"captions": said.captions, "labels": said.labels}
            entries.append({**row, **told, **{name: recording[name] for name in ("shard", "corpus", "weight", "group")}})
        tables.append(pa.Table.from_pylist(entries, UNSPLIT))
    if strange or paths:
        which = f"clip {strange[0]!r}" if strange else min(paths)
        raise UserError(f"{clips}: {which} is of no recording in {corpus}; remake it: `dvc repro -f segment resample`")
    found.clips = pa.concat_tables(tables).combine_chunks()
    _check_clips(found.clips, clips, len(rejected))
    return found


def _rows(table: pa.Table | None) -> list[dict[str, Any]]:
    return [] if table is None else table.to_pylist()


def _clip_rows(path: Path | None, planned: pa.Table | None, clips: Path) -> list[dict[str, Any]]:
    """Names and places of the clips of one shard, each of which must be planned; `path` None: no clip survived in it."""
    if path is None:
        return []
    table = shards.read_table(path, manifest.CLIPS, ["clip_id", "recording_id", "source", "start"])
    ids = pa.array([], pa.string()) if planned is None else planned["clip_id"].combine_chunks()
    strangers = table.filter(pc.invert(pc.is_in(table["clip_id"], ids)))
    if strangers.num_rows:
        raise UserError(
            f"{clips}: {strangers.num_rows} clips are in no plan (first: {strangers['clip_id'][0]}); "
            "remake it: `dvc repro -f segment resample`"
        )
    return table.to_pylist()


def _check_clips(table: pa.Table, clips: Path, rejected: int) -> None:
    if not table.num_rows:
        raise UserError(
            f"{clips}: all {rejected} clips are rejected; see data/quarantine/quality.parquet for the reasons"
            if rejected
            else f"{clips}: no clip at all; see data/quarantine/segment.parquet and resample.parquet for the reasons"
        )
    counts = pc.value_counts(table["clip_id"].combine_chunks())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise UserError(
            f"{clips}: {len(repeated)} clip ids occur twice (first: {repeated[0]['values']}); "
            "remake it: `dvc repro -f segment resample`"
        )


def _rejected(quality: Path | None) -> set[str]:
    if quality is None:
        return set()
    table = shards.read_table(quality, manifest.VERDICTS, ["clip_id", "rejected"])
    return set(_values(table.filter(pc.is_valid(table["rejected"])), "clip_id"))


def _pairs(duplicates: Path | None, table: pa.Table) -> list[tuple[int, int]]:
    """Rows of the table that are the same sound, of two recordings each: a pair, or alike to rejected clips that hang together."""
    if duplicates is None:
        return []
    row_of = {clip_id: row for row, clip_id in enumerate(_values(table, "clip_id"))}
    recordings = _values(table, "recording_id")
    found = shards.read_table(duplicates, manifest.DUPLICATES, ["a", "b"])
    pairs = []
    near: dict[str, list[str]] = defaultdict(list)  # of rejected clips
    for a, b in zip(_values(found, "a"), _values(found, "b"), strict=True):
        if {a, b} <= row_of.keys():
            pairs.append((row_of[a], row_of[b]))
        for one, other in ((a, b), (b, a)):
            if one not in row_of:
                near[one].append(other)
    seen: set[str] = set()
    for start in near:
        if start not in seen:
            together = _reached(start, near)
            seen |= together
            kept = sorted(row_of[name] for name in together & row_of.keys())
            own = [row for row in kept if recordings[row] == recordings[kept[0]]]
            others = [row for row in kept if recordings[row] != recordings[kept[0]]]
            pairs.extend(itertools.product(kept[:1], others))
            pairs.extend(itertools.product(own[1:], others[:1]))
    return [(a, b) for a, b in dict.fromkeys(pairs) if recordings[a] != recordings[b]]


def _reached(start: Any, near: Mapping[Any, list[Any]]) -> set[Any]:
    """`start` and all that is reached from it."""
    together, todo = {start}, [start]
    while todo:
        new = [one for one in near.get(todo.pop(), ()) if one not in together]
        together.update(new)
        todo.extend(new)
    return together


def _assign(
    params: RenameParams, corpus: Path, table: pa.Table, pairs: list[tuple[int, int]]
) -> tuple[dict[str, str], splits.Source]:
    """Split of every recording, dealt so that none of the pairs is parted that the corpus's own splits or folds do not part."""
    columns = ["recording_id", "split", "fold", "group"]
    recordings = shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS, columns)
    usable = recordings.filter(pc.is_in(recordings["recording_id"], table["recording_id"].combine_chunks())).to_pylist()
    names, labels, captions = (table[name] for name in ("recording_id", "labels", "captions"))
    labelled = pc.greater(pc.list_value_length(labels), 0)
    main = dict(
        zip(
            reversed(names.filter(labelled).to_pylist()),
            reversed(pc.list_element(labels.filter(labelled), 0).to_pylist()),
            strict=True,
        )
    )
    described = set(names.filter(pc.greater(pc.list_value_length(captions), 0)).to_pylist())
    joined = [(names[a].as_py(), names[b].as_py()) for a, b in pairs]
    return splits.assign(
        splits.join(usable, joined) if joined else usable,
        main,
        described,
        valid_fraction=params.valid_fraction,
        test_fraction=params.test_fraction,
        seed=params.seed,
    )


def _parted(
    params: RenameParams,
    ctx: stage.Context,
    corpus: Path,
    table: pa.Table,
    pairs: list[tuple[int, int]],
    decided_by: splits.Source,
) -> list[str]:
    """Ids of the clips to drop because another split has the same sound or video; without leave to drop them, a UserError."""
    ids, sources, split = (_values(table, name) for name in ("clip_id", "source", "split"))
    stays_of = _across_splits(split, pairs)
    if decided_by == "given":
        # After what hangs together by sound: of two reasons the better one is told.
        stays_of = _across_given_splits(corpus, _values(table, "recording_id"), split) | stays_of
        for copy, stays in stays_of.items():  # what stays by sound may have to go by its video
            while stays in stays_of:
                stays = stays_of[stays]
            stays_of[copy] = stays
    if stays_of and params.duplicates == "fail":
        first = "; ".join(
            f"{sources[copy]} ({ids[copy]}, {split[copy]}) and {sources[stays]} ({ids[stays]}, {split[stays]})"
            for copy, stays in sorted(stays_of.items())[:5]
        )
        raise UserError(
            f"{len(stays_of)} clips are the same sound or video as one in another of the corpus's own splits ({decided_by}), "
            f"first: {first}. Mend the corpus, or let `rename.duplicates: drop` leave out the copies in training and validation"
        )
    for copy, stays in stays_of.items():
        what = f"{ids[copy]} ({split[copy]}) is the same sound or video as {ids[stays]} ({split[stays]})"
        ctx.reject(sources[copy], "duplicate", what)
    return sorted(ids[copy] for copy in stays_of)


def _across_splits(split: list[str], pairs: list[tuple[int, int]]) -> dict[int, int]:
    """Rows to drop → a row that stays, of rows that hang together by pairs but lie in several splits.

    Of many copies of one sound not every two are a pair, so a copy need not be one with what stays.
    """
    near: dict[int, list[int]] = defaultdict(list)
    for a, b in pairs:
        near[a].append(b)
        near[b].append(a)
    found: dict[int, int] = {}
    seen: set[int] = set()
    for start in sorted(near):
        if start in seen:
            continue
        together = _reached(start, near)
        seen |= together
        stays = min(together, key=lambda row: (splits.PROTECTED.index(split[row]), row))
        found.update((row, stays) for row in together if split[row] != split[stays])
    return found


def _across_given_splits(corpus: Path, owners: list[str], split: list[str]) -> dict[int, int]:
    """The same for clips of recordings that are of one YouTube video, and which the corpus itself puts into several splits.

    `split`, which such a video has as a whole, becomes the recordings' own.
    """
    columns = ["recording_id", "split", "group"]
    recordings = _rows(shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS, columns))
    videos = manifest.youtube_videos(recordings)
    told = {row["recording_id"]: (row["group"], row["split"]) for row in recordings if row["split"] and row["group"] in videos}
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, owner in enumerate(owners):
        if owner in told:
            video, split[row] = told[owner]
            rows_of[video].append(row)
    found: dict[int, int] = {}
    for rows in rows_of.values():
        stays = min(rows, key=lambda row: (splits.PROTECTED.index(split[row]), row))
        found.update((row, stays) for row in rows if split[row] != split[stays])
    return found


def _write_json(params: RenameParams, table: pa.Table, split: str, path: Path) -> int:
    chosen = table.filter(pc.equal(table["split"], split)).select(["clip_id", "captions"])
    return manifest.write_tango_json(
        (
            {"dataset": params.dataset, "location": f"{params.location.rstrip('/')}/{row['clip_id']}.wav", "captions": caption}
            for batch in chosen.to_batches(max_chunksize=ROWS_AT_ONCE)
            for row in batch.to_pylist()
            for caption in row["captions"]
        ),
        path,
    )


def _write_audio(ctx: stage.Context, ids_of: dict[Path, pa.Array], left_out: set[str], directory: Path) -> None:
    """Write every clip of these shards but those left out as `<clip_id>.wav` below `directory`."""
    jobs = []
    for path, ids in sorted(ids_of.items()):
        absent = left_out.intersection(ids.to_pylist())
        jobs.append(shards.Job(path.stem, (path, absent), len(ids), shards.digest(shards.signature(path), sorted(absent))))
    _, named = ctx.make_shards(name_clips, jobs, "named")
    directory.mkdir(parents=True)
    for job in jobs:
        with os.scandir(named / job.name) as files:
            for wav in files:
                # Linked, not moved: if we are killed here, the rerun still finds every finished folder.
                os.link(wav.path, directory / wav.name)


def name_clips(source: Path, left_out: set[str], output: Path, previous: Path | None = None) -> shards.Report:
    """Write the clips of one shard as WAV files of the same samples, in the new folder `output`."""
    report = shards.Report()
    known = {key for (key,) in shards.read_items(previous)} if previous else set()
    output.mkdir()
    new = []
    for number, row in enumerate(shards.read_rows(source, manifest.CLIPS, ["clip_id", "digest"])):
        name, key = f"{manifest.check_clip_id(row['clip_id'])}.wav", f"{row['clip_id']} {row['digest']}"
        if row["clip_id"] in left_out:
            continue
        if key in known:
            os.link(previous / name, output / name)
        else:
            new.append(number)
        report.items.append([key])
    for row in shards.read_rows(source, manifest.CLIPS, ["clip_id", "digest", "audio"], wanted=new):
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
        path = output / f"{row['clip_id']}.wav"
        with wave.open(str(path), "wb") as file:  # soundfile's bytes, in a seventh of its time
            file.setparams((1, 2, rate, len(samples), "NONE", ""))
            file.writeframesraw(samples.astype("<i2", copy=False).tobytes())
    return report


def _values(table: pa.Table, column: str) -> list[Any]:
    return table[column].to_pylist()


def _strings(values: Iterable[str]) -> pa.Array:
    return pa.array(values, pa.string())


def _count_by_split(table: pa.Table) -> dict[str, int]:
    counts = Counter(_values(table, "split"))
    return {split: counts[split] for split in manifest.SPLITS}


def _one_per_recording(table: pa.Table) -> pa.Table:
    return (
        table.group_by("recording_id", use_threads=False).aggregate([("split", "first")]).rename_columns(["recording_id", "split"])
    )


def _say_gaps(name: str, missing: list[str], orphans: list[str]) -> None:
    if missing:
        print(f"{name}: {len(missing)} captions have no clip, first {missing[0]}")
    if orphans:
        print(f"{name}: {len(orphans)} clips have neither caption nor label and are not in the JSON lines, first {orphans[0]}")


if __name__ == "__main__":
    stage.main(run, section="rename")
