"""The lineage of a sound: recording → clips → mixes → shards → trainings → checkpoints → sounds and scores."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from soundmill import hashing, manifest, params
from soundmill.audio import tags
from soundmill.errors import UserError
from soundmill.holdings import Held, Piece, Project, Weights


@dataclass(frozen=True)
class Node:
    """One thing in the tree; `below` are its sources, or its products."""

    kind: str
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    below: list["Node"] = field(default_factory=list)

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
    about = tags.comment(path) if path.suffix.lower() == ".wav" and path.is_file() else {}
    if "checkpoint" in about:
        return Lineage(Node("sound", str(path), about), _checkpoints(project, about), [], project.gone)
    beside = path.parent / manifest.ABOUT_SOUNDS
    about = params.read_json(beside, "`dvc repro`") if path.is_file() and beside.is_file() else None
    if isinstance(about, dict) and {"family", "made_by"} <= about.keys():  # else it is another tool's
        recordings = [_recording(project, piece) for piece in project.find(f"clip:{path.stem}")]
        clip = Node("clip", path.stem, {"role": "request" if about["made_by"] == "generate" else "input"}, recordings)
        return Lineage(Node("sound", str(path), about), [clip, *_checkpoints(project, about)], [], project.gone)
    if thing in project.mixes:
        sources = [
            Node("clip", clip_id, {}, [_recording(project, piece) for piece in project.find(f"clip:{clip_id}")])
            for clip_id in project.mixes[thing]
        ]
        trained = [
            _checkpoint(project, weights, {"part": part} if part else {})
            for weights, part, table in project.trained()
            if pc.any(pc.equal(table["mix"], thing)).as_py()
        ]
        paths = [Node("shard", path) for path in project.shards_with({thing})]
        return Lineage(Node("mix", thing), sources, paths + trained, project.gone)
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
    terms = {name: row[name] or "unknown" for name in ("licence", "ai_terms")}
    terms |= {name: row[name] for name in ("creator", "source_url", "terms_found")}
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
    runs = []
    for model in weights.registered:
        facts = {"run": model.run_id, "pipeline": model.pipeline, "commit": model.commit} | parameters
        runs.append(Node("training", model.run_name or "run deleted", facts))
    return runs or ([Node("training", "not in MLflow", parameters)] if parameters else [])


def _upstream(project: Project, weights: Weights) -> list[Node]:
    nodes, start_is_known = _trainings(weights), False
    for part in weights.parts:
        name = "this checkpoint" if part == weights.directory else part.name
        table = weights.trained_on(part)
        if table is None:
            what, why = f"its {name}", "loaded with it"
            if part == weights.directory:
                what, why = "it", "imported, or trained before this was recorded"
            project.gone.append(f"{weights.name}: what {what} was trained on is unknown ({why})")
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
    recordings = []
    for (recording_id, source), ids in clips.items():
        facts = {"source": source, "clips": sorted(ids)} | ({} if recording_id in project.recordings else {"gone": True})
        recordings.append(Node("recording", recording_id or "unknown", facts))
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
        nodes.append(Node("registered", str(model), {"aliases": list(model.aliases)} | scores))
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
