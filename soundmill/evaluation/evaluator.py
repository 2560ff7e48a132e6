"""Scores of folders of sounds under a protocol, with baselines and provenance."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soundmill import disk, hashing
from soundmill.errors import UserError
from soundmill.evaluation import comparison, features, folders, ladder, memorisation, protocols, scorer
from soundmill.evaluation.library import Library, Members, Setup, about_damaged, embed, means_by_class, rounded
from soundmill.evaluation.scorer import Comparisons

MAX_CLASSES = 200  # folders that are shown as classes
NO_PROMPTS = "no prompts are given (--captions)"
UNPAIRED = "equal names are ignored (--unpaired)"
NO_PAIRS = "the folders have no ids in common"


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


def evaluate(
    setup: Setup,
    generated: Path,
    reference: Path,
    unpaired: bool = False,
    training: Path | None = None,
    captions: Path | None = None,
    reconstructions: bool = False,
) -> Evaluation:
    """Score the sounds below one folder against those below another.

    Sounds that cannot be decoded, or that lack a partner, raise a UserError naming them all. `unpaired`: equal ids are ignored.
    `reconstructions`: sounds are reconstructions of the reference's sounds with the same ids, so distances of waves are measured,
    too. `training`: a folder of training sounds, to search for copies of them. `captions`: a csv of prompts.
    """
    if training:
        memorisation.first_embedder(setup)  # raises before anything is scored
    folders_read = setup.read(generated, reference, *([training] if training else []))
    sides, trained = {"generated": folders_read[0], "reference": folders_read[1]}, folders_read[2] if training else None
    about = folders.about(generated)
    paired = not unpaired and folders.pairs(sides["generated"], sides["reference"])
    if reconstructions and not paired:
        raise UserError(
            f"{generated}: its names are not those in {reference}, so these are not reconstructions; leave out --paired"
        )
    if captions and not any(protocols.supports(name, protocols.CLAP_SCORE) for name in setup.protocol.embedders):
        raise UserError(f"{captions}: no embedder of {setup.protocol.label} reads captions; add --embedder clap")
    prompts = folders.read_captions(captions, sides["generated"]) if captions else {}
    members = {role: Members.of(role, folder.ids) for role, folder in sides.items()}
    sounds = {role: {sound.clip_id: sound for sound in folder.sounds} for role, folder in sides.items()}
    half, _ = _halves(members["reference"], setup.protocol.seed)
    rungs = ladder.choose(
        half, len(members["generated"]), setup.ladder, {name: _class_of(name) for name in half.ids}, setup.protocol.seed
    )
    climbing = scorer.climbing(setup, len(members["reference"]))
    library = embed(setup, sounds, members["reference"], rungs.clips if rungs else None, climbing)
    library.texts = prompts
    reconstructions |= paired and about.made_by == "reconstruct"
    comparisons = _comparisons(library, members, paired, reconstructions, UNPAIRED if unpaired else NO_PAIRS)
    comparisons = replace(comparisons, ladder=rungs)
    scored = scorer.score(setup, library, comparisons, about.seen)
    metrics = scorer.metrics_of(library, members, scored)
    metrics["counts"] |= {"pairs": len(members["generated"]) if paired else 0}
    metrics["counts"] |= {role: len(library.sounds[role]) for role in features.SYNTHETIC}
    metrics["trained_against"] = list(about.trained_against)
    metrics |= about.facts()
    metrics["warnings"] += [f"{folder.root}: {remark}" for folder in sides.values() for remark in folder.remarks]
    classes = means_by_class(scored.of, _class_of)
    if 2 <= len(classes) <= MAX_CLASSES:
        metrics["classes"] = classes
    memorised = None
    if trained:
        roles = [folder.sounds for folder in (*sides.values(), trained)]
        memorised = memorisation.search_for_copies(setup, *roles)
        memorised.publish(metrics)
        metrics["files"]["training"] = features.list_digest({sound.clip_id: sound.key for sound in trained.sounds})
        library.damaged += memorised.damaged
    if library.damaged:
        metrics["counts"]["damaged"] = len(library.damaged)
        metrics["warnings"].append(about_damaged(library.damaged))
    return Evaluation(metrics, scored.of, sides["generated"], sides["reference"], paired, trained, memorised)


def _comparisons(
    library: Library, members: Mapping[str, Members], paired: bool, reconstructions: bool, why_unpaired: str
) -> Comparisons:
    generated, reference = members["generated"], members["reference"]
    synthetic = {role: Members.of(role, library.sounds[role]) for role in features.SYNTHETIC}
    sets = {"generated": (generated, reference), "floor": _halves(reference, library.setup.protocol.seed)}
    sets |= {role: (sounds, reference) for role, sounds in synthetic.items()}
    pairs, prompts = {}, {}
    if paired:
        pairs = {"generated": (generated, reference)} | {
            role: (sounds, reference.only(sounds.ids)) for role, sounds in synthetic.items()
        }
    if library.texts:
        texts = Members.of("prompts", library.texts)
        prompts = {"generated": (generated, texts)} | ({"floor": (reference, texts)} if paired else {})
        prompts |= {role: (library.synthetic(role, texts.ids), texts) for role in features.SYNTHETIC}
    waves = (generated, reference) if reconstructions else None
    return Comparisons(sets, pairs, prompts, waves, why_not={"pairs": why_unpaired, "prompts": NO_PROMPTS})


def _halves(members: Members, seed: int) -> tuple[Members, Members]:
    ids = hashing.hash_order(members.ids, "halves", seed)
    return members.only(ids[: len(ids) // 2]), members.only(ids[len(ids) // 2 :])


def compare(setup: Setup, a: Path, b: Path, reference: Path, unpaired: bool = False) -> dict[str, Any]:
    """Compare two sets of sounds with the same ids; returns the JSON document, with the results of `comparison.compare` by score.

    For a score that ranks no models, `better` is "unranked".
    """
    protocol = setup.protocol
    sides = dict(zip(("a", "b", "reference"), setup.read(a, b, reference), strict=True))
    paired = not unpaired and folders.pairs(sides["a"], sides["reference"])
    if not folders.pairs(sides["a"], sides["b"]):
        raise UserError(f"{a} and {b} have no ids in common: models are compared on the same prompts")
    members = {role: Members.of(role, folder.ids) for role, folder in sides.items()}
    sounds = {role: {sound.clip_id: sound for sound in folder.sounds} for role, folder in sides.items()}
    library = embed(setup, sounds, members["reference"])
    seen = folders.about(a).seen | folders.about(b).seen
    of_a = {"generated": members["a"], "reference": members["reference"]}
    comparisons = _comparisons(library, of_a, paired, False, UNPAIRED if unpaired else NO_PAIRS)
    without_intervals = replace(setup, protocol=protocol.model_copy(update={"replicates": 0}))
    scored = scorer.score(without_intervals, library, comparisons, seen)
    results, left_out = {}, dict(scored.left_out)
    specs = [spec for spec in protocol.scores if spec.key not in left_out]
    with setup.progress(len(specs) * (1 + protocol.replicates), "compare", "resample") as tick:
        for spec in specs:
            views = [library.view(spec.embedder, members[role]) for role in sides]
            first, second, real = (scorer.side(view, spec.metric) for view in views)
            try:
                results[spec.key] = comparison.compare(
                    spec.metric, first, second, real, seed=protocol.seed, replicates=protocol.replicates, progress=tick
                )
            except UserError as error:
                left_out[spec.key] = str(error)
    if not results:
        raise scorer.none_measured(protocol, left_out)
    for key in scored.unranked.keys() & results.keys():
        results[key]["better"] = "unranked"
    return {
        **scorer.provenance(setup),
        "counts": {role: len(folder.sounds) for role, folder in sides.items()}
        | ({"damaged": len(library.damaged)} if library.damaged else {}),
        "files": {role: library.digest(members[role]) for role in sides},
        "comparison": {key: _rounded(result) for key, result in results.items()},
        "left_out": left_out,
        "unranked": scored.unranked,
        "warnings": [f"{key}: {text}" for key, result in results.items() for text in result["warnings"]]
        + [f"{key} is left out: {why}." for key, why in left_out.items()]
        + [f"{key} ranks no models: {why}." for key, why in scored.unranked.items()]
        + ([about_damaged(library.damaged)] if library.damaged else []),
    }


def write_json(document: Mapping[str, Any], path: Path) -> None:
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    disk.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def user_cache() -> Path:
    """The default directory of cached embeddings."""
    import pooch

    return Path(pooch.os_cache("soundmill")) / "embeddings"


def _rounded(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: rounded(value) if isinstance(value, float) else value for name, value in result.items()}


def _class_of(clip_id: str) -> str:
    """The top-level folder; empty if there is none."""
    return clip_id.partition("/")[0] if "/" in clip_id else ""
