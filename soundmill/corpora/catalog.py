"""The catalog of one variant of clips: captions, labels, weight and group of each clip.

Captions and labels are matched with clips by id and time, never by order. Captions of recordings that have none are made from what
is known of them: labels, tags in the file, names of file and folder, tempo, key, zero-shot tags.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from string import Formatter
from types import MappingProxyType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from soundmill import manifest, shards
from soundmill.audio.tempo import NAMED, named_tempo
from soundmill.errors import UserError
from soundmill.manifest import FILE_TAGS, SPLIT_NAMES, is_container, unescape_path

# `origin`: where a clip's captions come from; see Origin.
UNSPLIT = pa.schema([*(column for column in manifest.CATALOG if column.name != "split"), ("origin", pa.string())])
REMAKE = "make them again: `dvc repro -f resample`"

Row = dict[str, Any]


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
    corpus: Path, clips: Path, quality: Path, scores: pa.Table, least: LeastScores, templates: Sequence[str], used: Container[str]
) -> Described:
    """Match captions with the clips below `clips` that `quality` keeps, shard by shard; only those of recordings in `used`.

    Captions that do not fit by `scores` (manifest.ZERO_SHOT) are left out; a clip without any gets one by `templates`.
    """
    rejected = _rejected(quality)
    tempo_of = _tempi(corpus)
    scores_of = shards.by_shard(scores)
    paths = {path.name: path for path in shards.shard_paths(clips)}
    result = Described(UNSPLIT.empty_table(), 0, [], len(rejected))
    tables = []
    for shard, recordings, captions in by_shard(corpus):
        recording_of = {row["recording_id"]: row for row in recordings.to_pylist()}
        rows = clip_rows(paths.pop(shards.shard_name(shard), None))
        if unknown := [row["clip_id"] for row in rows if row["recording_id"] not in recording_of]:
            raise _unknown_recording(clips, f"clip {unknown[0]!r}", corpus)
        left_out = {name for name in recording_of if name not in used}
        own = [row for name, row in recording_of.items() if name in used]
        own = [{**row, "bpm": tempo_of.get(row["recording_id"])} for row in own] if tempo_of else own
        texts = [row for row in captions.to_pylist() if row["recording_id"] not in left_out]
        rows = [row for row in rows if row["recording_id"] not in left_out]
        heard = {row["clip_id"]: least.heard(row) for row in (scores_of[shard].to_pylist() if shard in scores_of else ())}
        matched = match(own, texts, rows, templates, heard)
        result.matched += matched.matched
        result.missing += matched.missing
        entries = []
        for row in (row for row in rows if row["clip_id"] not in rejected):
            recording, description = recording_of[row["recording_id"]], matched.clips[row["clip_id"]]
            text = {name: getattr(description, name) for name in ("captions", "labels", "origin")}
            entries.append({**row, **text, **{name: recording[name] for name in ("shard", "corpus", "weight", "group")}})
        tables.append(pa.Table.from_pylist(entries, UNSPLIT))
    if paths:
        raise _unknown_recording(clips, min(paths), corpus)
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
    """`clip_id`, `recording_id` and `source` of the clips that `quality` keeps, by shard; `recordings`: all ids in `corpus`."""
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


def clip_rows(path: Path | None) -> list[Row]:
    """Ids, places and digests of the clips of one shard; `path` None: it has no clips."""
    if path is None:
        return []
    table = shards.read_table(path, manifest.CLIPS, ["clip_id", "recording_id", "source", "start", "digest", "quality"])
    seconds = pc.struct_field(table["quality"], "seconds")
    return table.drop_columns("quality").append_column("seconds", seconds).to_pylist()


def _check(table: pa.Table, clips: Path, rejected: int) -> None:
    if not table.num_rows:
        all_rejected = f"all {rejected} clips are rejected; see data/quarantine/quality/{clips.name}.parquet"
        none_made = "no clip at all; see data/quarantine/segment and data/quarantine/resample"
        raise UserError(f"{clips}: {all_rejected if rejected else none_made} for the reasons")
    counts = pc.value_counts(table["clip_id"].combine_chunks())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise UserError(f"{clips}: {len(repeated)} clip ids occur twice (first: {repeated[0]['values']}); {REMAKE}")


TOLERANCE = 0.5  # seconds between the starts of caption and clip: AudioCaps has integers, tools write 79.999 or 80.02

Origin = Literal["window", "recording", "tags", "file_tags", "label", "name", "none"]


@dataclass(frozen=True)
class Heard:
    """What a network that compares sounds with texts says of a clip."""

    tags: Sequence[str] = ()  # words that fit it, best first
    unfit: Set[str] = frozenset()  # captions that do not


@dataclass
class Description:
    """Captions and labels of a clip; `origin`: where the captions come from."""

    captions: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    origin: Origin = "none"


@dataclass
class Matching:
    """Descriptions by clip id, and the captions without a clip."""

    clips: dict[str, Description] = field(default_factory=dict)
    matched: int = 0  # captions of at least one clip
    missing: list[str] = field(default_factory=list)


def match(
    recordings: Iterable[Row],
    captions: Iterable[Row],
    clips: Iterable[Row],
    templates: Sequence[str],
    heard: Mapping[str, Heard] = MappingProxyType({}),
) -> Matching:
    """Describe every clip by the captions of its window, else of its recording, else by the first of `templates` that fits.

    Rows are of manifest.RECORDINGS, CAPTIONS and CLIPS (with `seconds` of sound); docs/corpora.md says which clip a caption belongs
    to. Captions that `heard`, by clip id, calls unfit are left out; a clip that has no others is described by its tags only.
    """
    rows_of: dict[str, list[Row]] = defaultdict(list)
    for row in captions:
        rows_of[row["recording_id"]].append(row)
    clips_of: dict[str, list[Row]] = defaultdict(list)
    for clip in clips:
        clips_of[clip["recording_id"]].append(clip)

    result = Matching()
    for recording in recordings:
        rows, own_clips = rows_of.pop(recording["recording_id"], []), clips_of.get(recording["recording_id"], [])
        _match_recording(recording, rows, own_clips, templates, heard, result)
    for rows in rows_of.values():
        result.missing.extend(_name(row) for row in rows)
    return result


def _match_recording(
    recording: Row, rows: list[Row], clips: list[Row], templates: Sequence[str], heard: Mapping[str, Heard], result: Matching
) -> None:
    starts = {clip["clip_id"]: recording["start_time"] + clip["start"] for clip in clips}
    windowed: dict[str, list[Row]] = defaultdict(list)
    whole = [row for row in rows if row["start_time"] is None]
    elsewhere = []
    for row in (row for row in rows if row["start_time"] is not None):
        nearest = min(starts, key=lambda clip_id: abs(starts[clip_id] - row["start_time"]), default=None)
        if nearest is not None and abs(starts[nearest] - row["start_time"]) <= TOLERANCE:
            windowed[nearest].append(row)
        else:
            elsewhere.append(row)
    strays = _place_within(elsewhere, rows, clips, starts, windowed)
    if not whole and rows and all(abs(row["start_time"] - recording["start_time"]) <= TOLERANCE for row in rows):
        whole = rows

    for clip in clips:
        clip_id = clip["clip_id"]
        chosen = windowed.get(clip_id) or whole
        labels = list(dict.fromkeys(label for row in chosen for label in row["labels"])) or list(recording["labels"])
        of_sound = heard.get(clip_id, Heard())
        if captions := [row["caption"] for row in chosen if row["caption"] not in of_sound.unfit]:
            origin: Origin = "window" if clip_id in windowed else "recording"
            result.clips[clip_id] = Description(captions, labels, origin)
            continue
        facts = facts_of(recording, labels, of_sound.tags)
        if chosen:  # what else is said of the recording may fit no better than its captions
            facts = {field: value for field, value in facts.items() if field == "tags"}
        fitting = choose(templates, facts)
        made = list(dict.fromkeys(template.format_map(facts) for template in fitting))
        result.clips[clip_id] = Description(made, labels, _origin_of(fitting[0], labels) if fitting else "none")

    if not clips:
        strays += whole
    result.missing.extend(_name(row) for row in strays)
    result.matched += len(rows) - len(strays)


def _origin_of(template: str, labels: Sequence[str]) -> Origin:
    fields = set(fields_of(template))
    if "tags" in fields:
        return "tags"
    if not fields.isdisjoint(FILE_TAGS):
        return "file_tags"
    return "label" if labels else "name"


def _place_within(
    elsewhere: list[Row], rows: list[Row], clips: list[Row], starts: dict[str, float], windowed: dict[str, list[Row]]
) -> list[Row]:
    """Assign captions that start inside clips to the clips that contain their window; returns the others."""
    times = sorted({row["start_time"] for row in rows if row["start_time"] is not None})
    length = min((after - before for before, after in pairwise(times) if after - before > TOLERANCE), default=None)
    if length is None:  # a single window has no known end
        return elsewhere
    ends = {clip["clip_id"]: starts[clip["clip_id"]] + clip["seconds"] for clip in clips}
    strays = []
    for row in sorted(elsewhere, key=lambda row: row["start_time"]):
        end = min(row["start_time"] + length, max(ends.values(), default=0.0))  # the last window ends with the recording
        around = (one for one in starts if starts[one] <= row["start_time"] < ends[one] and end <= ends[one] + TOLERANCE)
        clip_id = next(around, None)
        (strays if clip_id is None else windowed[clip_id]).append(row)
    return strays


def _name(row: Row) -> str:
    return f"{row['recording_id']} ({row['origin']})"


FIELDS = ("label", *FILE_TAGS, "file", "folder", "tempo", "key", "tags")
# `Am`, `C#min`, `F major`; a note alone may be a word.
KEY = re.compile(r"(?<![A-Za-z#])(?P<note>[A-G])(?P<sign>#|b)?[ _-]?(?P<mode>[Mm]aj(?:or)?|[Mm]in(?:or)?|m)(?![A-Za-z])")
SIGNS = {"#": " sharp", "b": " flat", None: ""}
JOINED = re.compile(r"[A-Za-z]?[a-z]{2,}(?:[A-Z][a-z]{2,})+")  # HeavyKick; a random id has other letters


def fields_of(template: str) -> list[str]:
    """The names in braces; ValueError if there is none, or another."""
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{template!r}: {error}") from None
    if not parts or any(name not in FIELDS or form or conversion for _, name, form, conversion in parts):
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ValueError(f"{template!r} must contain {known} or several of them, and no others")
    return [name for _, name, _, _ in parts]


def choose(templates: Sequence[str], facts: Mapping[str, str]) -> list[str]:
    """The first template all of whose fields are known, and the others with these fields; each makes a caption."""
    fields = [frozenset(fields_of(template)) for template in templates]
    first = next((known for known in fields if facts.keys() >= known), None)
    return [template for template, known in zip(templates, fields, strict=True) if known == first]


def facts_of(recording: Mapping[str, Any], labels: Sequence[str], tags: Sequence[str] = ()) -> dict[str, str]:
    """Fields by name, without the unknown ones, of a row of manifest.RECORDINGS (`path`, perhaps `file_tags`); its `bpm`, if it has
    that key, is the tempo, else one in the name is."""
    *folders, file = unescape_path(recording["path"]).decode("utf-8", "replace").split("/")
    name = os.path.splitext(file)[0]
    classes = [name for name in folders if name.lower() not in SPLIT_NAMES and not is_container(name.encode())]
    tempo = recording["bpm"] if "bpm" in recording else named_tempo(name)
    found = {
        "label": join_words(labels) if labels else None,
        **(recording.get("file_tags") or {}),
        "file": words_of(name),
        "folder": next(filter(None, map(words_of, reversed(classes))), None),
        "tempo": f"{tempo:.4g}" if tempo else None,
        "key": key_of(name),
        "tags": join_words(tags) if tags else None,
    }
    return {field: value for field, value in found.items() if value}


def words_of(name: str) -> str | None:
    """The words in a name, without tempo, key and numbers; None if it has none, or looks like an id."""
    words = []
    key = _key(name)
    rest = name.replace(key[0], " ") if key else name
    for part in re.split(r"[\W_]+", NAMED.sub(" ", rest)):
        word = part.rstrip("0123456789")
        if word.lower() != word and word[1:].lower() != word[1:] and word.upper() != word and not JOINED.fullmatch(word):
            return None
        if word and not word.isalpha() and len(part) > 3:  # not `3d`
            return None
        words += re.sub(r"(?<=[a-z])(?=[A-Z])", " ", word).lower().split() if len(word) > 1 else []
    return " ".join(words) or None


def key_of(name: str) -> str | None:
    """The musical key in a name: `A minor`, `C sharp major`. `m` alone counts only between `_`, `-` and the ends."""
    if (match := _key(name)) is None:
        return None
    return f"{match['note']}{SIGNS[match['sign']]} {'major' if match['mode'].lower().startswith('maj') else 'minor'}"


def _key(name: str) -> re.Match[str] | None:
    for match in KEY.finditer(name):
        around = name[max(0, match.start() - 1) : match.start()] + name[match.end() : match.end() + 1]
        if match["mode"] != "m" or not re.search(r"[^_-]", around):
            return match
    return None


def join_words(words: Sequence[str]) -> str:
    """`rain`, `rain and wind`, `rain, wind and bell`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
