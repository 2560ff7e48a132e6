"""Folders of sounds in, a result out: scores by a named protocol, the ruler beside each, and all that makes a number a result.

The ruler is the same measurement of other sounds in place of the generated ones:

floor    of metrics without pairs: one half of the reference against the other. A Fréchet distance between sets of one kind of sound
         is bias alone, in proportion to 1/n + 1/m of their sizes: that of the halves is brought to the sizes of the sets
silence  digital silence, and
noise    white noise, as long as the generated sounds and as many, up to RULER_SOUNDS
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import soundmill
from soundmill import shards
from soundmill.audio.resample import QUALITY
from soundmill.errors import UserError
from soundmill.evaluation import comparison, features, folders, memorisation, protocols, scores
from soundmill.evaluation.cache import Facts
from soundmill.evaluation.protocol import MEANINGS, rounded
from soundmill.evaluation.quality import shares

RULER_SOUNDS = 1000
BIASED = ("fad", "fd")  # distances that are all bias between sets of one kind
MOST_CLASSES = 200  # folders that are shown as classes
OTHER_LENGTH = 0.05  # a mean length that differs by more of itself is told
PER_CLIP = "fad_per_clip"  # by which clips are ranked,
RANKING = "ranking"  # whether or not it is a score

Progress = Callable[[int, str, str], AbstractContextManager[Callable[[int], object]]]


def in_silence(total: int, label: str, unit: str) -> AbstractContextManager[Callable[[int], object]]:
    """No bar."""
    return nullcontext(lambda count: None)


@dataclass(frozen=True)
class Setup:
    """How sounds are scored; `cache` is the directory of embeddings, `tagger` that of a pipeline's own, if there is one."""

    protocol: protocols.Protocol
    cache: Path
    workers: int
    tagger: Path | None = None
    progress: Progress = in_silence

    @property
    def judges(self) -> list[features.Judge]:
        return [
            features.Judge(
                name, self.tagger if name == "tagger" else None, self.protocol.sample_rate, tuple(sorted(options.items()))
            )
            for name, options in self.protocol.embedders.items()
        ]

    def read(self, *roots: Path) -> list[folders.Folder]:
        """The sounds of these folders. Where a file cannot even be opened, all others are decoded, so that one error names all."""
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.cache}: embeddings cannot be kept there ({error.strerror}); name another by --cache") from None
        found = [folders.read(root, self.workers, self.cache / "files.sqlite") for root in roots]
        if refused := [row for folder in found for row in folder.refused]:
            sounds = [sound for folder in found for sound in folder.sounds]
            with self.progress(len(sounds) * len(self.judges), "embed", "clip") as tick:
                features.embed_all(self.judges, sounds, self.cache, self.workers, tick, refused)
        return found


@dataclass(frozen=True)
class Evaluation:
    """A result: `metrics` is the JSON document, `of` has values of single clips by score and id."""

    metrics: dict[str, Any]
    of: dict[str, dict[str, float]]
    generated: folders.Folder
    reference: folders.Folder
    paired: bool
    training: folders.Folder | None = None
    memorised: memorisation.Memorisation | None = None


@dataclass(frozen=True)
class Measurement:
    """One metric of one set against another, in the form a worker can be told."""

    key: str
    metric: str
    role: str
    generated: features.View
    reference: features.View
    seed: int
    replicates: int
    scale: float = 1.0  # of the value


def evaluate(
    setup: Setup,
    generated: Path,
    reference: Path,
    unpaired: bool = False,
    training: Path | None = None,
    captions: Path | None = None,
) -> Evaluation:
    """Score the sounds below one folder against those below another.

    Whatever cannot be decoded, and of pairs whatever lacks its partner, raises a UserError that names all of it. `unpaired`: equal
    ids mean nothing. `training`: a folder of sounds of which generated ones may be copies; `captions`: a csv of prompts.
    """
    protocol, judges = setup.protocol, setup.judges
    given = setup.read(generated, reference, *([training] if training else []))
    sides, trained = {"generated": given[0], "reference": given[1]}, given[2] if training else None
    paired = not unpaired and folders.pairs(sides["generated"], sides["reference"])
    if captions and "clap" not in protocol.embedders:
        raise UserError(f"{captions}: only clap reads captions, and it does not judge here; add --embedder clap")
    prompts = folders.read_captions(captions, sides["generated"]) if captions else {}
    sounds = {role: {sound.clip_id: sound for sound in folder.sounds} for role, folder in sides.items()}
    ranked = sorted(sounds["generated"], key=lambda clip_id: shards.digest("ruler", protocol.seed, clip_id))[:RULER_SOUNDS]
    total = sum(map(len, sounds.values())) + len(features.MADE_UP) * len(ranked)
    with setup.progress(total * len(judges), "embed", "clip") as tick:
        wanted = [sound for of in sounds.values() for sound in of.values()]
        damaged = features.embed_all(judges, wanted, setup.cache, setup.workers, tick)
        facts = {role: features.view(judges[0], of.values(), setup.cache).facts() for role, of in sounds.items()}
        heard = {clip_id: facts["generated"][clip_id] for clip_id in sorted(ranked)}
        sounds["silence"] = {clip_id: features.silence(of) for clip_id, of in heard.items()}
        sounds["noise"] = {clip_id: features.noise(clip_id, of, protocol.seed) for clip_id, of in heard.items()}
        made_up = [*sounds["silence"].values(), *sounds["noise"].values()]
        damaged += features.embed_all(judges, made_up, setup.cache, setup.workers, tick)
    views = {
        (judge.name, role): features.View(judge.directory(setup.cache), {clip_id: sound.key for clip_id, sound in of.items()})
        for judge in judges
        for role, of in sounds.items()
    }
    if prompts:
        reader = next(judge for judge in judges if judge.name == "clap")
        views["clap", "prompts"] = features.embed_texts(reader, prompts, setup.cache)
    lacking = _lacking(protocol, paired, unpaired, bool(prompts))
    found = _measure(setup, _plan(protocol, lacking, views, judges[0].name))
    lacking |= {key: result["missing"] for (key, role), result in found.items() if role == "generated" and "missing" in result}
    _check_some(protocol, lacking)
    of = {key: result["of"] for (key, role), result in found.items() if role in ("generated", RANKING) and "of" in result}
    metrics = _publish(setup, sides, views, facts, lacking, found, paired)
    if classes := _classes(of):
        metrics["classes"] = classes
    memorised = None
    if trained:
        roles = [folder.sounds for folder in (*sides.values(), trained)]
        with setup.progress(2 * sum(map(len, roles)), "look for copies", "clip") as tick:
            memorised = memorisation.look(judges[0], *roles, setup.cache, setup.workers, tick)
        metrics |= {key: rounded(value) for key, value in memorised.metrics().items()}
        metrics["counts"] |= {"training": memorised.training, "held_out": len(memorised.held_out)}
        metrics["files"]["training"] = _list_digest(trained)
        metrics["warnings"] += memorised.warnings()
        damaged += memorised.damaged
    if damaged:
        metrics["counts"]["damaged"] = len(damaged)
        metrics["warnings"].append(about_damaged(damaged))
    return Evaluation(metrics, of, sides["generated"], sides["reference"], paired, trained, memorised)


def about_damaged(names: Sequence[str]) -> str:
    return f"{len(names)} files of kept embeddings were damaged, and made anew: the scores are right, look after the disk."


def _lacking(protocol: protocols.Protocol, paired: bool, unpaired: bool, prompts: bool) -> dict[str, str]:
    """Scores that cannot be measured, and why."""
    said = {}
    for score in protocol.scores:
        if score.metric == protocols.ALONE and not prompts:
            said[score.key] = "no prompts are given (--captions)"
        elif score.metric != protocols.ALONE and scores.METRICS[score.metric].paired and not paired:
            said[score.key] = "equal names are said to mean nothing" if unpaired else "the folders have no ids in common"
    return said


def _check_some(protocol: protocols.Protocol, lacking: Mapping[str, str]) -> None:
    """Raise UserError, saying why of each, where no score at all can be measured."""
    if len(lacking) == len(protocol.scores):
        lines = "".join(f"\n  {key}: {why}" for key, why in lacking.items())
        raise UserError(f"no score of protocol {protocol.label} can be measured of these sounds:{lines}")


def compare(setup: Setup, a: Path, b: Path, reference: Path, unpaired: bool = False) -> dict[str, Any]:
    """Is one of two sets of sounds, of the same ids, better than the other? The JSON document: by score what `comparison` says."""
    protocol, judges = setup.protocol, setup.judges
    sides = dict(zip(("a", "b", "reference"), setup.read(a, b, reference), strict=True))
    paired = not unpaired and folders.pairs(sides["a"], sides["reference"])
    if not folders.pairs(sides["a"], sides["b"]):
        raise UserError(f"{a} and {b} have no ids in common: two models are compared by what they made of the same prompts")
    sounds = [sound for folder in sides.values() for sound in folder.sounds]
    with setup.progress(len(sounds) * len(judges), "embed", "clip") as tick:
        damaged = features.embed_all(judges, sounds, setup.cache, setup.workers, tick)
    by_name = {judge.name: judge for judge in judges}
    lacking = _lacking(protocol, paired, unpaired, prompts=False)
    wanted = [score for score in protocol.scores if score.key not in lacking]
    found = {}
    with setup.progress(len(wanted) * (1 + protocol.replicates), "compare", "resample") as tick:
        for score in wanted:
            views = [features.view(by_name[score.embedder], folder.sounds, setup.cache) for folder in sides.values()]
            first, second, real = (side(view, score.metric) for view in views)
            try:
                found[score.key] = comparison.compare(
                    score.metric, first, second, real, seed=protocol.seed, replicates=protocol.replicates, progress=tick
                )
            except UserError as error:
                lacking[score.key] = str(error)
    _check_some(protocol, lacking)
    return {
        **_provenance(setup),
        "counts": {role: len(folder.sounds) for role, folder in sides.items()} | ({"damaged": len(damaged)} if damaged else {}),
        "files": {role: _list_digest(folder) for role, folder in sides.items()},
        "comparison": {key: _rounded(result) for key, result in found.items()},
        "left_out": lacking,
        "warnings": [f"{key}: {text}" for key, result in found.items() for text in result["warnings"]]
        + [f"{key} is left out: {why}." for key, why in lacking.items()]
        + ([about_damaged(damaged)] if damaged else []),
    }


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write a result as JSON; the file appears whole or not at all."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    shards.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def user_cache() -> Path:
    """Where embeddings are kept, unless another place is named."""
    import pooch

    return Path(pooch.os_cache("soundmill")) / "embeddings"


def _plan(
    protocol: protocols.Protocol, lacking: Mapping[str, str], views: Mapping[tuple[str, str], features.View], first: str
) -> list[Measurement]:
    """Every score of the generated sounds and of the ruler, and a ranking of the clips."""
    tasks = []
    halves = {name: _halves(views[name, "reference"], protocol.seed) for name in protocol.embedders}
    for score in protocol.scores:
        if score.key in lacking:
            continue
        paired = scores.METRICS[score.metric].paired
        reference = views[score.embedder, "prompts" if score.metric == protocols.ALONE else "reference"]
        measured = {"generated": (views[score.embedder, "generated"], reference)}
        for role in features.MADE_UP:
            made_up = views[score.embedder, role]
            measured[role] = (made_up, reference.of(made_up.keys) if paired else reference)
        if not paired:
            measured["floor"] = halves[score.embedder]
        for role, (these, those) in measured.items():
            replicates = protocol.replicates if role == "generated" else 0
            scale = _scale(score.metric, (these, those), measured["generated"]) if role == "floor" else 1.0
            tasks.append(Measurement(score.key, score.metric, role, these, those, protocol.seed, replicates, scale))
    ranking = f"{PER_CLIP}_{first}"
    if all(task.key != ranking for task in tasks) and protocols.can_judge(first, PER_CLIP):
        ends = views[first, "generated"], views[first, "reference"]
        tasks.append(Measurement(ranking, PER_CLIP, RANKING, *ends, protocol.seed, 0))
    return tasks


def _scale(metric: str, halves: tuple[features.View, features.View], views: tuple[features.View, features.View]) -> float:
    """By which the floor of halves is that of sets of other sizes."""
    if metric not in BIASED:
        return 1.0
    bias, wanted = (sum(1 / max(1, len(view.keys)) for view in pair) for pair in (halves, views))
    return wanted / bias


def _halves(view: features.View, seed: int) -> tuple[features.View, features.View]:
    ids = sorted(view.keys, key=lambda clip_id: shards.digest("halves", seed, clip_id))
    return view.of(sorted(ids[: len(ids) // 2])), view.of(sorted(ids[len(ids) // 2 :]))


def side(view: features.View, metric: str) -> scores.Side:
    """A set as a metric takes it: without sounds too short for a patch, which are counted and told."""
    found = view.open()
    keys = {clip_id: key for clip_id, key in view.keys.items() if found.facts[key].patches}
    needed = scores.METRICS[metric].needs_logits
    return scores.Side(
        tuple(keys),
        lambda: ((clip_id, found.frames(key)) for clip_id, key in keys.items()),
        features.Logits(found, keys) if needed else {},
    )


def _measure(setup: Setup, tasks: Sequence[Measurement]) -> dict[tuple[str, str], dict[str, Any]]:
    """What metrics say, by (key, role)."""
    jobs = [shards.Job(f"{index:05d}.json", (task,), 1 + task.replicates) for index, task in enumerate(tasks)]
    total = sum(job.weight for job in jobs)
    with setup.progress(total, "score", "resample") as tick, tempfile.TemporaryDirectory(prefix="soundmill-score-") as place:
        report = shards.map_shards(measure, jobs, Path(place) / "done", workers=setup.workers, progress=tick)
    return {(row["key"], row["role"]): row["found"] for row in report.details}


def measure(task: Measurement, output: Path) -> shards.Report:
    """One measurement, in a process of its own."""
    sides = side(task.generated, task.metric), side(task.reference, task.metric)
    try:
        found = scores.compute(task.metric, *sides, seed=task.seed, replicates=task.replicates)
    except UserError as error:
        found = {"missing": str(error)}  # by too few or too short sounds, say: the other scores do not depend on it
    if "value" in found and task.scale != 1:
        found["value"] *= task.scale
    output.touch()
    return shards.Report(details=[{"key": task.key, "role": task.role, "found": found}])


def _publish(
    setup: Setup,
    sides: Mapping[str, folders.Folder],
    views: Mapping[tuple[str, str], features.View],
    facts: Mapping[str, Mapping[str, Facts]],
    lacking: Mapping[str, str],
    found: Mapping[tuple[str, str], Mapping[str, Any]],
    paired: bool,
) -> dict[str, Any]:
    metrics, ruler, warnings = _provenance(setup), defaultdict(dict), []
    for (key, role), result in found.items():
        if role not in ("generated", RANKING) and "value" in result:
            ruler[key][role] = rounded(result["value"])
        elif role == "generated" and key not in lacking:
            flat = {name: value for name, value in result.items() if isinstance(value, (int, float))}
            metrics |= {key if name == "value" else f"{key}_{name}": rounded(value) for name, value in flat.items()}
            warnings += [f"{key}: {text}" for text in result["warnings"]]
    metrics["ruler"] = dict(ruler)
    for role, prefix in (("generated", ""), ("reference", "reference_")):
        for name, share in shares(of.quality for of in facts[role].values()).items():
            metrics[f"{prefix}{name}_share"] = rounded(share)
            if share:
                warnings.append(f"{share:.1%} of the {role} sounds are {MEANINGS[name]}; no score says so.")
    metrics["counts"] = {role: len(folder.sounds) for role, folder in sides.items()} | {
        "pairs": len(sides["generated"].sounds) if paired else 0,
        "silence": len(views[setup.judges[0].name, "silence"].keys),
        "noise": len(views[setup.judges[0].name, "noise"].keys),
    }
    metrics["seconds"] = {role: rounded(sum(of.seconds for of in facts[role].values())) for role in sides}
    for name in setup.protocol.embedders:
        embeddings = metrics["embedders"][name]["embeddings"] = {}
        for role in sides:
            patches = {clip_id: of.patches for clip_id, of in views[name, role].facts().items()}
            embeddings[role] = sum(patches.values())
            short = sorted(clip_id for clip_id, count in patches.items() if not count)
            if short:
                metrics["counts"][f"{role}_too_short_{name}"] = len(short)
                warnings.append(f"{len(short)} of the {role} sounds are too short for a patch of {name}: {folders.named(short)}.")
    mean = {role: metrics["seconds"][role] / metrics["counts"][role] for role in sides}
    if abs(mean["generated"] - mean["reference"]) > OTHER_LENGTH * mean["reference"]:
        warnings.append(
            f"Generated sounds last {mean['generated']:.3g} s on average and reference sounds {mean['reference']:.3g} s: "
            "lengths alone move scores."
        )
    metrics["files"] = {role: _list_digest(folder) for role, folder in sides.items()}
    metrics["left_out"] = dict(lacking)
    warnings += [f"{key} is left out: {why}." for key, why in lacking.items()]
    warnings += [f"{folder.root}: {remark}" for folder in sides.values() for remark in folder.remarks]
    metrics["warnings"] = warnings
    return metrics


def _provenance(setup: Setup) -> dict[str, Any]:
    protocol = setup.protocol
    return {
        "protocol": protocol.label,
        "version": protocol.version,
        "soundmill": soundmill.__version__,
        "resampler": f"soxr {QUALITY}",
        "sample_rate": protocol.sample_rate,
        "seed": protocol.seed,
        "replicates": protocol.replicates,
        "embedders": {judge.name: {"weights": judge.weights, **dict(judge.options)} for judge in setup.judges},
    }


def _list_digest(folder: folders.Folder) -> str:
    return shards.digest([[sound.clip_id, sound.key] for sound in folder.sounds])


def _rounded(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: rounded(value) if isinstance(value, float) else value for name, value in result.items()}


def _classes(of: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Means of the clips' own values by first folder; nothing where there are no folders."""
    by_class: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, values in of.items():
        for clip_id, value in values.items():
            by_class[clip_id.partition("/")[0] if "/" in clip_id else ""][key].append(value)
    if len(by_class) < 2 or len(by_class) > MOST_CLASSES:
        return {}
    return {
        name: {"generated": max(map(len, found.values()))} | {key: rounded(float(np.mean(values))) for key, values in found.items()}
        for name, found in sorted(by_class.items())
    }
