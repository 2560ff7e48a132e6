"""What a checkout has of its recordings: clips, mixes, shards, weights and what they were trained on, sounds, reports."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from soundmill import hashing, manifest, params, shards, tracking
from soundmill.errors import UserError

OVERLAP_SECONDS = 1e-3  # less in common is the rounding of ends
PARTS = ("autoencoder", "vocoder")
SHARDS = ("clips/*", "mixes", "spectrograms/clips/*", "*/latents/*")  # below data/, of rows with a clip_id
TABLES = ("catalog/*.parquet", "segments/*.parquet", "quality/*.parquet")  # the same, each a file
NAMED_AFTER_CLIPS = ("audiocaps", "codec", "generated", "report/bakeoff")  # below data/, with WAVs
REPORTS = ("report", "quality")  # below data/, with texts that name clips and recordings
TEXTS = (".html", ".json", ".csv", ".tex")


@dataclass(frozen=True)
class Piece:
    """A recording, or the stretch of it that a clip is, in seconds."""

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
    is_of_graph: bool = True  # or else a version of a registered model alone

    @property
    def config(self) -> dict[str, Any]:
        path = self.directory / "config.json"
        content = params.read_json(path, "retrain with `dvc repro`") if path.is_file() else {}
        return content if isinstance(content, dict) else {}

    @property
    def parts(self) -> list[Path]:
        """Its own directory, and those of the parts that lie in it."""
        return [self.directory, *(self.directory / part for part in PARTS if (self.directory / part).is_dir())]

    def trained_on(self, part: Path) -> pa.Table | None:
        """The table of manifest.TRAINED_ON of one of its `parts`; None: it was not trained here, or before this was written."""
        path = part / manifest.TRAINED_ON_FILE
        return shards.read_table(path, manifest.TRAINED_ON) if path.is_file() else None


@dataclass(frozen=True)
class Held:
    """What holds pieces of recordings."""

    clips: dict[str, list[dict[str, Any]]]  # by variant: rows of CLIPS without sound
    mixes: dict[str, tuple[str, str]]
    shards: dict[str, int]  # path below data/ → its rows
    weights: list[tuple[Weights, str, int, int]]  # part ("" itself), clips and mixes of them that it was trained on
    files: list[str]  # below data/: sounds named after a clip
    reports: list[str]  # below data/: texts that name one


class Project:
    """What there is in the checkout at `root`; each table is read once, when it is asked for."""

    def __init__(self, root: Path, is_workspace: bool = False):
        self.root, self.data, self.is_workspace = root, root / "data", is_workspace  # registered models are its project's
        self.gone: list[str] = []

    @cached_property
    def corpora(self) -> list[Path]:
        """The folders of recordings that params.yaml names."""
        path = self.root / "params.yaml"
        corpus = params.read_yaml(path).get("corpus") if path.is_file() else None
        parts = corpus.get("parts") if isinstance(corpus, dict) else None
        sections = [corpus, *(parts.values() if isinstance(parts, dict) else [])]
        paths = [section.get("path") for section in sections if isinstance(section, dict)]
        return [self.root / path for path in paths if isinstance(path, str) and path]

    @cached_property
    def recordings(self) -> dict[str, dict[str, Any]]:
        """By id."""
        path = self.data / "corpus" / "recordings.parquet"
        if not path.is_file():
            self.gone.append("data/corpus is missing: recordings are known from checkpoints only (`dvc repro` rebuilds it)")
            return {}
        return {row["recording_id"]: row for row in shards.read_rows(path, manifest.RECORDINGS)}

    @cached_property
    def clips(self) -> dict[str, pa.Table]:
        """By variant, `default` first: rows of CLIPS without sound, `seconds` of each beside them.

        `start` and `seconds` are those of the recording, also where clips were cut of loops of it.
        """
        names = ["clip_id", "recording_id", "source", "start", "digest", "quality"]
        tables = {}
        for directory in sorted(self.data.glob("clips/*"), key=lambda path: (path.name != "default", path.name)):
            parts = [shards.read_table(path, manifest.CLIPS, names) for path in shards.shard_paths(directory)]
            if parts:
                table = pa.concat_tables(parts)
                seconds = pc.struct_field(table["quality"], "seconds")
                table = table.drop_columns("quality").append_column("seconds", seconds)
                tables[directory.name] = self._unstretched(directory.name, table)
        if not tables:
            self.gone.append("data/clips is missing: clips are known from checkpoints only (`dvc repro` rebuilds it)")
        return tables

    def _unstretched(self, variant: str, table: pa.Table) -> pa.Table:
        """Clips of a variant by seconds of their recordings; where a loop is not there any more, by all of its recording."""
        path = self.root / "params.yaml"
        plans = params.read_yaml(path).get("clips") or {} if path.is_file() else {}
        source = plans.get(variant, {}).get("source", f"loops/{variant}")
        directory = self.data / source / "audio"
        if not source.startswith("loops/") or (variant not in plans and not directory.is_dir()):
            return table
        columns = ["recording_id", "start", "stretch"]
        shards_of = shards.shard_paths(directory) if directory.is_dir() else []
        loops = {row["recording_id"]: row for path in shards_of for row in shards.read_rows(path, manifest.LOOPS, columns)}
        places = []
        for row in table.select(["recording_id", "start", "seconds"]).to_pylist():
            if (loop := loops.get(row["recording_id"])) and row["seconds"] is not None:
                places.append((loop["start"] + row["start"] / loop["stretch"], row["seconds"] / loop["stretch"]))
            else:
                places.append((0.0, None))
        return _placed(table, places)

    def _as_cut(self, table: pa.Table) -> pa.Table:
        """What weights were trained on, each clip where `clips` has one with its content."""
        known = [row for its in self.clips.values() for row in its.select(["digest", "start", "seconds"]).to_pylist()]
        places = {row["digest"]: (row["start"], row["seconds"]) for row in known}
        rows = table.select(["digest", "start", "seconds"]).to_pylist()
        return _placed(table, [places.get(row["digest"], (row["start"], row["seconds"])) for row in rows])

    @cached_property
    def mixes(self) -> dict[str, tuple[str, str]]:
        """By id, the clips in each."""
        directory = self.data / "mixes"
        paths = shards.shard_paths(directory) if directory.is_dir() else []
        rows = (row for path in paths for row in shards.read_rows(path, manifest.MIXES, ["clip_id", "first", "second"]))
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
        """Of the graph, then registered versions that are others than these."""
        places = [
            place for pattern in ("models/*", *(f"*/{part}" for part in PARTS), "tagger") for place in self.data.glob(pattern)
        ]
        found = [self.weights_at(place) for place in sorted(places) if (place / "config.json").is_file()]
        known = {model.digest for weights in found for model in weights.registered}
        for model in self.registered:
            if model.digest not in known and model.directory:
                known.add(model.digest)
                same = [other for other in self.registered if other.digest == model.digest]
                found.append(Weights(f"{model.name} version {model.version}", model.directory, same, is_of_graph=False))
        unread = [
            f"{model.name} version {model.version}"
            for model in self.registered
            if not model.directory and model.digest not in known
        ]
        if unread:
            self.gone.append(f"files of {', '.join(unread)} are not on this machine, so what they were trained on is unknown")
        return found

    def weights_at(self, directory: Path) -> Weights:
        """A directory of weights, with the registered versions that are the same."""
        digest = hashing.model_digest(directory) if self.registered else ""
        name = directory.resolve().relative_to(self.root.resolve()) if self._is_inside(directory) else directory
        return Weights(str(name), directory, [model for model in self.registered if model.digest == digest])

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root.resolve())

    def held(self, pieces: Iterable[Piece], former: Iterable[str] = (), digests: Iterable[str] = ()) -> Held:
        """What holds any of these pieces; `former` are ids, and `digests` the contents, of clips that were cut from them before."""
        pieces = list(pieces)
        clips = {variant: rows for variant, table in self.clips.items() if (rows := overlapping(table, pieces))}
        ids = {row["clip_id"] for rows in clips.values() for row in rows} | set(former)
        mixes = {mix: both for mix, both in self.mixes.items() if not ids.isdisjoint(both)}
        return Held(
            clips,
            mixes,
            self.shards_with(ids | mixes.keys()),
            list(self.weights_with(pieces, digests)),
            [str(path.relative_to(self.root)) for path in self.sounds() if path.stem in ids],
            self._reports_with(ids | {piece.source for piece in pieces if piece.is_whole}),
        )

    def shards_with(self, ids: set[str]) -> dict[str, int]:
        """Rows of these clips and mixes, by shard."""
        wanted, found = pa.array(sorted(ids), pa.string()), {}
        directories = [place for pattern in SHARDS for place in sorted(self.data.glob(pattern)) if place.is_dir()]
        paths = [path for directory in directories for path in shards.shard_paths(directory)]
        for path in [*paths, *(path for pattern in TABLES for path in sorted(self.data.glob(pattern)))]:
            with shards.open_parquet(path) as file:
                table = file.read([name for name in ("clip_id", "first", "second") if name in file.schema_arrow.names])
            its = [pc.is_in(column, wanted).to_numpy() for column in table.columns]
            if rows := int(np.any(its, axis=0).sum()):
                found[str(path.relative_to(self.root))] = rows
        return found

    def loops_of(self, recordings: set[str]) -> dict[str, int]:
        """Loops cut of these recordings, by shard."""
        found = {}
        for path in [path for directory in sorted(self.data.glob("loops/*/audio")) for path in shards.shard_paths(directory)]:
            its = [row for row in shards.read_rows(path, manifest.LOOPS, ["recording_id"]) if row["recording_id"] in recordings]
            if its:
                found[str(path.relative_to(self.root))] = len(its)
        return found

    def weights_with(self, pieces: list[Piece], digests: Iterable[str] = ()) -> Iterator[tuple[Weights, str, int, int]]:
        known = pa.array(sorted(digests), pa.string())
        for weights in self.weights:
            for part in weights.parts:
                table = weights.trained_on(part)
                rows = []
                if table is not None:
                    is_known = pc.is_in(table["digest"], known)
                    rows = overlapping(self._as_cut(table.filter(pc.invert(is_known))), pieces)
                    rows += table.filter(is_known).to_pylist()
                if rows:
                    mixes = {row["mix"] for row in rows} - {None}
                    name = "" if part == weights.directory else part.name
                    yield weights, name, len({row["clip_id"] for row in rows}), len(mixes)

    def sounds(self) -> Iterator[Path]:
        for name in NAMED_AFTER_CLIPS:
            yield from sorted((self.data / name).rglob("*.wav"))

    def _reports_with(self, names: set[str]) -> list[str]:
        word = named(names)
        texts = (path for name in REPORTS for path in sorted((self.data / name).rglob("*")) if path.suffix in TEXTS)
        return [
            str(path.relative_to(self.root)) for path in texts if word.search(path.read_text(encoding="utf-8", errors="replace"))
        ]

    def find(self, thing: str) -> list[Piece]:
        """The pieces that a word may mean: clips and recordings by id, recordings by path; `clip:` or `recording:` before it says.

        In the tables of data/, else in what checkpoints were trained on.
        """
        kind, _, name = thing.partition(":") if thing.startswith(("clip:", "recording:")) else ("", "", thing)
        tables = [*self.clips.values(), *(table for _, table in self.tables())]
        pieces = []
        if kind != "recording":
            rows = (row for table in tables for row in table.filter(pc.equal(table["clip_id"], name)).to_pylist())
            pieces += [piece_of(row) for row in rows if row["recording_id"]][:1]
        if kind != "clip":
            pieces += self._recordings_called(name, tables)[:1]
        return pieces

    def tables(self) -> Iterator[tuple[Weights, pa.Table]]:
        for weights in self.weights:
            for part in weights.parts:
                if (table := weights.trained_on(part)) is not None:
                    yield weights, self._as_cut(table)

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
        """The error of a word that means nothing here."""
        known = [row["recording_id"] for row in self.recordings.values()] + [row["path"] for row in self.recordings.values()]
        known += [name for table in self.clips.values() for name in table["clip_id"].to_pylist()]
        meant = params.did_you_mean(thing.removeprefix("clip:").removeprefix("recording:"), known)
        where = "data/ and its checkpoints" if known else "its checkpoints (there is no data/; `dvc repro`)"
        return UserError(
            f"{thing}: no clip, recording, mix, checkpoint or generated sound of this project{meant} (searched {where}). "
            "`soundmill clips list` shows clips"
        )


def named(names: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these ids and paths in a text, as words of their own."""
    escaped = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(rf"(?<![\w-])(?:{escaped})(?![\w-]|\.\d)" if escaped else "(?!)")


def _placed(table: pa.Table, places: list[tuple[float, float | None]]) -> pa.Table:
    """The table with other `start` and `seconds`."""
    for name, values in (("start", [start for start, _ in places]), ("seconds", [seconds for _, seconds in places])):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.float64()))
    return table


def piece_of(row: dict[str, Any]) -> Piece:
    """The stretch that a row of clips is."""
    seconds = math.inf if row["seconds"] is None else row["seconds"]
    return Piece(row["recording_id"], row.get("source", ""), row["start"], row["start"] + seconds)  # fingerprints have no source


def overlapping(table: pa.Table, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """Rows (`recording_id`, `start`, `seconds`) that share more than the rounding of ends with one of the pieces."""
    by_recording: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_recording.setdefault(piece.recording_id, []).append(piece)
    near = table.filter(pc.is_in(table["recording_id"], pa.array(by_recording, pa.string()))).to_pylist()
    return [row for row in near if any(overlap(piece_of(row), piece) for piece in by_recording[row["recording_id"]])]


def overlap(one: Piece, other: Piece) -> bool:
    """Whether two pieces of one recording have more in common than the rounding of ends."""
    return min(one.end, other.end) - max(one.start, other.start) > OVERLAP_SECONDS
