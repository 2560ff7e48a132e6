"""The scoring protocol: which sounds are compared with which, and the ruler that is measured beside every score.

`soundmill-1`: Fréchet distance of pooled patch embeddings to the reference clips; KL(reference ‖ generated) over pairs of equal
clip id; the share of sounds that a linear probe, fitted on real clips, puts into the class asked for. The ruler is the same
measurement of other sounds in place of the generated ones:

floor        real clips of another split, as many as generated ones (KL: another real clip with the same labels)
codec        real clips through the family's representation and back
codec_floor  those same clips before it, so that floor and codec can be told apart when their number differs
silence      digital silence, and
noise        white noise, as many and as long as the generated sounds
real, chance (label accuracy) the probe's own cross-validated accuracy on real clips, and that of one constant answer

No real clip is measured against a reference that holds clips of its own recording or, where the reference spans splits, of its
own split: splits never part the takes of one source.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from soundmill import shards
from soundmill.errors import UserError
from soundmill.evaluation import features, frechet, probe
from soundmill.evaluation.divergence import paired_kl
from soundmill.evaluation.quality import Quality, shares

PROTOCOL = "soundmill-1"
BLOCK = 25  # bootstrap replicates in one job
INTERVAL = (2.5, 97.5)  # percentiles
ROWS_PER_DIMENSION = 10  # fewer embeddings than this make a Fréchet distance mostly bias
MEANINGS = {"silent": "silent", "clipped": "clipped", "duplicate": "copies of another one"}
SIGNIFICANT_DIGITS = 6  # of published numbers: the last bits differ between processors


@dataclass(frozen=True)
class Clip:
    """One real clip as the catalog knows it."""

    clip_id: str
    recording_id: str
    shard: int
    split: str
    labels: tuple[str, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Sets:
    """Ids of the sounds that are compared; all tuples are sorted, so nothing depends on the order of any listing."""

    reference: tuple[str, ...]
    generated: tuple[str, ...]
    floor: tuple[str, ...]
    floor_reference: tuple[str, ...]
    codec: tuple[str, ...]  # as many as `generated` at most
    codec_reference: tuple[str, ...]
    partners: tuple[tuple[str, str], ...]  # generated id, another real clip with the same labels
    probe: tuple[tuple[str, str, int], ...]  # real clip with one label, its label, its fold
    asked: tuple[tuple[str, str], ...]  # generated id, the one label asked for, where the probe knows it

    def real(self) -> set[str]:
        """All real clips that have to be embedded."""
        paired = {real for _, real in self.partners}
        probed = {clip_id for clip_id, _, _ in self.probe}
        return {*self.reference, *self.generated, *self.floor, *self.codec} | paired | probed


def choose_sets(
    catalog: Sequence[Clip],
    generated: Iterable[str],
    codec: Iterable[str],
    reference: Literal["test", "all"],
    probe_clips: int,
    seed: int,
) -> Sets:
    """Decide who is compared with whom, from ids and the seed alone; generated or codec ids without a real clip raise UserError."""
    clips = {clip.clip_id: clip for clip in catalog}
    members = [clip for clip in catalog if reference == "all" or clip.split == "test"]
    if not members:
        raise UserError("no clip of the catalog is in the test split; set `evaluate.reference: all`, or add recordings")
    reference_ids = tuple(sorted(clip.clip_id for clip in members))
    generated, codec = tuple(sorted(generated)), tuple(sorted(codec))
    _check_ids("generated", generated, set(reference_ids), f"the reference (evaluate.reference: {reference})")
    if codec:  # none: what is scored went through the codec itself, or there was no clip for it
        _check_ids("codec", codec, set(clips), "the catalog")

    def rank(role: str, ids: Iterable[str]) -> list[str]:
        return sorted(ids, key=lambda clip_id: (shards.digest(role, seed, clip_id), clip_id))

    train = [clip for clip in catalog if clip.split == "train"]
    partners, partner_ids = _partners([clips[clip_id] for clip_id in generated], train, rank)
    if reference == "test":
        floor = partner_ids
    else:
        held_out = [clip.clip_id for clip in catalog if clip.split == "test"] or [clip.clip_id for clip in train]
        floor = rank("floor", held_out)[: len(generated)]
    codec_sample = rank("codec", codec)[: len(generated)]
    probed = _probe_clips(catalog, probe_clips, rank, seed)
    known = {label for _, label, _ in probed}
    asked = [(clip_id, clips[clip_id].labels[0]) for clip_id in generated if len(clips[clip_id].labels) == 1]
    return Sets(
        reference=reference_ids,
        generated=generated,
        floor=tuple(sorted(floor)),
        floor_reference=_apart(members, [clips[clip_id] for clip_id in floor]),
        codec=tuple(sorted(codec_sample)),
        codec_reference=_apart(members, [clips[clip_id] for clip_id in codec_sample]),
        partners=tuple(partners),
        probe=tuple(probed),
        asked=tuple((clip_id, label) for clip_id, label in asked if label in known),
    )


def _check_ids(what: str, ids: Sequence[str], known: set[str], where: str) -> None:
    if len(ids) < 2:
        raise UserError(f"{len(ids)} {what} sounds; at least 2 are needed for a score")
    lonely = [clip_id for clip_id in ids if clip_id not in known]
    if lonely:
        more = f" and {len(lonely) - 10} more" if len(lonely) > 10 else ""
        raise UserError(f"{what} {', '.join(lonely[:10])}{more}: no real clip of that id in {where}; a pair is never skipped")


def _partners(
    generated: Sequence[Clip], train: Sequence[Clip], rank: Callable[[str, Iterable[str]], list[str]]
) -> tuple[list[tuple[str, str]], list[str]]:
    """For every generated sound another real clip: (pairs with equal labels, all chosen clips, no more than generated ones)."""
    of_labels: dict[tuple[str, ...], list[str]] = defaultdict(list)
    recording = {clip.clip_id: clip.recording_id for clip in [*train, *generated]}
    for clip in train:
        of_labels[tuple(sorted(clip.labels))].append(clip.clip_id)
    waiting = {labels: rank("floor", ids) for labels, ids in of_labels.items()}
    pairs, chosen = [], []
    for clip in generated:
        candidates = waiting.get(tuple(sorted(clip.labels)), []) if clip.labels else []
        found = next((other for other in candidates if recording[other] != clip.recording_id), None)
        if found is not None:
            candidates.remove(found)
            pairs.append((clip.clip_id, found))
            chosen.append(found)
    taken = set(chosen)
    rest = [clip_id for clip_id in rank("floor", (clip.clip_id for clip in train)) if clip_id not in taken]
    return pairs, [*chosen, *rest[: len(generated) - len(chosen)]]


def _apart(reference: Sequence[Clip], clips: Sequence[Clip]) -> tuple[str, ...]:
    """The reference without whatever is kin to these clips: their splits, or in a reference of one split their recordings."""
    splits, recordings = {clip.split for clip in clips}, {clip.recording_id for clip in clips}
    others = [clip.clip_id for clip in reference if clip.split not in splits]
    if len({clip.split for clip in reference}) == 1 or not others:
        others = [clip.clip_id for clip in reference if clip.recording_id not in recordings]
    return tuple(sorted(others))


def _probe_clips(
    catalog: Sequence[Clip], limit: int, rank: Callable[[str, Iterable[str]], list[str]], seed: int
) -> list[tuple[str, str, int]]:
    """Real clips with one label, of classes with clips from at least two recordings; none where there are under two classes."""
    single = {clip.clip_id: clip for clip in catalog if len(clip.labels) == 1}
    kept = sorted(rank("probe", single)[:limit])
    recordings: dict[str, set[str]] = defaultdict(set)
    for clip_id in kept:
        recordings[single[clip_id].labels[0]].add(single[clip_id].recording_id)
    kept = [clip_id for clip_id in kept if len(recordings[single[clip_id].labels[0]]) > 1]
    labels = [single[clip_id].labels[0] for clip_id in kept]
    if len(set(labels)) < 2:
        return []
    fold_of = probe.folds([single[clip_id].recording_id for clip_id in kept], labels, seed)
    return list(zip(kept, labels, fold_of, strict=True))


def hear(
    judges: Sequence[features.Judge],
    real: Mapping[Path, set[str]],
    files: Mapping[str, Mapping[str, Path]],
    seed: int,
    cache: Path,
    workers: int,
    progress: Callable[[int], object],
) -> features.Library:
    """Embed real clips (shard → ids) and files (role → id → path; one role is `generated`), and silence and noise as long as those.

    Every sound is embedded once whatever sets it belongs to; `progress` counts sounds, once for each judge. Judges hear sounds
    through the rate that the clips have.
    """
    roles = {"real": clips_in(real, judges[0].through)} | {role: sounds_in(paths) for role, paths in files.items()}
    damaged = features.embed_all(judges, [sound for sounds in roles.values() for sound in sounds], cache, workers, progress)
    length = features.view(judges[0], roles["generated"], cache).facts()
    made_up = {
        "silence": {clip_id: features.silence(facts) for clip_id, facts in length.items()},
        "noise": {clip_id: features.noise(clip_id, facts, seed) for clip_id, facts in length.items()},
    }
    features.embed_all(judges, [sound for sounds in made_up.values() for sound in sounds.values()], cache, workers, progress)
    views, quality = {}, {}
    for judge in judges:
        keys = {role: {sound.clip_id: sound.key for sound in sounds} for role, sounds in roles.items()}
        keys |= {role: {clip_id: sound.key for clip_id, sound in sounds.items()} for role, sounds in made_up.items()}
        for role, members in keys.items():
            views[judge.name, role] = view = features.View(judge.directory(cache), members)
            quality[role] = _facts_of(view, judge.name, role)
    return features.Library(views, quality, damaged)


def clips_in(real: Mapping[Path, set[str]], sample_rate: int) -> list[features.Sound]:
    """The clips (shard → ids) as sounds."""
    digests = {shard: shards.file_digest(shard) for shard in sorted(real)}
    return [features.clip(name, shard, digest, sample_rate) for shard, digest in digests.items() for name in sorted(real[shard])]


def sounds_in(files: Mapping[str, Path]) -> list[features.Sound]:
    """The files (id → path) as sounds."""
    return [features.file(clip_id, path, shards.file_digest(path)) for clip_id, path in sorted(files.items())]


def training_clips(catalog: Sequence[Clip], limit: int, seed: int) -> set[str]:
    """Clips of the training split, `limit` at most, chosen by the seed."""
    ids = [clip.clip_id for clip in catalog if clip.split == "train"]
    return set(sorted(ids, key=lambda clip_id: (shards.digest("training", seed, clip_id), clip_id))[:limit])


def _facts_of(view: features.View, name: str, role: str) -> dict[str, Quality]:
    facts = view.facts()
    short = [clip_id for clip_id, of in facts.items() if not of.patches]
    if short:
        raise UserError(f"{role} clip {short[0]}: too short for one patch of {name}")
    return {clip_id: of.quality for clip_id, of in facts.items()}


@dataclass(frozen=True)
class Scoring:
    """What a scoring process is told: where the features of one embedder lie, and the sets."""

    embedder: str
    views: Mapping[str, features.View]  # by role
    sets: Sets
    replicates: int
    seed: int

    def read(self, *roles: str) -> list[features.Features]:
        return [self.views[role].read() for role in roles]


def score(
    library: features.Library,
    names: Sequence[str],
    sets: Sets,
    replicates: int,
    seed: int,
    scratch: Path,
    workers: int,
    progress: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Scores and ruler of every embedder; `progress` counts one per embedder and one per bootstrap replicate.

    Per embedder: `fad`, `kl`, `label_accuracy` (each {value, low, high}, absent where it cannot be measured), `ruler` (metric →
    mark → value), `kl_of` (clip id → KL), `size` (dimensions), `embeddings` (role → rows).
    """
    jobs = []
    for name in names:
        views = {role: view for (embedder, role), view in library.views.items() if embedder == name}
        task = Scoring(name, views, sets, replicates, seed)
        jobs.append(shards.Job(f"{name}.json", (task, None)))
        for start in range(0, replicates, BLOCK):
            stop = min(start + BLOCK, replicates)
            jobs.append(shards.Job(f"{name}-{start:06d}.json", (task, (start, stop)), stop - start))
    report = shards.map_shards(_score, jobs, scratch, workers=workers, progress=progress)
    shards.say_damaged(scratch, report.damaged)
    results: dict[str, dict[str, Any]] = {}
    resampled: dict[str, list[float]] = defaultdict(list)
    for detail in report.details:
        if "replicates" in detail:
            resampled[detail["embedder"]] += detail["replicates"]
        else:
            results[detail.pop("embedder")] = detail
    for name, result in results.items():
        result["fad"] |= _interval_about(result["fad"]["value"], resampled[name])
    return results


def _score(task: Scoring, block: tuple[int, int] | None, output: Path) -> shards.Report:
    if block is None:
        detail = _point_scores(task)
    else:
        real, generated = task.read("real", "generated")
        values = frechet.bootstrap_frechet(
            generated.listed(task.sets.generated), real.listed(task.sets.reference), range(*block), task.seed
        )
        detail = {"replicates": values.tolist()}
    report = shards.Report(details=[{"embedder": task.embedder, **detail}])
    shards.write_atomically(output, lambda temporary: temporary.write_text(json.dumps(report.details), encoding="utf-8"))
    return report


def _point_scores(task: Scoring) -> dict[str, Any]:
    sets = task.sets
    real, generated, codec, silence, noise = task.read("real", "generated", "codec", "silence", "noise")
    reference = real.pooled(sets.reference)
    rows = generated.pooled(sets.generated)
    fad = frechet.frechet_of_rows(rows, reference)
    fad_ruler = {
        "silence": frechet.frechet_of_rows(silence.pooled(sets.generated), reference),
        "noise": frechet.frechet_of_rows(noise.pooled(sets.generated), reference),
    }
    if len(sets.floor) > 1 and len(sets.floor_reference) > 1:
        fad_ruler["floor"] = frechet.frechet_of_rows(real.pooled(sets.floor), real.pooled(sets.floor_reference))
    if len(sets.codec) > 1 and len(sets.codec_reference) > 1:
        others = real.pooled(sets.codec_reference)
        fad_ruler["codec"] = frechet.frechet_of_rows(codec.pooled(sets.codec), others)
        fad_ruler["codec_floor"] = frechet.frechet_of_rows(real.pooled(sets.codec), others)

    result = {
        "size": rows.shape[1],
        "embeddings": {"generated": len(rows), "reference": len(reference)},
        "fad": {"value": fad},
        "ruler": {"fad": fad_ruler},
    }
    if generated.logits[sets.generated[0]].size:
        kl_of, result["ruler"]["kl"] = _kl(sets, real, generated, codec, silence, noise)
        result |= {"kl": _mean_with_interval(list(kl_of.values()), task), "kl_of": kl_of}
    if sets.probe and sets.asked:
        result |= {"label_accuracy": {}}
        right, result["ruler"]["label_accuracy"], result["predicted"] = _label_accuracy(sets, real, generated, codec)
        result["label_accuracy"] = _mean_with_interval(right, task)
    return result


def _kl(
    sets: Sets,
    real: features.Features,
    generated: features.Features,
    codec: features.Features,
    silence: features.Features,
    noise: features.Features,
) -> tuple[dict[str, float], dict[str, float]]:
    """KL of every generated sound, and the ruler of their mean."""
    pairs = {clip_id: real.logits[clip_id] for clip_id in sets.generated}
    kl_of = paired_kl(pairs, {clip_id: generated.logits[clip_id] for clip_id in sets.generated})
    ruler = {
        "silence": _mean_kl(pairs, silence.logits),
        "noise": _mean_kl(pairs, noise.logits),
    }
    if sets.codec:
        ruler["codec"] = _mean_kl({clip_id: real.logits[clip_id] for clip_id in sets.codec}, codec.logits)
    if sets.partners:
        ruler["floor"] = _mean_kl(
            {clip_id: pairs[clip_id] for clip_id, _ in sets.partners},
            {clip_id: real.logits[partner] for clip_id, partner in sets.partners},
        )
    return kl_of, ruler


def _mean_kl(reference: Mapping[str, np.ndarray], generated: Mapping[str, np.ndarray]) -> float:
    return float(np.mean(list(paired_kl(reference, {clip_id: generated[clip_id] for clip_id in reference}).values())))


def _label_accuracy(
    sets: Sets, real: features.Features, generated: features.Features, codec: features.Features
) -> tuple[list[float], dict[str, float], dict[str, str]]:
    """Per generated sound, was it put into the class asked for; the ruler of that; and what it was put into."""
    ids, labels, folds = (np.array(column) for column in zip(*sets.probe, strict=True))
    means = real.means(ids)
    fold_of = dict(zip(ids.tolist(), folds.tolist(), strict=True))
    label_of = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    right, codec_right = [], []
    for fold in sorted(set(folds.tolist())):
        inside = folds == fold
        if len(set(labels[~inside].tolist())) < 2:
            continue
        model = probe.fit(means[~inside], labels[~inside].tolist())
        right += [guess == label for guess, label in zip(model.predict(means[inside]), labels[inside], strict=True)]
        through = [clip_id for clip_id in sets.codec if fold_of.get(clip_id) == fold]
        if through:
            guesses = model.predict(codec.means(through))
            codec_right += [guess == label_of[clip_id] for guess, clip_id in zip(guesses, through, strict=True)]
    model = probe.fit(means, labels.tolist())
    asked_ids = [clip_id for clip_id, _ in sets.asked]
    guesses = model.predict(generated.means(asked_ids))
    ruler = {"real": float(np.mean(right)), "chance": _chance(label for _, label in sets.asked)}
    if codec_right:
        ruler["codec"] = float(np.mean(codec_right))
    hits = [float(guess == label) for guess, (_, label) in zip(guesses, sets.asked, strict=True)]
    return hits, ruler, dict(zip(asked_ids, guesses, strict=True))


def _chance(labels: Iterable[str]) -> float:
    """The share right of always answering the label that was asked for most often."""
    counts = Counter(labels)
    return max(counts.values()) / counts.total()


def _mean_with_interval(values: Sequence[float], task: Scoring) -> dict[str, float]:
    """Mean over clips with its bootstrap percentile interval."""
    data = np.array(values)
    mean = float(data.mean())
    draws = [np.random.default_rng([task.seed, b]).integers(len(data), size=len(data)) for b in range(task.replicates)]
    if not draws:
        return {"value": mean}
    low, high = np.percentile(data[np.array(draws)].mean(axis=1), INTERVAL)
    return {"value": mean, "low": float(low), "high": float(high)}


def _interval_about(value: float, resampled: Sequence[float]) -> dict[str, float]:
    """Spread of the resampled distances, moved to the value itself.

    A resample holds about 63 % of the clips, some twice, so its Fréchet distance lies higher than the value by a bias that is
    no uncertainty; a plain percentile interval would not even hold the value.
    """
    if not resampled:
        return {}
    low, middle, high = np.percentile(resampled, (INTERVAL[0], 50, INTERVAL[1]))
    return {"low": max(0.0, value + float(low - middle)), "high": value + float(high - middle)}


def publish(
    results: Mapping[str, Mapping[str, Any]],
    sets: Sets,
    library: features.Library,
    digests: Mapping[str, str],
    unavailable: Mapping[str, str],
    reference: str,
) -> dict[str, Any]:
    """The metrics: flat scores, nested ruler, and all that makes a number a result — protocol, weights, files and counts."""
    metrics: dict[str, Any] = {"protocol": PROTOCOL, "reference": reference, **scores(results)}
    quality = library.quality
    for key, value in shares(quality["generated"][clip_id] for clip_id in sets.generated).items():
        metrics[f"{key}_share"] = rounded(value)
    metrics["counts"] = {
        "generated": len(sets.generated),
        "reference": len(sets.reference),
        "floor": len(sets.floor),
        "floor_reference": len(sets.floor_reference),
        "codec": len(sets.codec),
        "codec_reference": len(sets.codec_reference),
        "probe": len(sets.probe),
        "asked": len(sets.asked),
        "same_label_pairs": len(sets.partners),
    }
    metrics["embedders"] = {
        name: {"weights": digests[name], "size": result["size"], "embeddings": dict(result["embeddings"])}
        for name, result in results.items()
    } | {name: f"unavailable: {reason}" for name, reason in unavailable.items()}
    metrics["files"] = {
        "generated": _list_digest(sets.generated, quality["generated"]),
        "reference": _list_digest(sets.reference, quality["real"]),
        "codec": _list_digest(sets.codec, quality["codec"]),
    }
    return metrics


def scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of every metric and embedder the value with its interval, under flat keys, and under `ruler` the ruler's marks."""
    found: dict[str, Any] = {"ruler": {}}
    for name, result in results.items():
        for metric in ("fad", "kl", "label_accuracy"):
            if metric in result:
                for key, value in result[metric].items():
                    found[f"{metric}_{name}" + ("" if key == "value" else f"_{key}")] = rounded(value)
                marks = result["ruler"][metric]
                found["ruler"][f"{metric}_{name}"] = {mark: rounded(value) for mark, value in sorted(marks.items())}
    return found


def _list_digest(ids: Sequence[str], quality: Mapping[str, Any]) -> str:
    return shards.digest([[clip_id, quality[clip_id].digest] for clip_id in ids])


def rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def warnings(
    results: Mapping[str, Mapping[str, Any]],
    sets: Sets,
    library: features.Library,
    unavailable: Mapping[str, str],
) -> list[str]:
    """What a reader has to know before believing the numbers."""
    said = [f"{name} was not used: {reason}. Then score again with `dvc repro -f`." for name, reason in unavailable.items()]
    for name, result in results.items():
        least = ROWS_PER_DIMENSION * result["size"]
        for role, count in result["embeddings"].items():
            if count < least:
                said.append(
                    f"fad_{name} rests on {count} embeddings of {role} sounds, under {ROWS_PER_DIMENSION} × {result['size']}: "
                    "much of it is bias, so compare it with the ruler's floor, not with other papers."
                )
    if len(sets.floor) < len(sets.generated):
        said.append(f"The floor rests on {len(sets.floor)} real clips, not {len(sets.generated)}: its bias is larger.")
    if 0 < len(sets.codec) < len(sets.generated):
        said.append(
            f"The codec line rests on {len(sets.codec)} clips, not {len(sets.generated)}: its bias is larger; "
            "compare it with codec_floor, the same clips before the codec."
        )
    real, generated = library.quality["real"], library.quality["generated"]
    other = [clip_id for clip_id in sets.generated if real[clip_id].num_samples != generated[clip_id].num_samples]
    if other:
        said.append(f"{len(other)} generated sounds are not as long as their reference clips (first: {other[0]}).")
    for key, value in shares(generated[clip_id] for clip_id in sets.generated).items():
        if value:
            said.append(f"{value:.0%} of the generated sounds are {MEANINGS[key]}; no score says so.")
    return said
