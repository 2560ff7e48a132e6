"""Comparison of several models pair by pair on the same requests, and scores of other folders against the same reference."""

import itertools
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundmill import manifest
from soundmill.audio.flac import write_wav
from soundmill.errors import UserError
from soundmill.evaluation import evaluator, family, features, protocols
from soundmill.evaluation.comparison import beyond_chance, holm
from soundmill.evaluation.library import Setup
from soundmill.metrics import scores

COMPARED = ("fad", "mmd", "kl")  # by a paired test; MMD only without FAD, which needs 50 real sounds
MIN_REPLICATES = 5_000
REPLICATES_PER_TEST = 100  # p is at least 1 / replicates and is multiplied by the number of tests: with 20 it would stay above 0.05
WORKERS = 2


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

    def setup_for(metrics: set[str]) -> Setup:
        keys = {f"{metric}_{embedder}" for metric in metrics}
        compared = [score for score in protocol.scores if score.key in keys]
        return Setup(protocol.model_copy(update={"scores": compared, "replicates": replicates}), cache, WORKERS, tagger)

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
                if (setup := setup_for(metrics)).protocol.scores:
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
    """Write clips (shard → ids) as `<clip id>.wav`."""
    directory.mkdir()
    for shard, clip_ids in by_shard.items():
        for clip_id, wave, rate in features.clips_of(shard, clip_ids):
            write_wav(directory / f"{clip_id}.wav", wave, rate)
