"""What a project holds of its recordings: clips, mixes, shards, weights, sounds, reports.

It is read from tables below `data/`, from files of checkpoints (`trained_on.parquet`, `config.json`), and from MLflow. Missing
provenance is reported, not guessed. Cuts of several variants overlap: one stretch of a recording may be in all of them.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2.filters import escape

from soundmill import hashing, manifest, params, shards, tracking
from soundmill.errors import UserError

PARTS = ("autoencoder", "vocoder")
SHARDS = ("clips/*", "mixes", "spectrograms/clips/*", "*/latents/*")  # below data/, directories of shards with a clip_id
TABLES = tuple(f"{name}/*.parquet" for name in ("catalog", "segments", "quality", "zero_shot"))  # below data/, with a clip_id
NAMED_AFTER_CLIPS = ("audiocaps", "codec", "generated", "report/bakeoff")  # below data/, directories with WAVs
REPORTS = ("attribution", "catalog", "report", "quality")  # below data/, directories with texts that name clips and recordings
TEXTS = (".html", ".json", ".csv", ".tex")


@dataclass(frozen=True)
class Piece:
    """A recording, or the stretch of it in a clip, in seconds."""

    recording_id: str
    source: str
    start: float = 0.0
    end: float = math.inf

    @property
    def is_whole(self) -> bool:
        return math.isinf(self.end)


@dataclass(frozen=True)
class Weights:
    """A directory of trained weights: a checkpoint, an autoencoder, a vocoder, the tagger."""

    name: str
    directory: Path
    registered: list[tracking.RegisteredModel] = field(default_factory=list)
    is_of_graph: bool = True  # otherwise only a version of a registered model

    @property
    def config(self) -> dict[str, Any]:
        path = self.directory / "config.json"
        content = params.read_json(path, "retrain with `dvc repro`") if path.is_file() else {}
        return content if isinstance(content, dict) else {}

    @property
    def parts(self) -> list[Path]:
        """Its directory, and the directories of the parts inside."""
        return [self.directory, *(self.directory / part for part in PARTS if (self.directory / part).is_dir())]

    def trained_on(self, part: Path) -> pa.Table | None:
        """The table manifest.TRAINED_ON of one of its `parts`; None if it was not trained here, or before such tables existed."""
        path = part / manifest.TRAINED_ON_FILE
        return shards.read_table(path, manifest.TRAINED_ON) if path.is_file() else None


@dataclass(frozen=True)
class Held:
    """What contains given pieces of recordings."""

    clips: dict[str, list[dict[str, Any]]]  # by variant: rows of CLIPS without sound
    mixes: dict[str, tuple[str, str]]
    shards: dict[str, int]  # path below data/ → its rows
    # Weights; the part of them ("": the whole) that was trained on the pieces; how many of their clips and mixes it was trained on.
    weights: list[tuple[Weights, str, int, int]]
    files: list[str]  # below data/: sounds named after a clip of them
    reports: list[str]  # below data/: texts that name a clip or recording


class Project:
    """The tables and files of the checkout at `root`; each table is read once, on first use."""

    def __init__(self, root: Path, is_workspace: bool = False):
        self.root, self.data, self.is_workspace = root, root / "data", is_workspace  # registered models belong to its project
        self.gone: list[str] = []

    @cached_property
    def corpora(self) -> list[Path]:
        """The corpus directories in params.yaml, without buckets."""
        path = self.root / "params.yaml"
        corpus = params.read_yaml(path).get("corpus") if path.is_file() else None
        parts = corpus.get("parts") if isinstance(corpus, dict) else None
        sections = [corpus, *(parts.values() if isinstance(parts, dict) else [])]
        paths = [section.get("path") for section in sections if isinstance(section, dict)]
        return [self.root / path for path in paths if isinstance(path, str) and path and "://" not in path]

    @cached_property
    def recordings(self) -> dict[str, dict[str, Any]]:
        """Rows of RECORDINGS by id."""
        path = self.data / "corpus" / "recordings.parquet"
        if not path.is_file():
            self.gone.append("data/corpus is missing: recordings are known from checkpoints only (`dvc repro` rebuilds it)")
            return {}
        return {row["recording_id"]: row for row in shards.read_rows(path, manifest.RECORDINGS)}

    @cached_property
    def refused(self) -> dict[str, str]:
        """Why `corpus.terms` refuses recordings, by id; those that a run after a change of the terms would refuse are not in it."""
        path = self.data / "refused.parquet"
        rows = shards.read_rows(path, manifest.REFUSED) if path.is_file() else ()
        return {row["recording_id"]: row["detail"] for row in rows}

    @cached_property
    def clips(self) -> dict[str, pa.Table]:
        """Variant → rows of CLIPS without audio, with `seconds`; `default` first, and without `mixed`, which repeats one.

        `start` and `seconds` refer to the recording, even for clips cut from its loops.
        """
        names = ["clip_id", "recording_id", "source", "start", "digest", "quality"]
        tables = {}
        cut = (path for path in self.data.glob("clips/*") if path.name != manifest.MIXED)
        for directory in sorted(cut, key=lambda path: (path.name != "default", path.name)):
            parts = [shards.read_table(path, manifest.CLIPS, names) for path in shards.shard_paths(directory)]
            table = pa.concat_tables(parts)
            seconds = pc.struct_field(table["quality"], "seconds")
            table = table.drop_columns("quality").append_column("seconds", seconds)
            tables[directory.name] = self._unstretched(directory.name, table)
        if not tables:
            self.gone.append("data/clips is missing: clips are known from checkpoints only (`dvc repro` rebuilds it)")
        return tables

    def _unstretched(self, variant: str, table: pa.Table) -> pa.Table:
        """Clips of a variant with times in their recordings; the whole recording if a loop no longer exists."""
        path = self.root / "params.yaml"
        plans = params.read_yaml(path).get("clips") or {} if path.is_file() else {}
        source = plans.get(variant, {}).get("source", f"loops/{variant}")
        directory = self.data / source / "audio"
        if not source.startswith("loops/") or (variant not in plans and not directory.is_dir()):
            return table
        columns = ["recording_id", "start", "stretch"]
        rows = shards.rows_below(directory, manifest.LOOPS, columns) if directory.is_dir() else ()
        loops = {row["recording_id"]: row for row in rows}
        places = []
        for row in table.select(["recording_id", "start", "seconds"]).to_pylist():
            if (loop := loops.get(row["recording_id"])) and row["seconds"] is not None:
                places.append((loop["start"] + row["start"] / loop["stretch"], row["seconds"] / loop["stretch"]))
            else:
                places.append((0.0, None))
        return _placed(table, places)

    def _as_cut(self, table: pa.Table) -> pa.Table:
        """A table TRAINED_ON, with the times of the clips in `clips` that have the same digest."""
        cut = [row for variant in self.clips.values() for row in variant.select(["digest", "start", "seconds"]).to_pylist()]
        places = {row["digest"]: (row["start"], row["seconds"]) for row in cut}
        rows = table.select(["digest", "start", "seconds"]).to_pylist()
        return _placed(table, [places.get(row["digest"], (row["start"], row["seconds"])) for row in rows])

    @cached_property
    def mixes(self) -> dict[str, tuple[str, str]]:
        """Mix id → its two clips."""
        directory = self.data / "mixes"
        rows = shards.rows_below(directory, manifest.MIXES, ["clip_id", "first", "second"]) if directory.is_dir() else ()
        return {row["clip_id"]: (row["first"], row["second"]) for row in rows}

    @cached_property
    def registered(self) -> list[tracking.RegisteredModel]:
        if self.is_workspace:
            return []
        try:
            return tracking.registered_models(self.root)
        except UserError as error:
            self.gone.append(f"runs and registered models in MLflow are unknown: {error}")
            return []

    @cached_property
    def weights(self) -> list[Weights]:
        """The weights of the graph, then registered versions with other weights."""
        patterns = ("models/*", *(f"*/{part}" for part in PARTS), "tagger")
        places = [place for pattern in patterns for place in self.data.glob(pattern)]
        found = [self.weights_at(place) for place in sorted(places) if (place / "config.json").is_file()]
        digests = {model.digest for weights in found for model in weights.registered}
        for model in self.registered:
            if model.digest not in digests and model.directory:
                digests.add(model.digest)
                same = [other for other in self.registered if other.digest == model.digest]
                found.append(Weights(str(model), model.directory, same, is_of_graph=False))
        if unread := [str(model) for model in self.registered if not model.directory and model.digest not in digests]:
            self.gone.append(f"files of {', '.join(unread)} are not on this machine, so what they were trained on is unknown")
        return found

    def weights_at(self, directory: Path) -> Weights:
        """A directory of weights, with the registered versions of the same content."""
        digest = hashing.model_digest(directory) if self.registered else ""
        root, place = self.root.resolve(), directory.resolve()
        name = place.relative_to(root) if place.is_relative_to(root) else directory
        return Weights(str(name), directory, [model for model in self.registered if model.digest == digest])

    def held(self, pieces: Iterable[Piece], former: Iterable[str] = (), digests: Iterable[str] = ()) -> Held:
        """What contains any of these pieces; `former` are ids and `digests` the contents of clips cut from them earlier."""
        pieces = list(pieces)
        clips = {variant: rows for variant, table in self.clips.items() if (rows := overlapping(table, pieces))}
        ids = {row["clip_id"] for rows in clips.values() for row in rows} | set(former)
        mixes = {mix: both for mix, both in self.mixes.items() if not ids.isdisjoint(both)}
        names = named(ids, {piece.source for piece in pieces if piece.is_whole})
        stems = ids | set(map(manifest.split_stem, ids))
        texts = [path for name in REPORTS for path in sorted((self.data / name).rglob("*")) if path.suffix in TEXTS]
        texts += sorted(self.data.glob("*.html"))
        return Held(
            clips,
            mixes,
            self.shards_with(ids | mixes.keys()),
            list(self.weights_with(pieces, digests)),
            [str(path.relative_to(self.root)) for path in self.sounds() if path.stem in stems],
            [str(path.relative_to(self.root)) for path in texts if names.search(path.read_text("utf-8", errors="replace"))],
        )

    def shards_with(self, ids: set[str]) -> dict[str, int]:
        """Shard → number of rows with these clips and mixes."""
        values, found = pa.array(sorted(ids), pa.string()), {}
        directories = [place for pattern in SHARDS for place in sorted(self.data.glob(pattern)) if place.is_dir()]
        paths = [path for directory in directories for path in shards.shard_paths(directory)]
        for path in [*paths, *(path for pattern in TABLES for path in sorted(self.data.glob(pattern)))]:
            with shards.open_parquet(path) as file:
                table = file.read([name for name in ("clip_id", "first", "second") if name in file.schema_arrow.names])
            matches = [pc.is_in(column, values).to_numpy() for column in table.columns]
            if rows := int(np.any(matches, axis=0).sum()):
                found[str(path.relative_to(self.root))] = rows
        return found

    def loops_of(self, recordings: set[str]) -> dict[str, int]:
        """Shard → number of loops of these recordings."""
        found = {}
        for path in [path for directory in sorted(self.data.glob("loops/*/audio")) for path in shards.shard_paths(directory)]:
            rows = [row for row in shards.read_rows(path, manifest.LOOPS, ["recording_id"]) if row["recording_id"] in recordings]
            if rows:
                found[str(path.relative_to(self.root))] = len(rows)
        return found

    def weights_with(self, pieces: list[Piece], digests: Iterable[str] = ()) -> Iterator[tuple[Weights, str, int, int]]:
        values = pa.array(sorted(digests), pa.string())
        for weights, part, table in self.trained():
            matches = pc.is_in(table["digest"], values)
            rows = overlapping(self._as_cut(table.filter(pc.invert(matches))), pieces) + table.filter(matches).to_pylist()
            if rows:
                mixes = {row["mix"] for row in rows} - {None}
                yield weights, part, len({row["clip_id"] for row in rows}), len(mixes)

    def sounds(self) -> Iterator[Path]:
        for name in NAMED_AFTER_CLIPS:
            yield from sorted((self.data / name).rglob("*.wav"))

    def find(self, thing: str) -> list[Piece]:
        """The pieces that a word may name: clips and recordings by id, recordings by path; `clip:` or `recording:` selects one.

        Searched are the tables of data/ and of what checkpoints were trained on.
        """
        kind, _, name = thing.partition(":") if thing.startswith(("clip:", "recording:")) else ("", "", thing)
        tables = [*self.clips.values(), *self.tables()]
        pieces = []
        if kind != "recording":
            rows = (row for table in tables for row in table.filter(pc.equal(table["clip_id"], name)).to_pylist())
            pieces += [piece_of(row) for row in rows if row["recording_id"]][:1]
        if kind != "clip":
            pieces += self._recordings_called(name, tables)[:1]
        return pieces

    def trained(self) -> Iterator[tuple[Weights, str, pa.Table]]:
        """(weights, the part of them, "" for the whole, and what it was trained on), where that is known."""
        for weights in self.weights:
            for part in weights.parts:
                if (table := weights.trained_on(part)) is not None:
                    yield weights, "" if part == weights.directory else part.name, table

    def tables(self) -> Iterator[pa.Table]:
        return (self._as_cut(table) for *_, table in self.trained())

    def _recordings_called(self, name: str, tables: list[pa.Table]) -> list[Piece]:
        file = Path(name)
        digest = hashing.file_digest(file) if file.is_file() else None
        for row in self.recordings.values():
            if name in (row["recording_id"], row["path"]) or digest == row["digest"]:
                return [Piece(row["recording_id"], row["path"])]
        for table in tables:
            same = pc.or_(pc.equal(table["recording_id"], name), pc.equal(table["source"], name))
            for row in table.filter(same).slice(0, 1).to_pylist():
                return [Piece(row["recording_id"], row["source"])]
        return []

    def unknown(self, thing: str) -> UserError:
        """The error for a word that names nothing."""
        names = [row["recording_id"] for row in self.recordings.values()] + [row["path"] for row in self.recordings.values()]
        names += [name for table in self.clips.values() for name in table["clip_id"].to_pylist()]
        meant = params.did_you_mean(thing.removeprefix("clip:").removeprefix("recording:"), names)
        where = "data/ and its checkpoints" if names else "its checkpoints (data/ is missing; run `dvc repro`)"
        return UserError(
            f"{thing}: no clip, recording, mix, checkpoint or generated sound of this project{meant} (searched {where}). "
            "`soundmill clips list` shows clips"
        )


def named(ids: Iterable[str], paths: Collection[str] = ()) -> re.Pattern[str]:
    """A pattern that finds any of these ids and whole paths in a text as whole words, also as HTML, CSV and JSON write them."""
    groups, bare = [], {path for path in paths if "/" not in path}  # in another folder it is another recording
    for before, names in ((r"[\w-]", {*ids, *paths} - bare), (r"[\w/-]", bare)):
        written = {*names, *(str(escape(name)) for name in names), *(name.replace('"', '""') for name in names)}
        written |= {json.dumps(name, ensure_ascii=ascii_alone)[1:-1] for name in names for ascii_alone in (True, False)}
        if escaped := "|".join(map(re.escape, sorted(written, key=len, reverse=True))):
            groups.append(f"(?<!{before})(?:{escaped})")
    return re.compile(rf"(?:{'|'.join(groups)})(?![\w-]|\.\d)" if groups else "(?!)")


def _placed(table: pa.Table, places: list[tuple[float, float | None]]) -> pa.Table:
    """The table with `start` and `seconds` replaced."""
    for name, values in (("start", [start for start, _ in places]), ("seconds", [seconds for _, seconds in places])):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.float64()))
    return table


def piece_of(row: dict[str, Any]) -> Piece:
    """The stretch of a recording in a row of clips."""
    seconds = math.inf if row["seconds"] is None else row["seconds"]
    return Piece(row["recording_id"], row.get("source", ""), row["start"], row["start"] + seconds)  # FINGERPRINTS has no source


def overlapping(table: pa.Table, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """Rows (with `recording_id`, `start`, `seconds`) that overlap one of the pieces by more than rounding errors."""
    by_recording: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_recording.setdefault(piece.recording_id, []).append(piece)
    near = table.filter(pc.is_in(table["recording_id"], pa.array(by_recording, pa.string()))).to_pylist()
    return [row for row in near if any(overlap(piece_of(row), piece) for piece in by_recording[row["recording_id"]])]


def overlap(one: Piece, other: Piece) -> bool:
    """Whether two pieces of one recording overlap by more than rounding errors."""
    return min(one.end, other.end) - max(one.start, other.start) > manifest.OVERLAP_SECONDS
