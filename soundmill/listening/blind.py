"""A blind listening test: one page for its raters, which tells of no sound whose it is, and the key, which does."""

from __future__ import annotations

import base64
import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from soundmill import disk, page, shards
from soundmill.audio.flac import encode_flac
from soundmill.audio.loudness import matching_gains
from soundmill.audio.resample import resample
from soundmill.errors import UserError
from soundmill.listening import design
from soundmill.listening.answers import BAD, REAL, Key, KeyedModel, KeyedSound, read_key
from soundmill.listening.design import Heard
from soundmill.listening.material import Asked, Material, Wave
from soundmill.page.sounds import LONGEST_SECONDS, MIN_RATE

LOUDNESS, SOFTEST, MOST_GAIN = -23.0, -35.0, 40.0  # LUFS and dB, as `matching_gains` takes them: one loudness for the whole test
HIGHEST_RATE = 48_000
LOOPS = 3  # times that a sound is played in a row, where it is asked how it loops
SILENT_SHARE = 0.2  # of a bad anchor's end
BEEPS, BEEP_SECONDS, SOFTEST_BEEP = (4, 5, 6), 0.25, 0.004  # of the volume check: how many, and the level of the last


@dataclass(frozen=True)
class Question:
    """What is asked of one sound, of two, and the words of a scale of five."""

    rate: str
    compare: str
    words: tuple[str, str, str, str, str]


QUESTIONS = {
    "quality": Question(
        "How good is the quality of this sound?",
        "Which sound has the better quality?",
        ("bad", "poor", "fair", "good", "excellent"),
    ),
    "relevance": Question(
        "How well does the sound fit the text?",
        "Which sound fits the text better?",
        ("not at all", "poorly", "partly", "well", "completely"),
    ),
    "similarity": Question(
        "How similar is the sound to the reference?",
        "Which sound is more similar to the reference?",
        ("very different", "different", "a little similar", "similar", "the same"),
    ),
    "loopability": Question(
        f"The sound is played {LOOPS} times in a row. How well does it loop?",
        f"Each sound is played {LOOPS} times in a row. Which one loops better?",
        ("breaks off", "poorly", "passably", "well", "without a seam"),
    ),
}


@dataclass(frozen=True)
class Plan:
    """What a test asks: its questions, the requests for each model, a scale of 1 to 5 or to 100, or pairs to compare."""

    questions: tuple[str, ...]
    per_model: int
    seed: int
    scale: Literal[5, 100] = 5
    compare: bool = False


def write(
    directory: Path,
    material: Material,
    plan: Plan,
    weights: Mapping[str, str] | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[Path, Path]:
    """Write `test.html`, which goes to the raters, and `key.json`, which does not, into a directory; returns both.

    Names, orders and noise are drawn by the seed and a salt that only the key has: a rater who guesses the seed cannot draw them
    again. The salt is that of the key that is there, which makes the same test again, else a random one.
    UserError where too few requests have a sound of every model and a real one, or no text that is asked about. `weights`: the
    digest of a model's checkpoint, by its name. `progress` counts sounds.
    """
    paths = directory / "test.html", directory / "key.json"
    salt = (read_key(paths[1]).salt if paths[1].exists() else "") or secrets.token_hex(16)
    seed = int(shards.digest([salt, plan.seed]), 16)
    chosen = _requests(material, plan)
    treatments, anchor = _treatments(material, plan.compare)
    orders = design.orders(treatments, anchor, len(chosen), seed)
    heard = sorted({sound for trials in orders for trial in trials for sound in trial}, key=lambda one: (one.system, one.request))
    waves = {one: _wave(one, chosen, material, seed, progress) for one in heard}
    sounds = _alike(waves, LOOPS if "loopability" in plan.questions else 1)
    numbers = np.random.default_rng([seed, 2]).permutation(len(heard))
    names = {one: f"s{number + 1:03d}" for one, number in zip(heard, numbers, strict=True)}
    shown = {names[one]: _facts(one, sounds[one], chosen, material, plan) for one in sorted(heard, key=names.__getitem__)}
    listed = [[[names[sound] for sound in trial] for trial in trials] for trials in orders]
    content = {
        "questions": [_asked(name, plan) for name in plan.questions],
        "scale": plan.scale,
        "compare": plan.compare,
        "orders": listed,
        "sounds": shown,
        "references": _references(sounds, len(chosen)) if "similarity" in plan.questions else {},
        **_volume_check(plan.seed),
    }
    test = shards.digest(content)[:12]
    key = Key(
        format=1,
        test=test,
        questions=list(plan.questions),
        scale=plan.scale,
        compare=plan.compare,
        seed=plan.seed,
        salt=salt,
        sounds={names[one]: KeyedSound(system=one.system, request=chosen[one.request]) for one in heard},
        orders=listed,
        models={
            model.name: KeyedModel(
                family=model.family,
                weights=(weights or {}).get(model.name, ""),
                scores=dict(model.scores),
                of={clip_id: dict(model.of[clip_id]) for clip_id in chosen if clip_id in model.of},
            )
            for model in material.models
        },
    )
    text = page.render("soundmill.listening", "listening_test.html", title="Listening test", content={"test": test, **content})
    with disk.exclusive(directory):  # of two tests at once, the second finds the first one's key
        key.check_replaces(paths[1])
        disk.write_atomically(paths[1], lambda temporary: temporary.write_text(key.text(), encoding="utf-8"))
        disk.write_atomically(paths[0], lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return paths


def _requests(material: Material, plan: Plan) -> list[str]:
    """Those that every model and the real sounds have, as many as are wanted."""
    if taken := sorted({REAL, BAD} & {model.name for model in material.models}):
        raise UserError(f"a model cannot be called {taken[0]!r} here; name it otherwise: NAME=DIR")
    common = [
        clip_id
        for clip_id in material.requests()
        if clip_id in material.real and all(clip_id in model.sounds for model in material.models)
    ]
    if len(common) < plan.per_model:
        raise UserError(
            f"{len(common)} requests have a real sound and one of every model, {plan.per_model} are wanted; lower --per-model, "
            "make more sounds, or give --reference DIR with the real sounds by the same names"
        )
    chosen = common[: plan.per_model]
    if "relevance" in plan.questions and (dumb := [clip_id for clip_id in chosen if not material.asked[clip_id].text]):
        raise UserError(f"relevance: nothing is known of what was asked for in {', '.join(dumb[:10])}; give --captions FILE")
    return chosen


def _treatments(material: Material, compare: bool) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """What is heard of every request: each model and the real sound; or every two models, one alone beside the real sound."""
    names = [model.name for model in material.models]
    if not compare:
        return [(name,) for name in (*names, REAL)], (BAD,)
    return list(itertools.combinations(names if len(names) > 1 else (*names, REAL), 2)), (REAL, BAD)


def _wave(one: Heard, chosen: Sequence[str], material: Material, seed: int, progress: Callable[[int], object]) -> Wave:
    """The sound; a bad one is the real sound of another request under noise as loud, and breaks off."""
    progress(1)
    clip_id = chosen[one.request]
    if one.system == BAD:
        wave, rate = material.real[_other(clip_id, chosen, material.asked)]()
        noise = np.random.default_rng([seed, 3, one.request]).standard_normal(wave.shape)
        bad = (wave + noise * np.sqrt(np.mean(wave**2, dtype=np.float64))).astype(np.float32)
        bad[:, round(bad.shape[1] * (1 - SILENT_SHARE)) :] = 0
        return bad, rate
    made = material.real if one.system == REAL else next(model.sounds for model in material.models if model.name == one.system)
    return made[clip_id]()


def _other(clip_id: str, chosen: Sequence[str], asked: Mapping[str, Asked]) -> str:
    """The next request in which something else was asked for, or the next one."""
    place = chosen.index(clip_id)
    others = [*chosen[place + 1 :], *chosen[:place]]
    return next((other for other in others if asked[other].text != asked[clip_id].text), others[0])


def _alike(waves: Mapping[Heard, Wave], loops: int) -> dict[Heard, bytes]:
    """The sounds as FLAC in which nothing but the sound itself differs: of one rate, number of channels and loudness."""
    rate = min(max(max(rate for _, rate in waves.values()), MIN_RATE), HIGHEST_RATE)
    channels = max(len(wave) for wave, _ in waves.values())
    fitted = {}
    for one, (wave, own) in waves.items():
        beginning = wave[:, : round(LONGEST_SECONDS * own)]
        fitted[one] = np.stack(
            [resample(channel, own, rate) for channel in np.broadcast_to(beginning, (channels, beginning.shape[1]))]
        )
    gains = matching_gains([(wave, rate) for wave in fitted.values()], LOUDNESS, SOFTEST, MOST_GAIN)
    return {
        one: encode_flac(np.tile(wave * np.float32(10 ** (gain / 20)), loops), rate)
        for (one, wave), gain in zip(fitted.items(), gains, strict=True)
    }


def _facts(one: Heard, sound: bytes, chosen: Sequence[str], material: Material, plan: Plan) -> dict[str, str]:
    """What the page has of a sound."""
    facts = {"flac": base64.b64encode(sound).decode()}
    if "relevance" in plan.questions:
        facts["text"] = material.asked[chosen[one.request]].text
    if "similarity" in plan.questions:
        facts["reference"] = _reference(one.request)
    return facts


def _references(sounds: Mapping[Heard, bytes], requests: int) -> dict[str, str]:
    return {_reference(request): base64.b64encode(sounds[Heard(REAL, request)]).decode() for request in range(requests)}


def _reference(request: int) -> str:
    return f"r{request + 1:03d}"


def _asked(name: str, plan: Plan) -> dict[str, Any]:
    question = QUESTIONS[name]
    return {"name": name, "text": question.compare if plan.compare else question.rate, "words": question.words}


def _volume_check(seed: int) -> dict[str, Any]:
    """Beeps that grow softer, and how many they are."""
    rate, count = 16_000, BEEPS[seed % len(BEEPS)]
    time = np.arange(round(BEEP_SECONDS * rate)) / rate
    beep = np.sin(2 * np.pi * 1000 * time) * np.hanning(len(time))
    levels = np.geomspace(0.1, SOFTEST_BEEP, count)
    wave = np.concatenate([np.concatenate([level * beep, np.zeros(len(time))]) for level in levels]).astype(np.float32)
    return {"beeps": count, "check": base64.b64encode(encode_flac(wave, rate)).decode()}
