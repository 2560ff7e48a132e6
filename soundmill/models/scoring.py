"""Scores while a family trains: sounds for validation clips, judged by the project's tagger."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from soundmill import terminal
from soundmill.audio.resample import resample
from soundmill.errors import UserError
from soundmill.metrics import scores
from soundmill.metrics.scores import EmbeddingSet
from soundmill.models.catalog import choose_balanced, choose_by_hash, read_labels, waves_of
from soundmill.models.family import JUDGE, Model, Prepared, Request, Run, can
from soundmill.models.params import FamilyTrainParams
from soundmill.models.requests import of_clips
from soundmill.models.sounds import as_long_as_clip, generate_each, reconstruct_each
from soundmill.training import checkpoint
from soundmill.training.module import TrainingModule
from soundmill.training.scoring import Operations, Scoring
from soundmill.training.seeds import seed_of
from soundmill.training.tagger import TaggerModel, load_tagger

REFERENCE = 200  # real clips, at most
REPLICATES = 200  # bootstrap resamples of an interval
MEASURED = "score/{}_" + JUDGE  # names of the curves

Wave = tuple[np.ndarray, int]  # [C, T], its rate


def scoring(
    params: FamilyTrainParams, ctx: Any, prepared: Prepared, run: Run, tagger: Path, clips: Path, catalog: Path
) -> Scoring | None:
    """What scores the family while it trains; None without `score_every_steps`.

    Each of `score_requests` sounds is for a validation clip; if there are fewer clips, they are taken in turn with other seeds.
    A family that cannot generate reconstructs the clips, each once.
    """
    if params.score_every_steps is None:
        return None
    if not (tagger / checkpoint.CONFIG).is_file():
        raise UserError(
            f"{ctx.name}: score_every_steps needs the tagger, but {tagger} is none: set families.{ctx.family}.tagger to data/tagger"
        )
    labels = read_labels(catalog)
    if not labels["valid"]:
        raise UserError(
            f"{ctx.name}: score_every_steps: the validation split has no clip; raise splits.valid_fraction, or set it to null"
        )
    judge, model = load_tagger(tagger), prepared.model
    generates = can(model, "generate")
    if not generates and len(labels["valid"]) < 2:
        raise UserError(
            f"{ctx.name}: score_every_steps: the validation split has only one clip to reconstruct, and a FAD needs two; raise "
            "splits.valid_fraction, or set it to null"
        )
    asked = choose_balanced(labels["valid"], params.score_requests)
    held_out = choose_by_hash([*labels["valid"]], REFERENCE)
    trained = choose_by_hash([*labels["train"]], REFERENCE - len(held_out))
    mono, real = {}, {}
    for clip_id, (wave, rate) in waves_of(clips, {*asked, *held_out, *trained}):
        mono[clip_id] = _mono(wave, rate, judge)
        if clip_id in asked:
            real[clip_id] = wave, rate
    embedded = _embed(judge, mono)
    count = params.score_requests if generates else len(asked)
    clip_of = {f"{number:04d}": asked[number % len(asked)] for number in range(count)}
    pairs = EmbeddingSet.of(
        {name: embedded[clip_id][0] for name, clip_id in clip_of.items()},
        {name: embedded[clip_id][1] for name, clip_id in clip_of.items()},
    )
    reference = EmbeddingSet.of({clip_id: embedded[clip_id][0] for clip_id in (*held_out, *trained)})
    make = _reconstructed(model, clip_of, real, run)
    if generates:
        requests = of_clips(model, catalog, asked, params.seed)
        seeds = {name: seed_of(params.seed, "score", name) for name in clip_of}
        make = _generated(model, {name: replace(requests[clip_of[name]], seed=seeds[name]) for name in clip_of}, clip_of, real, run)
    terminal.say(
        f"{ctx.name}: every {params.score_every_steps} steps the tagger scores {len(clip_of)} sounds for {len(asked)} validation "
        f"clips, against {len(held_out)} validation and {len(trained)} training clips"
    )

    def measure(module: TrainingModule, step: int) -> tuple[dict[str, float], int]:
        try:
            with module.ema.applied(module.net), Operations() as counted:
                sounds = {name: _mono(wave.numpy(), model.sample_rate, judge) for name, wave in make()}
        finally:
            module.to(module.device)
        return _scores(_embed(judge, sounds), pairs, reference, params.seed), counted.total

    return Scoring(params.score_every_steps, measure, params.score_share)


def _generated(
    model: Model, requests: Mapping[str, Request], clip_of: Mapping[str, str], real: Mapping[str, Wave], run: Run
) -> Callable[[], Iterator[tuple[str, Tensor]]]:
    """Generates a sound for each request, as long as its real clip."""

    def make() -> Iterator[tuple[str, Tensor]]:
        for name, sound in zip(requests, generate_each(model, list(requests.values()), run), strict=True):
            wave, rate = real[clip_of[name]]
            yield name, as_long_as_clip(sound, round(wave.shape[1] / rate * model.sample_rate), model)

    return make


def _reconstructed(
    model: Model, clip_of: Mapping[str, str], real: Mapping[str, Wave], run: Run
) -> Callable[[], Iterator[tuple[str, Tensor]]]:
    """Reconstructs each real clip."""
    return lambda: reconstruct_each(model, ((name, real[clip_id]) for name, clip_id in clip_of.items()), run, whole=True)


def _mono(wave: np.ndarray, rate: int, judge: TaggerModel) -> np.ndarray:
    """A wave [C, T] as the judge takes it: the mean of its channels [T] at the judge's rate."""
    return resample(wave.mean(axis=0), rate, judge.spec.sample_rate)


def _embed(judge: TaggerModel, waves: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Embeddings [P, D] of patches and logits [K] of each wave [T], by id."""
    frames, logits = judge.embed(list(waves.values()))
    return dict(zip(waves, zip(frames, logits, strict=True), strict=True))


def _scores(
    sounds: Mapping[str, tuple[np.ndarray, np.ndarray]], pairs: EmbeddingSet, reference: EmbeddingSet, seed: int
) -> dict[str, float]:
    """FAD from the reference, KL from each sound's real clip, and the share of sounds with the class of that clip; intervals."""
    generated = EmbeddingSet.of(
        {name: frames for name, (frames, _) in sounds.items()}, {name: logits for name, (_, logits) in sounds.items()}
    )
    same = {name: float(logits.argmax() == pairs.logits[name].argmax()) for name, (_, logits) in sounds.items()}
    found = {
        "fad": scores.compute("fad", generated, reference, seed=seed, replicates=REPLICATES),
        "kl": scores.compute("kl", generated, pairs, seed=seed, replicates=REPLICATES),
        "class": scores.mean_with_interval(same, seed, REPLICATES),
    }
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {MEASURED.format(name) + end: result[key] for name, result in found.items() for end, key in ends.items()}
