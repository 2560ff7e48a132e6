"""Scores of folders and of the pipeline's families: a protocol's metrics of generated sounds, with baselines.

A baseline is the same measurement with other sounds in place of the generated ones. docs/evaluation.md describes all of them
(`codec_floor` is what the codec was given), and which scores rank no models.
"""

import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import soundmill
from soundmill import shards
from soundmill.audio.resample import QUALITY
from soundmill.errors import UserError, first_of
from soundmill.evaluation import features, protocols, waveforms
from soundmill.evaluation.cache import shares
from soundmill.evaluation.ladder import RUNGS, Ladder, Sides, add_sentences
from soundmill.evaluation.library import Library, Members, Setup, rounded
from soundmill.evaluation.score_rows import BETTER, number
from soundmill.metrics import scores

FEWEST_REFERENCE = 50  # sounds; with fewer a Fréchet distance is mostly bias
FRECHET = ("fad", "fad_inf", "fad_per_clip", "fd")
BIASED = ("fad", "fd")  # pure bias between sets from one distribution
PER_CLIP = "fad_per_clip"  # ranks the clips on the report page
LADDER = "ladder "  # begins the role of a rung's value
RANKING = "ranking"  # role of PER_CLIP if the protocol does not score it
LENGTH_TOLERANCE = 0.05  # relative difference of mean lengths above which a warning is given
FAULTS = {"silent": "silent", "clipped": "clipped", "duplicate": "copies of another one"}


@dataclass(frozen=True)
class Comparisons:
    """The compared sets, pairs with equal ids, and sounds with their prompts, each by role (`generated`, `floor`, `silence` …).

    `waves` are reconstructions and their originals, `waves_prefix` the prefix of their scores' keys. `why_not` gives the reason why
    `pairs` or `prompts` are missing.
    """

    sets: Mapping[str, Sides]
    pairs: Mapping[str, Sides] = field(default_factory=dict)
    prompts: Mapping[str, Sides] = field(default_factory=dict)
    waves: Sides | None = None
    waves_prefix: str = ""
    ladder: Ladder | None = None
    why_not: Mapping[str, str] = field(default_factory=dict)

    def of(self, metric: str) -> tuple[str, Mapping[str, Sides]]:
        """The kind of comparison that a metric needs, and its sides by role."""
        if metric == protocols.CLAP_SCORE:
            return "prompts", self.prompts
        return ("pairs", self.pairs) if scores.METRICS[metric].paired else ("sets", self.sets)


@dataclass(frozen=True)
class Measurement:
    """One metric of one set against another, as it is sent to a worker."""

    key: str
    metric: str
    role: str
    generated: features.View
    reference: features.View
    seed: int
    replicates: int

    @property
    def bias(self) -> float:
        """Of a Fréchet distance of so many sounds, up to a factor."""
        return sum(1 / max(1, len(view.keys)) for view in (self.generated, self.reference))


@dataclass
class Scored:
    """Scores to publish: `values` by key, `baselines` and reasons; `of` has the values of single clips by score."""

    values: dict[str, float | None] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    left_out: dict[str, str] = field(default_factory=dict)
    unranked: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    of: dict[str, dict[str, float]] = field(default_factory=dict)
    ladder: dict[str, Any] = field(default_factory=dict)

    def add(self, key: str, result: Mapping[str, Any]) -> None:
        flat = {name: value for name, value in result.items() if isinstance(value, (int, float))}
        self.values |= {key if name == "value" else f"{key}_{name}": rounded(value) for name, value in flat.items()}
        self.warnings += [f"{key}: {text}" for text in result.get("warnings", ())]
        if "of" in result:
            self.of[key] = result["of"]

    def check_rank(self, key: str, metric: str, embedder: str, seen: Mapping[str, str]) -> None:
        """Mark a score that must not rank models: the training used its embedder (`seen`: name → reason), or it is unfit."""
        reason = seen.get(embedder) or unfit(metric, self.baselines.get(key, {}))
        if self.values.get(key) is not None and reason:
            self.unranked[key] = reason
            self.warnings.append(f"{key} ranks no models: {reason}.")

    def document(self) -> dict[str, Any]:
        ladder = {"ladder": self.ladder} if self.ladder else {}
        return {**self.values, "baselines": dict(self.baselines), "left_out": self.left_out, "unranked": self.unranked, **ladder}


def score(setup: Setup, library: Library, comparisons: Comparisons, seen: Mapping[str, str]) -> Scored:
    """All scores of the protocol that these sounds allow, and why the others are left out."""
    protocol, scored = setup.protocol, Scored()
    for spec in protocol.scores:
        kind, roles = comparisons.of(spec.metric)
        count = len(roles["generated"][1]) if "generated" in roles else None
        if count is None:
            scored.left_out[spec.key] = comparisons.why_not[kind]
        elif _too_few(spec, count):
            why = f"a Fréchet distance needs at least {FEWEST_REFERENCE} reference sounds, not {count}: it would be mostly bias"
            scored.left_out[spec.key] = why
        if spec.key in scored.left_out and spec.metric in FRECHET:
            scored.values[spec.key] = None
    tasks = _plan(setup, library, comparisons, scored.left_out)
    rungs: dict[str, dict[str, float]] = defaultdict(dict)
    results = _measure_all(setup, tasks, [*_waves(library, comparisons)])
    _align_floors(tasks, results)
    for (key, role), result in results.items():
        if role.startswith(LADDER):
            rung = role.removeprefix(LADDER)
            if "value" in result:
                rungs[key][rung] = rounded(result["value"])
            else:
                scored.warnings.append(f"{key}: the ladder has no {RUNGS.get(rung, rung)}: {result['missing']}.")
        elif "missing" in result and role == "generated":
            scored.left_out[key] = result["missing"]
        elif role == "generated" and "value" in result:
            scored.add(key, result)
        elif role == RANKING and "of" in result:
            scored.of[key] = result["of"]
        elif "value" in result:
            scored.baselines[key][role] = rounded(result["value"])
    scored.ladder = comparisons.ladder.document(rungs) if comparisons.ladder else {}
    if comparisons.ladder and not scored.ladder:
        scored.left_out["ladder"] = comparisons.ladder.why_not()
    scored.warnings += [f"{key} is left out: {why}." for key, why in scored.left_out.items()]
    for spec in protocol.scores:
        scored.check_rank(spec.key, spec.metric, spec.embedder, seen)
    return scored


def _align_floors(tasks: Sequence[Measurement], results: Mapping[tuple[str, str], dict[str, Any]]) -> None:
    """Multiply Fréchet distances of real sets, which are all bias, by the ratio of the compared sets' bias to theirs."""
    compared = {task.key: task for task in tasks if task.metric in BIASED and task.role == "generated"}
    for task in tasks:
        if task.role != "floor" or task.key not in compared or "value" not in (floor := results[task.key, "floor"]):
            continue
        generated = results[task.key, "generated"]
        if "bias" in floor and "bias" in generated:  # measured, as embeddings are few
            bias, of_floor = generated["bias"], floor["bias"]
        else:  # it falls with the number of sounds
            bias, of_floor = compared[task.key].bias, task.bias
        floor["value"] *= bias / of_floor if of_floor else 1.0  # 0: the reference's sounds are all equal


def check_measured(protocol: protocols.Protocol, left_out: Mapping[str, str]) -> None:
    """UserError with the reason of each score if all of the protocol are left out."""
    if all(spec.key in left_out for spec in protocol.scores):
        lines = "".join(f"\n  {key}: {why}" for key, why in left_out.items())
        raise UserError(f"no score of protocol {protocol.label} can be measured of these sounds:{lines}")


def _too_few(spec: protocols.ScoreSpec, reference: int) -> bool:
    return spec.metric in FRECHET and reference < FEWEST_REFERENCE


def climbing(setup: Setup, reference: int) -> set[str]:
    """Embedders of the scores that are also measured on the ladder, with this many reference sounds."""
    return {spec.embedder for spec in setup.protocol.scores if spec.metric in setup.ladder and not _too_few(spec, reference)}


def unfit(metric: str, baselines: Mapping[str, float]) -> str | None:
    """Why a metric cannot rank: silence or noise reaches the floor, or a constant answer the probe on real clips; else None."""
    best = baselines.get("floor", baselines.get("real"))
    if best is None:
        return None
    sign = 1 if BETTER[metric] == "higher" else -1
    as_good = [name for name in (*features.SYNTHETIC, "chance") if name in baselines and sign * baselines[name] >= sign * best]
    if not as_good:
        return None
    values = " and ".join(f"{name} ({number(metric, baselines[name])})" for name in as_good)
    verb = "are" if len(as_good) > 1 else "is"
    return f"unfit for these sets: {values} {verb} as good as real sound ({number(metric, best)})"


def _plan(setup: Setup, library: Library, comparisons: Comparisons, left_out: Mapping[str, str]) -> list[Measurement]:
    """The measurements of every score, of the rungs of the ladder, and those that the report ranks single clips by."""
    protocol, ladder, tasks = setup.protocol, comparisons.ladder, []
    for spec in protocol.scores:
        if spec.key in left_out:
            continue
        kind, roles = comparisons.of(spec.metric)
        for role, sides in roles.items():
            replicates = protocol.replicates if role == "generated" else 0
            views = (library.view(spec.embedder, side) for side in sides)
            tasks.append(Measurement(spec.key, spec.metric, role, *views, protocol.seed, replicates))
        if ladder and ladder.clips.ids and spec.metric in ladder.metrics and "floor" in roles:
            for rung, sides in ladder.sides(roles["floor"], roles["generated"], paired=kind != "sets"):
                views = (library.view(spec.embedder, side) for side in sides)
                tasks.append(Measurement(spec.key, spec.metric, LADDER + rung, *views, protocol.seed, 0))
    first = setup.configs[0].name
    ranking = f"{PER_CLIP}_{first}"
    if all(task.key != ranking for task in tasks) and protocols.supports(first, PER_CLIP):
        views = (library.view(first, side) for side in comparisons.sets["generated"])
        tasks.append(Measurement(ranking, PER_CLIP, RANKING, *views, protocol.seed, 0))
    return tasks


def _waves(library: Library, comparisons: Comparisons) -> Iterator[tuple[str, str, Sequence[waveforms.Pair]]]:
    """(prefix of the key, role, some pairs) of reconstructions, and of silence and noise in their place."""
    if comparisons.waves is None:
        return
    reconstructions, originals = comparisons.waves
    sounds = {clip_id: library.sounds[originals.role][name] for clip_id, name in originals.ids.items()}
    facts = {clip_id: library.facts[originals.role][name] for clip_id, name in originals.ids.items()}
    roles = {"generated": {clip_id: library.sounds[reconstructions.role][name] for clip_id, name in reconstructions.ids.items()}}
    for role in features.SYNTHETIC:
        seed = library.setup.protocol.seed
        roles[role] = {clip_id: features.synthetic(role, clip_id, of, seed) for clip_id, of in facts.items()}
    for role, of in roles.items():
        pairs = [(clip_id, of[clip_id], sounds[clip_id]) for clip_id in sorted(sounds)]
        for start in range(0, len(pairs), waveforms.TASK_SIZE):
            yield comparisons.waves_prefix, role, pairs[start : start + waveforms.TASK_SIZE]


def _measure_all(
    setup: Setup, tasks: Sequence[Measurement], waves: Sequence[tuple[str, str, Sequence[waveforms.Pair]]]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Results of all metrics by (key, role)."""
    calls = [((measure, task), 1 + task.replicates) for task in tasks]
    calls += [((waveforms.measure, pairs), len(pairs)) for *_, pairs in waves]
    jobs = [shards.Job(str(number), call, weight) for number, (call, weight) in enumerate(calls)]
    with setup.progress(sum(job.weight for job in jobs), "score", "resample") as tick:
        made = iter(shards.map_values(operator.call, jobs, workers=setup.workers, progress=tick))
    results = {(task.key, task.role): next(made) for task in tasks}
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for prefix, role, _ in waves:
        pairs[prefix, role] += next(made)
    return results | _of_waves(setup, pairs)


def measure(task: Measurement) -> dict[str, Any]:
    sides = side(task.generated, task.metric), side(task.reference, task.metric)
    try:
        return scores.compute(task.metric, *sides, seed=task.seed, replicates=task.replicates)
    except UserError as error:
        return {"missing": str(error)}  # e.g. too few or too short sounds; other scores do not depend on it


def _of_waves(
    setup: Setup, by_role: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Means over pairs, with intervals for the role `generated`."""
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for (prefix, role), pairs in by_role.items():
        silent, cut = sum("lsd" not in pair for pair in pairs), sum(pair["cut"] for pair in pairs)
        warnings = []
        if silent:
            warnings.append(f"{silent} of {len(pairs)} originals are digital silence and were left out.")
        if cut:
            warnings.append(f"{cut} of {len(pairs)} sounds differ in length from their originals: the longer one was cut.")
        for metric in waveforms.METRICS:
            of = {pair["id"]: pair[metric] for pair in pairs if metric in pair}
            if of:
                replicates = setup.protocol.replicates if role == "generated" else 0
                result = scores.mean_with_interval(of, setup.protocol.seed, replicates)
                results[f"{prefix}{metric}", role] = result | {"warnings": warnings if metric == "lsd" else []}
            elif role == "generated":
                results[f"{prefix}{metric}", role] = {"missing": "every original is digital silence"}
    return results


def side(view: features.View, metric: str) -> scores.EmbeddingSet:
    """A set as a metric takes it: without sounds too short for a patch, which `metrics_of` counts and names."""
    embedded = view.open()
    keys = {clip_id: key for clip_id, key in view.keys.items() if embedded.facts[key].patches}
    logits = scores.ClipLogits(tuple(keys), lambda clip_id: embedded.logits(keys[clip_id]))
    return scores.EmbeddingSet(
        tuple(keys),
        lambda: ((clip_id, embedded.frames(key)) for clip_id, key in keys.items()),
        logits if scores.METRICS[metric].needs_logits else {},
    )


def metrics_of(library: Library, sides: Mapping[str, Members], scored: Scored) -> dict[str, Any]:
    """The JSON document about the sounds of each side (shares, counts, seconds, digests, warnings) and their scores."""
    setup, warnings = library.setup, []
    document: dict[str, Any] = {**provenance(setup), "counts": {role: len(members) for role, members in sides.items()}}
    facts = {role: [library.facts[members.role][name] for name in members.ids.values()] for role, members in sides.items()}
    for role, prefix in (("generated", ""), ("reference", "reference_")):
        for name, share in shares(facts[role]).items():
            document[f"{prefix}{name}_share"] = rounded(share)
            if share:
                warnings.append(f"{share:.1%} of the {role} sounds are {FAULTS[name]}, which no score shows.")
    document["seconds"] = {role: rounded(sum(of.seconds for of in facts[role])) for role in sides}
    for name in setup.protocol.embedders:
        embeddings = document["embedders"][name]["embeddings"] = {}
        for role, members in sides.items():
            patches = {clip_id: of.patches for clip_id, of in library.view(name, members).facts().items()}
            embeddings[role] = sum(patches.values())
            short = sorted(clip_id for clip_id, count in patches.items() if not count)
            if short:
                document["counts"][f"{role}_too_short_{name}"] = len(short)
                warnings.append(f"{len(short)} of the {role} sounds are too short for a patch of {name}: {first_of(short)}.")
    mean = {role: document["seconds"][role] / max(1, len(sides[role])) for role in ("generated", "reference")}
    if abs(mean["generated"] - mean["reference"]) > LENGTH_TOLERANCE * mean["reference"]:
        warnings.append(
            f"Generated sounds last {mean['generated']:.3g} s on average and reference sounds {mean['reference']:.3g} s: "
            "the difference in length alone changes scores."
        )
    document["files"] = {role: library.digest(members) for role, members in sides.items()}
    document |= {"warnings": [*scored.warnings, *warnings], **scored.document()}
    add_sentences(document)
    return document


def provenance(setup: Setup) -> dict[str, Any]:
    protocol = setup.protocol
    return {
        "protocol": protocol.label,
        "version": protocol.version,
        "comparable": protocol.comparable,
        "soundmill": soundmill.__version__,
        "resampler": f"soxr {QUALITY}",
        "sample_rate": protocol.sample_rate,
        "level": protocol.level,
        "seed": protocol.seed,
        "replicates": protocol.replicates,
        "embedders": {config.name: {"weights": config.weights, **dict(config.options)} for config in setup.configs},
    }
