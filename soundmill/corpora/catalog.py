"""The catalog of one variant of clips: captions, labels, weight and group of each clip."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from soundmill import manifest, shards
from soundmill.corpora import matching
from soundmill.corpora.matching import Heard
from soundmill.errors import UserError

# `origin`: where a clip's captions come from; see matching.Origin.
UNSPLIT = pa.schema([*(column for column in manifest.CATALOG if column.name != "split"), ("origin", pa.string())])
REMAKE = "make them again: `dvc repro -f resample`"


@dataclass(frozen=True)
class LeastScores:
    """Scores of manifest.ZERO_SHOT that a text needs."""

    tag: float
    caption: float | None  # None: all captions are kept

    def heard(self, row: Mapping[str, Any]) -> Heard:
        """What a row of manifest.ZERO_SHOT says of its clip."""
        tags = [tag["tag"] for tag in row["tags"] if tag["score"] >= self.tag]
        captions = [] if self.caption is None else row["captions"]
        return Heard(tags, {caption["caption"] for caption in captions if caption["score"] < self.caption})


@dataclass(frozen=True)
class Fit:
    """Captions (`clip_id`, `caption`, `score`) and words (`clip_id`, `tag`, `score`) that were compared with clips."""

    captions: pa.Table
    words: pa.Table
    least: LeastScores

    @classmethod
    def of(cls, scores: pa.Table, least: LeastScores) -> Fit:
        """The rows of manifest.ZERO_SHOT, one by text."""
        return cls(_by_text(scores, "captions", "caption"), _by_text(scores, "tags", "tag"), least)

    @property
    def tags(self) -> pa.Table:
        return self.words.filter(pc.greater_equal(self.words["score"], self.least.tag))

    @property
    def unfit(self) -> pa.Table:
        """The captions that are left out."""
        if self.least.caption is None:
            return self.captions.slice(0, 0)
        return self.captions.filter(pc.less(self.captions["score"], self.least.caption))


def _by_text(scores: pa.Table, column: str, name: str) -> pa.Table:
    lists = scores[column].combine_chunks()
    texts = pc.list_flatten(lists)
    owners = scores["clip_id"].combine_chunks().take(pc.list_parent_indices(lists))
    return pa.table({"clip_id": owners, name: pc.struct_field(texts, name), "score": pc.struct_field(texts, "score")})


@dataclass
class Described:
    """The kept clips, a table of UNSPLIT, since lists of dicts take ten times the memory."""

    clips: pa.Table
    matched: int  # captions
    missing: list[str]  # captions without a clip
    rejected: int  # clips that break a quality rule


def describe(
    corpus: Path,
    clips: Path,
    quality: Path,
    scores: pa.Table,
    least: LeastScores,
    templates: Sequence[str],
    used: Container[str],
) -> Described:
    """Match captions with the clips below `clips` that `quality` keeps, shard by shard; only those of recordings in `used`.

    Captions that do not fit the sound by `scores` (manifest.ZERO_SHOT) are left out. A clip without a caption gets one by the
    first of `templates` whose fields are known (captioning.py).
    """
    rejected = _rejected(quality)
    tempo_of = _tempi(corpus)
    scores_of = shards.by_shard(scores)
    paths = {path.name: path for path in shards.shard_paths(clips)}
    result = Described(UNSPLIT.empty_table(), 0, [], len(rejected))
    tables, unknown = [], []
    for shard, recordings, captions in by_shard(corpus):
        recording_of = {row["recording_id"]: row for row in recordings.to_pylist()}
        rows = clip_rows(paths.pop(shards.shard_name(shard), None))
        unknown += [row["clip_id"] for row in rows if row["recording_id"] not in recording_of]
        left_out = {name for name in recording_of if name not in used}
        own = [row for name, row in recording_of.items() if name in used]
        own = [{**row, "bpm": tempo_of.get(row["recording_id"])} for row in own] if tempo_of else own
        texts = [row for row in captions.to_pylist() if row["recording_id"] not in left_out]
        rows = [row for row in rows if row["recording_id"] in recording_of and row["recording_id"] not in left_out]
        heard = {row["clip_id"]: least.heard(row) for row in (scores_of[shard].to_pylist() if shard in scores_of else ())}
        matched = matching.match(own, texts, rows, templates, heard)
        result.matched += matched.matched
        result.missing += matched.missing
        entries = []
        for row in rows:
            if row["clip_id"] in rejected:
                continue
            recording, description = recording_of[row["recording_id"]], matched.clips[row["clip_id"]]
            text = {name: getattr(description, name) for name in ("captions", "labels", "origin")}
            entries.append({**row, **text, **{name: recording[name] for name in ("shard", "corpus", "weight", "group")}})
        tables.append(pa.Table.from_pylist(entries, UNSPLIT))
    if unknown or paths:
        which = f"clip {unknown[0]!r}" if unknown else min(paths)
        raise _unknown_recording(clips, which, corpus)
    result.clips = pa.concat_tables(tables).combine_chunks()
    _check(result.clips, clips, len(rejected))
    return result


def by_shard(corpus: Path) -> Iterator[tuple[int, pa.Table, pa.Table]]:
    """Each shard with its recordings and their captions. Captions of missing recordings come last, as shard -1."""
    columns = ["recording_id", "path", "shard", "start_time", "labels", "corpus", "weight", "group", "file_tags"]
    recordings = shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS, columns)
    captions = shards.read_table(corpus / "captions.parquet", manifest.CAPTIONS)
    owners = pc.index_in(captions["recording_id"], recordings["recording_id"].combine_chunks())
    captions = captions.append_column("shard", pc.fill_null(recordings["shard"].take(owners), -1))
    recordings_of, captions_of = shards.by_shard(recordings), shards.by_shard(captions)
    none = recordings.schema.empty_table(), captions.schema.empty_table()
    for shard in [*recordings_of, -1]:
        yield shard, recordings_of.get(shard, none[0]), captions_of.get(shard, none[1])


def _tempi(corpus: Path) -> dict[str, float]:
    """Tempo of each stretched loop by recording, of a corpus of loops; a name has the tempo before. Empty for other corpora."""
    columns = ["recording_id", "bpm", "stretch"]
    paths = sorted((corpus / "audio").glob("*.parquet"))
    rows = (row for path in paths for row in shards.read_rows(path, manifest.LOOPS, columns))
    return {row["recording_id"]: row["bpm"] / row["stretch"] for row in rows}


def kept_clips(corpus: Path, recordings: pa.Table, clips: Path, quality: Path) -> pa.Table:
    """`clip_id`, `recording_id` and `source` of the clips below `clips` that `quality` keeps, in the order of the shards.

    `recordings` has `recording_id` of all recordings in `corpus`.
    """
    columns = ["clip_id", "recording_id", "source"]
    tables = [shards.read_table(path, manifest.CLIPS, columns) for path in shards.shard_paths(clips)]
    table = pa.concat_tables(tables).combine_chunks()
    unknown = table.filter(pc.invert(pc.is_in(table["recording_id"], recordings["recording_id"].combine_chunks())))
    if unknown.num_rows:
        raise _unknown_recording(clips, f"clip {unknown['clip_id'][0].as_py()!r}", corpus)
    rejected = _rejected(quality)
    table = table.filter(pc.invert(pc.is_in(table["clip_id"], pa.array(rejected, pa.string()))))
    _check(table, clips, len(rejected))
    return table


def _unknown_recording(clips: Path, which: str, corpus: Path) -> UserError:
    return UserError(f"{clips}: {which} is of no recording in {corpus}; {REMAKE}")


def with_splits(clips: pa.Table, split_of: Mapping[str, str]) -> pa.Table:
    """Add the splits of their recordings to clips."""
    splits = [split_of[recording_id] for recording_id in clips["recording_id"].to_pylist()]
    return clips.append_column("split", pa.array(splits, pa.string()))


def _rejected(quality: Path) -> set[str]:
    """Ids of the clips that break a rule, of manifest.VERDICTS."""
    table = shards.read_table(quality, manifest.VERDICTS, ["clip_id", "rejected"])
    return set(table.filter(pc.is_valid(table["rejected"]))["clip_id"].to_pylist())


def stretches(quality: Path, clip_ids: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Start and end of these clips in their recordings, in seconds without padding, by manifest.VERDICTS."""
    table = shards.read_table(quality, manifest.VERDICTS, ["clip_id", "start", "quality"])
    rows = table.filter(pc.is_in(table["clip_id"], pa.array(clip_ids, pa.string()))).to_pylist()
    return {row["clip_id"]: (row["start"], row["start"] + row["quality"]["seconds"]) for row in rows}


def clip_rows(path: Path | None) -> list[dict[str, Any]]:
    """Ids, places and digests of the clips of one shard; `path` None: it has no clips."""
    if path is None:
        return []
    table = shards.read_table(path, manifest.CLIPS, ["clip_id", "recording_id", "source", "start", "digest", "quality"])
    seconds = pc.struct_field(table["quality"], "seconds")
    return table.drop_columns("quality").append_column("seconds", seconds).to_pylist()


def _check(table: pa.Table, clips: Path, rejected: int) -> None:
    if not table.num_rows:
        raise UserError(
            f"{clips}: all {rejected} clips are rejected; see data/quarantine/quality/{clips.name}.parquet for the reasons"
            if rejected
            else f"{clips}: no clip at all; see data/quarantine/segment and data/quarantine/resample for the reasons"
        )
    counts = pc.value_counts(table["clip_id"].combine_chunks())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise UserError(f"{clips}: {len(repeated)} clip ids occur twice (first: {repeated[0]['values']}); {REMAKE}")
