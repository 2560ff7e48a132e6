"""Comparison of several models pair by pair on the same requests, and scores of other folders against the same reference.

Also of a fine-tuned model with the one that it started from: same requests, seeds and protocol; and what it has forgotten.
"""

import itertools
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from soundmill import manifest, params
from soundmill.audio.flac import write_wav
from soundmill.errors import UserError
from soundmill.evaluation import embedders, evaluator, family, features, protocols
from soundmill.evaluation.comparison import beyond_chance, holm
from soundmill.evaluation.family import FamilyEvaluation, Source
from soundmill.evaluation.library import Setup
from soundmill.evaluation.protocols import EvaluateParams
from soundmill.evaluation.score_rows import SHORT_TITLES, number
from soundmill.metrics import scores

COMPARED = ("fad", "mmd", "kl")  # by a paired test; MMD only without FAD, which needs 50 real sounds
MIN_REPLICATES = 5_000
REPLICATES_PER_TEST = 100  # p is at least 1 / replicates and is multiplied by the number of tests: with 20 it would stay above 0.05
WORKERS = 2
COPIES = "memorised_"  # keys of the search for copies of training clips


@dataclass(frozen=True)
class PairwiseResult:
    """`differences`: metric, a, b, value (a − b), low, high, p, better; `others`: metrics by folder, as `evaluate` writes them.

    p is corrected for the number of tests; `better` is a name, `neither`, or `unranked` if the metric ranks no models.
    """

    differences: list[dict[str, Any]]
    others: dict[str, dict[str, Any]]
    unpaired: list[str]  # models with other requests than the majority, which are not compared
    failed: dict[str, str] = field(default_factory=dict)  # reason by folder of `others` that cannot be scored


def compare(
    models: Mapping[str, Path],
    others: Mapping[str, Path],
    clips: Path,
    catalog: Path,
    model_metrics: Mapping[str, Any],
    embedder: str,
    tagger: Path,
    cache: Path,
) -> PairwiseResult:
    """Compare models on the same requests, pair by pair, under one embedder.

    `models` are directories of `<clip id>.wav`; those with other requests than the majority are not compared. `others` are folders
    that are scored as sets without pairs. `model_metrics` are the metrics of one of the models, as the stage `evaluate` writes
    them: their reference, seed and number of replicates are used.
    """
    ids = {name: frozenset(family.sound_files(directory)) for name, directory in models.items()}
    requests = Counter(ids.values()).most_common(1)[0][0]
    paired = [name for name in models if ids[name] == requests]
    pairs = list(itertools.combinations(paired, 2))
    protocol = protocols.load("project").with_embedders([embedder])
    protocol = protocol.model_copy(update={name: model_metrics[name] for name in ("seed", "replicates")})
    replicates = max(MIN_REPLICATES, REPLICATES_PER_TEST * len(pairs) * len(COMPARED))

    with tempfile.TemporaryDirectory(prefix="soundmill-pairwise-") as place:
        reference, requested = Path(place) / "reference", Path(place) / "requested"
        listed = family.read_catalog(catalog)
        judged = manifest.judged_split(clip.split for clip in listed)
        reference_ids = {clip.clip_id for clip in listed if model_metrics["reference"] == "all" or clip.split == judged}
        _write_clips(family.shards_of(listed, clips, reference_ids), reference)
        by_set = {metric for metric in COMPARED if not scores.METRICS[metric].paired}
        rounds = [(set(COMPARED), reference, False)]
        if requests != reference_ids:  # paired metrics need the requested clips only, metrics of sets the whole reference
            _write_clips(family.shards_of(listed, clips, requests & reference_ids), requested)
            rounds = [(by_set, reference, True), ({*COMPARED} - by_set, requested, False)]
        differences = []
        for a, b in pairs:
            results: dict[str, Any] = {}
            for metrics, real, unpaired in rounds:
                if compared := [score for score in protocol.scores if score.metric in metrics]:
                    of_them = protocol.model_copy(update={"scores": compared, "replicates": replicates})
                    setup = Setup(of_them, cache, WORKERS, tagger)
                    results |= evaluator.compare(setup, models[a], models[b], real, unpaired)["comparison"]
            for metric in COMPARED:
                if metric == "mmd" and f"fad_{embedder}" in results:
                    continue
                if one := results.get(f"{metric}_{embedder}"):
                    ends = {key: one[key] for key in ("low", "high", "p")}
                    better = {"a": a, "b": b}.get(one["better"], one["better"])
                    differences.append({"metric": metric, "a": a, "b": b, "value": one["difference"], **ends, "better": better})
        scored, failed = {}, {}
        for name, directory in others.items():
            try:
                setup = Setup(protocol, cache, WORKERS, tagger)
                scored[name] = evaluator.evaluate(setup, directory, reference, unpaired=True).metrics
            except Exception as error:  # the others are still scored
                failed[name] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return PairwiseResult(correct(differences), scored, [name for name in models if name not in paired], failed)


def correct(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Correct p for the number of tests of metrics that rank models, and `better` to "neither" without a significant difference."""
    tests = [one for one in differences if one["better"] != "unranked"]
    for one, p in zip(tests, holm([one["p"] for one in tests]), strict=True):
        one |= {"p": p, "better": one["better"] if beyond_chance(p, one["low"], one["high"]) else "neither"}
    return differences


def _write_clips(by_shard: Mapping[Path, set[str]], directory: Path) -> None:
    directory.mkdir()
    for shard, clip_ids in by_shard.items():
        for clip_id, wave, rate in features.clips_of(shard, clip_ids):
            write_wav(directory / f"{clip_id}.wav", wave, rate)


def compare_with_base(
    setup: Setup, source: Source, options: EvaluateParams, evaluation: FamilyEvaluation, generated: Path, codec: Path, catalog: Path
) -> None:
    """Add the base to the result of a fine-tuned model; nothing if `codec` has no sounds of a base.

    Its scores become baselines. `metrics["base"]` has the differences, tuned − base, with a permutation test clip by clip, the
    copies of training clips among its sounds, and `forgetting`: the distance of the tuned model's sounds from the base's for the
    base's own prompts, or for others that are named, next to that of the base's with other seeds.
    """
    sounds = family.sound_files(codec / manifest.BASE)
    if not sounds:
        return
    metrics = evaluation.metrics
    plain = replace(setup, ladder=())
    theirs = family.evaluate(plain, replace(source, generated=sounds), options.model_copy(update={"subsets": []}), {}).metrics
    for key, baselines in metrics["baselines"].items():
        if theirs.get(key) is not None and not key.startswith("codec_"):  # the codec is the tuned model's
            baselines["base"] = theirs[key]
    differences, not_compared = _differences(setup, source, generated, codec / manifest.BASE, catalog, metrics)
    metrics["warnings"] += not_compared
    forgetting = _forgetting(plain, codec / manifest.OWN)
    training = sum(clip.split == "train" for clip in source.catalog)
    metrics["base"] = {
        "differences": differences,
        **{key: value for key, value in theirs.items() if key.startswith(COPIES)},
        **({"forgetting": forgetting} if forgetting else {}),
    }
    if (prompts := forgetting.get("prompts")) is not None:
        metrics["warnings"].append(
            "The base's checkpoint names no prompts of its own, so what was forgotten is measured with these: "
            f"{', '.join(prompts) or 'none, as it is unconditional'}."
        )
    metrics["warnings"].append(whether_better(differences, training, len(sounds)))


def _differences(
    setup: Setup, source: Source, tuned: Path, base: Path, catalog: Path, metrics: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Tuned − base under every embedder that is not a rating, corrected as one family of tests; and why some are missing."""
    differences, missing = [], []
    for judge in setup.protocol.embedders:
        if embedders.find(judge).ratings:
            continue
        models = {"tuned": tuned, "base": base}
        try:
            found = compare(models, {}, source.clips, catalog, metrics, judge, setup.tagger, setup.cache)
        except UserError as error:
            missing.append(f"Tuned and base are not compared by {judge}: {error}")
        else:
            differences += [{"embedder": judge, **one} for one in found.differences]
    correct(differences)  # again, as each comparison is corrected for its own tests alone
    return differences, missing


def _forgetting(setup: Setup, directory: Path) -> dict[str, Any]:
    """Scores of the sounds for the base's own prompts against the base's, by who made them; empty if there are none.

    `prompts` are those used if the base has none of its own.
    """
    found: dict[str, Any] = {}
    if (path := directory / manifest.OWN_PROMPTS).is_file():
        found |= params.read_json(path, "remake it with `dvc repro`")
    keys = [score.key for score in setup.protocol.scores]
    for name in ("tuned", "again"):
        if (directory / name).is_dir():
            try:
                scores = evaluator.evaluate(setup, directory / name, directory / "base").metrics
            except UserError as error:
                return {**found, "left_out": str(error)}
            found[name] = {key: scores[key] for key in keys if scores.get(key) is not None}
    return found


def whether_better(differences: list[Mapping[str, Any]], training: int, requests: int) -> str:
    """Whether it got better, in one sentence: under every embedder, as they may disagree."""
    parts = [
        f"{SHORT_TITLES[one['metric']]} ({one['embedder']}) {number(one['metric'], one['value'])} "
        f"({number(one['metric'], one['low'])} … {number(one['metric'], one['high'])}; p {one['p']:.2g})"
        for one in differences
    ]
    if not parts:
        return "Tuned and base could not be compared."
    told = f"Tuned − base: {', '.join(parts)}"
    better, worse = (
        [f"{SHORT_TITLES[one['metric']]} ({one['embedder']})" for one in differences if one["better"] == name]
        for name in ("tuned", "base")
    )
    if better and worse:
        return f"{told}: better by {', '.join(better)} and worse by {', '.join(worse)}, beyond chance."
    if by := better or worse:
        alone = f" by {', '.join(by)} alone" if len(by) < len(differences) else ""
        return f"{told}: it got {'better' if better else 'worse'}{alone}, beyond chance."
    return (
        f"{told}: not beyond chance. {training} training clips and {requests} requests are too few to tell that it got better; use "
        "more of either, or train longer."
    )
