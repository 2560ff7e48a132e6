"""A fine-tuned model beside the one it started from: same requests, seeds and protocol; and what it has forgotten."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from soundmill import manifest, params
from soundmill.errors import UserError
from soundmill.evaluation import embedders, evaluator, family, pairwise
from soundmill.evaluation.family import FamilyEvaluation, Options, Source
from soundmill.evaluation.library import Setup
from soundmill.evaluation.score_rows import SHORT_TITLES, number

COPIES = "memorised_"  # keys of the search for copies of training clips


def beside(
    setup: Setup, source: Source, options: Options, evaluation: FamilyEvaluation, generated: Path, codec: Path, catalog: Path
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
    theirs = family.evaluate(plain, replace(source, generated=sounds), replace(options, groupings=()), {}).metrics
    for key, baselines in metrics["baselines"].items():
        if theirs.get(key) is not None:
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
    metrics["warnings"].append(verdict(differences, training, len(sounds)))


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
            found = pairwise.compare(models, {}, source.clips, catalog, metrics, judge, setup.tagger, setup.cache)
        except UserError as error:
            missing.append(f"Tuned and base are not compared by {judge}: {error}")
        else:
            differences += [{"embedder": judge, **one} for one in found.differences]
    pairwise.correct(differences)  # again, as each comparison is corrected for its own tests alone
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


def verdict(differences: list[Mapping[str, Any]], training: int, requests: int) -> str:
    """Whether it got better, in one sentence: under every embedder, as they may disagree."""
    parts = [
        f"{SHORT_TITLES[one['metric']]} ({one['embedder']}) {number(one['metric'], one['value'])} "
        f"({number(one['metric'], one['low'])} … {number(one['metric'], one['high'])}; p {one['p']:.2g})"
        for one in differences
    ]
    if not parts:
        return "Tuned and base could not be compared."
    told = f"Tuned − base: {', '.join(parts)}"
    by = {
        name: [f"{SHORT_TITLES[one['metric']]} ({one['embedder']})" for one in differences if one["better"] == name]
        for name in ("tuned", "base")
    }
    if by["tuned"] and by["base"]:
        return f"{told}: better by {', '.join(by['tuned'])} and worse by {', '.join(by['base'])}, beyond chance."
    for name, what in (("tuned", "better"), ("base", "worse")):
        if by[name]:
            alone = f" by {', '.join(by[name])} alone" if len(by[name]) < len(differences) else ""
            return f"{told}: it got {what}{alone}, beyond chance."
    return (
        f"{told}: not beyond chance. {training} training clips and {requests} requests are too few to tell that it got better; use "
        "more of either, or train longer."
    )
