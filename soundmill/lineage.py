"""The lineage of a sound: recording → clips → mixes → shards → trainings → checkpoints → sounds and scores.

It is read from tables below `data/`, from files of checkpoints (`trained_on.parquet`, `config.json`), and from MLflow. Missing
provenance is reported, not guessed. Cuts of several variants overlap: one stretch of a recording may be in all of them.
"""

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

OVERLAP_SECONDS = 1e-3  # shorter overlaps are rounding errors of ends
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
        """A table TRAINED_ON, with the times of the clips in `clips` that have the same digest."""
        cut = [row for variant in self.clips.values() for row in variant.select(["digest", "start", "seconds"]).to_pylist()]
        places = {row["digest"]: (row["start"], row["seconds"]) for row in cut}
        rows = table.select(["digest", "start", "seconds"]).to_pylist()
        return _placed(table, [places.get(row["digest"], (row["start"], row["seconds"])) for row in rows])

    @cached_property
    def mixes(self) -> dict[str, tuple[str, str]]:
        """Mix id → its two clips."""
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
        """The weights of the graph, then registered versions with other weights."""
        places = [
            place for pattern in ("models/*", *(f"*/{part}" for part in PARTS), "tagger") for place in self.data.glob(pattern)
        ]
        found = [self.weights_at(place) for place in sorted(places) if (place / "config.json").is_file()]
        digests = {model.digest for weights in found for model in weights.registered}
        for model in self.registered:
            if model.digest not in digests and model.directory:
                digests.add(model.digest)
                same = [other for other in self.registered if other.digest == model.digest]
                found.append(Weights(f"{model.name} version {model.version}", model.directory, same, is_of_graph=False))
        unread = [
            f"{model.name} version {model.version}"
            for model in self.registered
            if not model.directory and model.digest not in digests
        ]
        if unread:
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
        names = named(ids | {piece.source for piece in pieces if piece.is_whole})
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


def named(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of these ids and paths in a text as whole words."""
    escaped = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(rf"(?<![\w-])(?:{escaped})(?![\w-]|\.\d)" if escaped else "(?!)")


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
    return min(one.end, other.end) - max(one.start, other.start) > OVERLAP_SECONDS


@dataclass(frozen=True)
class Node:
    """One thing in the tree; `below` are its sources, or its products."""

    kind: str
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    below: list[Node] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        below = {"below": [node.plain() for node in self.below]} if self.below else {}
        return {"kind": self.kind, "name": self.name, **self.facts, **below}


@dataclass(frozen=True)
class Lineage:
    """A thing, its sources, its products, and sentences about what is missing."""

    thing: Node
    comes_from: list[Node]
    made_from_it: list[Node]
    gone: list[str]

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        ends = {name: [node.plain() for node in getattr(self, name)] for name in ("comes_from", "made_from_it")}
        return {"thing": self.thing.plain(), **ends, "gone": self.gone}


def trace(root: Path, thing: str) -> Lineage:
    """The lineage of a generated WAV, a directory of weights, a clip, a mix, or a recording (its id, or its path)."""
    project, path = Project(root), Path(thing)
    if path.is_dir():
        weights = project.weights_at(path)
        if not weights.config and weights.trained_on(path) is None:
            raise UserError(f"{path}: not a checkpoint, autoencoder or vocoder (no config.json)")
        node = Node("checkpoint", weights.name, _facts(weights))
        return Lineage(node, _upstream(project, weights), _products(project, weights), project.gone)
    about = sound_facts(path) if path.suffix.lower() == ".wav" and path.is_file() else None
    if about is not None:
        return Lineage(Node("sound", str(path), about), _checkpoints(project, about), [], project.gone)
    beside = path.parent / manifest.ABOUT_SOUNDS
    about = params.read_json(beside, "`dvc repro`") if path.is_file() and beside.is_file() else None
    if isinstance(about, dict) and {"family", "made_by"} <= about.keys():  # else it is another tool's
        recordings = [_recording(project, piece) for piece in project.find(f"clip:{path.stem}")]
        clip = Node("clip", path.stem, {"role": "request" if about["made_by"] == "generate" else "input"}, recordings)
        return Lineage(Node("sound", str(path), about), [clip, *_checkpoints(project, about)], [], project.gone)
    if thing in project.mixes:
        return _of_mix(project, thing)
    pieces = project.find(thing)
    if not pieces:
        raise project.unknown(thing)
    if len(pieces) > 1:
        project.gone.append(f"{thing} is also the id of a recording: `recording:{thing}`")
    piece, recording = pieces[0], _recording(project, pieces[0])
    products = _downstream(project, project.held([piece]))
    if piece.is_whole:
        return Lineage(recording, [], products, project.gone)
    facts = {"source": piece.source, "start": piece.start, "end": piece.end}
    return Lineage(Node("clip", thing.removeprefix("clip:"), facts), [recording], products, project.gone)


def sound_facts(path: Path) -> dict[str, Any] | None:
    """Facts from the comment of a WAV; None if Soundmill did not write it."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as sound:
            facts = params.parse_json(sound.comment) if sound.comment else None
    except (soundfile.LibsndfileError, ValueError):
        return None
    return facts if isinstance(facts, dict) and "checkpoint" in facts else None


def _of_mix(project: Project, mix: str) -> Lineage:
    sources = [
        Node("clip", clip_id, {}, [_recording(project, piece) for piece in project.find(f"clip:{clip_id}")])
        for clip_id in project.mixes[mix]
    ]
    trained = [
        _checkpoint(project, weights, {"part": part} if part else {})
        for weights, part, table in project.trained()
        if pc.any(pc.equal(table["mix"], mix)).as_py()
    ]
    paths = [Node("shard", path) for path in project.shards_with({mix})]
    return Lineage(Node("mix", mix), sources, paths + trained, project.gone)


def _checkpoints(project: Project, about: dict[str, Any]) -> list[Node]:
    """The checkpoint that made a sound, found by its digest below data/ or among registered models, if it still exists."""
    digest = about.get("checkpoint")
    same = [weights for weights in project.weights if hashing.tree_digest(weights.directory) == digest]
    if not same:
        project.gone.append(f"its checkpoint ({digest or 'not recorded'}) is neither below data/ nor a registered model here")
    return [_checkpoint(project, weights, {}, up=True) for weights in same[:1]]


def _recording(project: Project, piece: Piece) -> Node:
    row = project.recordings.get(piece.recording_id)
    if row is None:
        return Node("recording", piece.recording_id, {"source": piece.source, "gone": True})
    facts = {"source": row["path"], "digest": row["digest"], "corpus": row["corpus"], "labels": row["labels"]}
    terms = {name: row[name] or "unknown" for name in ("licence", "ai_terms")} | {
        name: row[name] for name in ("creator", "source_url", "terms_found")
    }
    return Node("recording", piece.recording_id, facts | terms | {"refused": project.refused.get(piece.recording_id)})


def _downstream(project: Project, held: Held) -> list[Node]:
    nodes = []
    for variant, rows in held.clips.items():
        clips = [Node("clip", row["clip_id"], {"start": row["start"], "end": row["start"] + (row["seconds"] or 0)}) for row in rows]
        nodes.append(Node("clips", variant, {"count": len(clips)}, clips))
    groups = {
        "mixes": [Node("mix", mix, {"first": first, "second": second}) for mix, (first, second) in held.mixes.items()],
        "shards": [Node("shard", path, {"rows": rows}) for path, rows in held.shards.items()],
        "sounds": [Node("sound", path) for path in held.files],
        "reports": [Node("report", path) for path in held.reports],
    }
    nodes += [Node(kind, "data", {"count": len(below)}, below) for kind, below in groups.items() if below]
    for weights, part, clips, mixes in held.weights:
        of_it = {"clips_of_it": clips} | ({"mixes_of_it": mixes} if mixes else {})
        nodes.append(_checkpoint(project, weights, ({"part": part} if part else {}) | of_it))
    return nodes


def _checkpoint(project: Project, weights: Weights, facts: dict[str, Any], up: bool = False) -> Node:
    below = _upstream(project, weights) if up else [*_trainings(weights), *([] if "part" in facts else _products(project, weights))]
    return Node("checkpoint", weights.name, _facts(weights) | facts, below)


def _facts(weights: Weights) -> dict[str, Any]:
    config = weights.config
    return {name: config[name] for name in ("family", "kind", "steps") if isinstance(config.get(name), str | int)}


def _trainings(weights: Weights) -> list[Node]:
    """The runs that trained these weights; if MLflow has none, the checkpoint's own record."""
    config = weights.config
    parameters = {"parameters": config["params"]} if "params" in config else {}
    runs = [
        Node(
            "training",
            model.run_name or "run deleted",
            {"run": model.run_id, "pipeline": model.pipeline, "commit": model.commit} | parameters,
        )
        for model in weights.registered
    ]
    return runs or ([Node("training", "not in MLflow", parameters)] if parameters else [])


def _upstream(project: Project, weights: Weights) -> list[Node]:
    nodes, start_is_known = _trainings(weights), False
    for part in weights.parts:
        name = "this checkpoint" if part == weights.directory else part.name
        table = weights.trained_on(part)
        if table is None:
            text = "loaded with it" if part != weights.directory else "imported, or trained before this was recorded"
            project.gone.append(
                f"{weights.name}: what {'it' if part == weights.directory else f'its {name}'} was trained on is unknown ({text})"
            )
            continue
        for earlier in (False, True):
            rows = table.filter(pc.equal(table["earlier"], earlier))
            if rows.num_rows:
                nodes.append(_trained_on(project, rows, f"{name}, in an earlier training" if earlier else name))
                start_is_known |= earlier
    if "started_from" in weights.config and not start_is_known:
        project.gone.append(f"{weights.name}: what the checkpoint that it started from was trained on is unknown")
    return nodes


def _trained_on(project: Project, rows: pa.Table, name: str) -> Node:
    clips: dict[tuple[str | None, str | None], set[str]] = {}
    for row in rows.select(["recording_id", "source", "clip_id"]).to_pylist():
        clips.setdefault((row["recording_id"], row["source"]), set()).add(row["clip_id"])
    recordings = [
        Node(
            "recording",
            recording_id or "unknown",
            {"source": source, "clips": sorted(ids)} | ({} if recording_id in project.recordings else {"gone": True}),
        )
        for (recording_id, source), ids in clips.items()
    ]
    gone = sum("gone" in node.facts for node in recordings)
    if gone:
        project.gone.append(f"{gone} of {len(recordings)} recordings that trained {name} are no longer in data/corpus")
    mixes = pc.count_distinct(rows["mix"]).as_py()
    counts = {"recordings": len(recordings), "clips": sum(map(len, clips.values()))} | ({"mixes": mixes} if mixes else {})
    return Node("training data of", name, counts, recordings)


def _products(project: Project, weights: Weights) -> list[Node]:
    nodes = []
    for model in weights.registered:
        scores = {key: value for key, value in model.tags.items() if re.match(r"(fad|mmd|kl|label|forgotten)", key)}
        nodes.append(Node("registered", f"{model.name} version {model.version}", {"aliases": list(model.aliases)} | scores))
    family = weights.directory.name
    if weights.directory.resolve() != (project.data / "models" / family).resolve():
        return nodes
    sounds = sorted((project.data / "generated" / family).glob("*.wav"))
    if sounds:
        below = [Node("sound", str(path.relative_to(project.root))) for path in sounds]
        nodes.append(Node("sounds", f"data/generated/{family}", {"count": len(sounds)}, below))
    metrics = project.data / "metrics" / "evaluate" / f"{family}.json"
    if metrics.is_file():
        content = params.read_json(metrics, "`dvc repro`")
        scores = {key: value for key, value in content.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        nodes.append(Node("scores", f"data/report/{family}", scores))
    return nodes
