"""Several models beside each other: which differences are real, and how folders of anyone's sounds score beside them."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundmill.audio.flac import write_wav
from soundmill.errors import UserError
from soundmill.evaluation import evaluator, family, features, protocols, scores
from soundmill.evaluation.comparison import beyond_chance, holm
from soundmill.evaluation.library import Setup

COMPARED = ("fad", "mmd", "kl")  # by a paired test; MMD only where there is no FAD, which needs 50 real sounds
LEAST_REPLICATES = 5_000
REPLICATES_PER_TEST = 100  # p is never under 1 / replicates, and is multiplied by the number of tests: 20 would never reach 0.05
WORKERS = 2


@dataclass(frozen=True)
class PairwiseResult:
    """`differences`: metric, a, b, value (a − b), low, high, p, better; `others`: metrics by folder, as `evaluate` writes them.

    p is corrected for the number of tests; `better` is a name, `neither`, or `unranked` where the metric ranks no models.
    """

    differences: list[dict[str, Any]]
    others: dict[str, dict[str, Any]]
    unpaired: list[str]  # models that made sounds for other requests than most
    failed: dict[str, str] = field(default_factory=dict)  # of `others`: those that cannot be scored, and why


def compare(
    models: Mapping[str, Path],
    others: Mapping[str, Path],
    clips: Path,
    catalog: Path,
    like: Mapping[str, Any],
    embedder: str,
    tagger: Path,
    cache: Path,
) -> PairwiseResult:
    """Compare what models made of the same requests, pair by pair, under one embedder.

    `models` are directories of `<clip id>.wav`; those whose requests are others than most have are in no pair. `others` are scored
    as sets that are no pairs. `like` are the metrics that `evaluate` wrote of a model: reference, seed and intervals are its own.
    """
    ids = {name: frozenset(family.sound_files(directory)) for name, directory in models.items()}
    wanted = Counter(ids.values()).most_common(1)[0][0]
    paired = [name for name in models if ids[name] == wanted]
    pairs = list(itertools.combinations(paired, 2))
    protocol = protocols.load("project").with_embedders([embedder])
    protocol = protocol.model_copy(update={"seed": like["seed"], "replicates": like["replicates"]})
    replicates = max(LEAST_REPLICATES, REPLICATES_PER_TEST * len(pairs) * len(COMPARED))

    def setup_for(metrics: set[str]) -> Setup:
        keys = {f"{metric}_{embedder}" for metric in metrics}
        asked = [score for score in protocol.scores if score.key in keys]
        return Setup(protocol.model_copy(update={"scores": asked, "replicates": replicates}), cache, WORKERS, tagger)

    with tempfile.TemporaryDirectory(prefix="soundmill-pairwise-") as place:
        reference, asked_for = Path(place) / "reference", Path(place) / "asked for"
        listed = family.read_catalog(catalog)
        known = {clip.clip_id for clip in listed if like["reference"] == "all" or clip.split == "test"}
        _write_clips(family.shards_of(listed, clips, known), reference)
        by_set = {metric for metric in COMPARED if not scores.METRICS[metric].paired}
        rounds = [(set(COMPARED), reference, False)]
        if wanted != known:  # a clip's own distance is to the one that was asked for, a set's to the whole reference
            _write_clips(family.shards_of(listed, clips, wanted & known), asked_for)
            rounds = [(by_set, reference, True), ({*COMPARED} - by_set, asked_for, False)]
        differences = []
        for a, b in pairs:
            found: dict[str, Any] = {}
            for metrics, real, as_sets in rounds:
                if (setup := setup_for(metrics)).protocol.scores:
                    found |= evaluator.compare(setup, models[a], models[b], real, unpaired=as_sets)["comparison"]
            for metric in COMPARED:
                if metric == "mmd" and f"fad_{embedder}" in found:
                    continue
                if one := found.get(f"{metric}_{embedder}"):
                    ends = {key: one[key] for key in ("low", "high", "p")}
                    better = {"a": a, "b": b}.get(one["better"], one["better"])
                    differences.append({"metric": metric, "a": a, "b": b, "value": one["difference"], **ends, "better": better})
        scored, failed = {}, {}
        for name, directory in others.items():
            try:
                setup = Setup(protocol, cache, WORKERS, tagger)
                scored[name] = evaluator.evaluate(setup, directory, reference, unpaired=True).metrics
            except Exception as error:  # a folder costs its row only
                failed[name] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return PairwiseResult(_corrected(differences), scored, [name for name in models if name not in paired], failed)


def _corrected(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With p corrected for the number of tests of metrics that rank, and `better` only where the difference stays beyond chance."""
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
