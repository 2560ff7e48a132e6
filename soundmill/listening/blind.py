"""A blind listening test: a page for the raters, and the key, which says which system made each sound."""

import base64
import itertools
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from soundmill import disk, hashing, page
from soundmill.audio.flac import encode_flac
from soundmill.audio.levels import matching_gains
from soundmill.audio.resample import resample
from soundmill.errors import UserError
from soundmill.listening import answers
from soundmill.listening.answers import BAD, REAL, Key, KeyedModel, KeyedSound, Stimulus, read_key
from soundmill.listening.material import Material, Wave
from soundmill.page.sounds import LONGEST_SECONDS, MIN_RATE
from soundmill.params import StageParams, parse, read_yaml

LOUDNESS, MIN_LOUDNESS, MAX_GAIN = -23.0, -35.0, 40.0  # LUFS, LUFS, dB: one loudness for the whole test (`matching_gains`)
MAX_RATE = 48_000
SILENT_SHARE = 0.2  # of a bad anchor, at its end
BEEPS, BEEP_SECONDS, SOFTEST_BEEP = (4, 5, 6), 0.25, 0.004  # of the volume check: possible numbers; amplitude of the last


class Question(StageParams):
    """What raters are asked; `shows` is beside the sound, which is played `repeat` times in a row."""

    rate: str = Field(min_length=1, description="of one sound")
    compare: str = Field(min_length=1, description="of two sounds")
    labels: list[str] = Field(min_length=5, max_length=5, description="of the scale, from worst to best")
    shows: Literal["text", "reference"] | None = None
    repeat: int = Field(1, ge=1, le=10)


def questions(own: Path | None = None) -> dict[str, Question]:
    """All questions by name: those of questions.yaml, and those of a file of one's own like it, which may replace them."""
    found = {}
    for path in [Path(__file__).with_name("questions.yaml"), *([own] if own else [])]:
        for name, values in read_yaml(path).items():
            if not re.fullmatch(answers.QUESTION, str(name)):
                raise UserError(f"{path}: {name!r}: a question's name has small letters, digits and underscores, as quality")
            if name == "sounds" or hasattr(StageParams, name):
                raise UserError(f"{path}: {name}: is a name that files of answers use; choose another one")
            found[name] = parse(Question, values, f"{path}: {name}")
    return found


@dataclass(frozen=True)
class Plan:
    """Questions, number of requests per model, seed, scale (1 to 5 or 1 to 100), or whether pairs are compared instead."""

    questions: Mapping[str, Question]  # by name
    per_model: int
    seed: int
    scale: Literal[5, 100] = 5
    compare: bool = False

    def shows(self, what: str) -> bool:
        return any(question.shows == what for question in self.questions.values())


def write(
    directory: Path,
    material: Material,
    plan: Plan,
    weights: Mapping[str, str] | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[Path, Path]:
    """Write `test.html` for the raters and `key.json` into a directory; returns both paths.

    The seed and a random salt determine names, orders and noise. The salt is only in the key, so knowing the seed does not reveal
    the key; if the directory has a key, its salt is used again, which reproduces the test. UserError if too few requests have a
    real sound and one of every model, or if a question shows a text that a request lacks. `weights`: digest of each model's
    checkpoint, by its name. `progress` counts sounds.
    """
    paths = directory / "test.html", directory / "key.json"
    salt = (read_key(paths[1], "restore it, or choose another --output").salt if paths[1].exists() else "") or secrets.token_hex(16)
    seed = int(hashing.digest([salt, plan.seed]), 16)
    chosen = _requests(material, plan)
    names = [model.name for model in material.models]
    treatments, anchor = [(name,) for name in (*names, REAL)], (BAD,)
    if plan.compare:  # a single model is compared with the real sound
        treatments, anchor = list(itertools.combinations(names if len(names) > 1 else (*names, REAL), 2)), (REAL, BAD)
    orders = answers.orders(treatments, anchor, len(chosen), seed)
    stimuli = sorted({one for trials in orders for trial in trials for one in trial}, key=lambda one: (one.system, one.request))
    waves = {one: _wave(one, chosen, material, seed, progress) for one in stimuli}
    flacs = _uniform(waves, max(question.repeat for question in plan.questions.values()))
    numbers = np.random.default_rng([seed, 2]).permutation(len(stimuli))
    sound_names = {one: f"s{number + 1:03d}" for one, number in zip(stimuli, numbers, strict=True)}
    named_orders = [[[sound_names[one] for one in trial] for trial in trials] for trials in orders]
    content = {
        "questions": [
            {"name": name, "text": one.compare if plan.compare else one.rate, "words": one.labels}
            for name, one in plan.questions.items()
        ],
        "scale": plan.scale,
        "compare": plan.compare,
        "orders": named_orders,
        "sounds": {
            name: _sound(one, flacs[one], chosen, material, plan)
            for one, name in sorted(sound_names.items(), key=lambda item: item[1])
        },
        "references": {
            _reference(number): base64.b64encode(flacs[Stimulus(REAL, number)]).decode()
            for number in range(len(chosen) if plan.shows("reference") else 0)
        },
        **_volume_check(plan.seed),
    }
    test = hashing.digest(content)[:12]
    key = Key(
        format=1,
        test=test,
        questions=list(plan.questions),
        scale=plan.scale,
        compare=plan.compare,
        seed=plan.seed,
        salt=salt,
        sounds={name: KeyedSound(system=one.system, request=chosen[one.request]) for one, name in sound_names.items()},
        orders=named_orders,
        models={
            model.name: KeyedModel(
                family=model.family,
                weights=(weights or {}).get(model.name, ""),
                scores=dict(model.scores),
                of={clip_id: dict(model.sound_scores[clip_id]) for clip_id in chosen if clip_id in model.sound_scores},
            )
            for model in material.models
        },
    )
    text = page.render("soundmill.listening", "listening_test.html", title="Listening test", content={"test": test, **content})
    with disk.exclusive(directory):  # of two tests written at once, the second finds the key of the first
        if paths[1].exists() and read_key(paths[1]).test != test:
            raise UserError(f"{paths[1]}: the key of another test, whose answers need it; choose another --output")
        disk.write_atomically(paths[1], key.write)
        disk.write_text(paths[0], text)
    return paths


def _requests(material: Material, plan: Plan) -> list[str]:
    """Ids of the first `plan.per_model` requests with a real sound and one of every model."""
    if reserved := sorted({REAL, BAD} & {model.name for model in material.models}):
        raise UserError(f"{reserved[0]!r} is a reserved name; give the model another name: NAME=DIR")
    common = [
        clip_id
        for clip_id in material.order()
        if clip_id in material.real and all(clip_id in model.sounds for model in material.models)
    ]
    if len(common) < plan.per_model:
        raise UserError(
            f"{len(common)} requests have a real sound and one of every model, fewer than --per-model {plan.per_model}; lower it, "
            "generate more sounds, or give the real sounds with --reference DIR, under the same names"
        )
    chosen = common[: plan.per_model]
    asked = [name for name, question in plan.questions.items() if question.shows == "text"]
    if asked and (missing := [clip_id for clip_id in chosen if not material.requests[clip_id].text]):
        raise UserError(f"{', '.join(asked)}: no caption or label for {', '.join(missing[:10])}; give --captions FILE")
    return chosen


def _wave(one: Stimulus, chosen: Sequence[str], material: Material, seed: int, progress: Callable[[int], object]) -> Wave:
    """The sound; a bad anchor is the real sound of another request under equally loud noise, with its end silent."""
    progress(1)
    clip_id = chosen[one.request]
    if one.system == BAD:
        others = [*chosen[one.request + 1 :], *chosen[: one.request]]
        text = material.requests[clip_id].text  # of the other request it should differ
        other = next((other for other in others if material.requests[other].text != text), others[0])
        wave, rate = material.real[other]()
        noise = np.random.default_rng([seed, 3, one.request]).standard_normal(wave.shape)
        bad = (wave + noise * np.sqrt(np.mean(wave**2, dtype=np.float64))).astype(np.float32)
        bad[:, round(bad.shape[1] * (1 - SILENT_SHARE)) :] = 0
        return bad, rate
    sounds = material.real if one.system == REAL else next(model.sounds for model in material.models if model.name == one.system)
    return sounds[clip_id]()


def _uniform(waves: Mapping[Stimulus, Wave], loops: int) -> dict[Stimulus, bytes]:
    """The sounds as FLAC with the same rate, number of channels and loudness, each `loops` times in a row."""
    common_rate = min(max(max(rate for _, rate in waves.values()), MIN_RATE), MAX_RATE)
    channels = max(len(wave) for wave, _ in waves.values())
    resampled = {}
    for one, (wave, rate) in waves.items():
        excerpt = wave[:, : round(LONGEST_SECONDS * rate)]
        resampled[one] = resample(np.broadcast_to(excerpt, (channels, excerpt.shape[1])), rate, common_rate)
    gains = matching_gains([(wave, common_rate) for wave in resampled.values()], LOUDNESS, MIN_LOUDNESS, MAX_GAIN)
    return {
        one: encode_flac(np.tile(wave * np.float32(10 ** (gain / 20)), loops), common_rate)
        for (one, wave), gain in zip(resampled.items(), gains, strict=True)
    }


def _sound(one: Stimulus, flac: bytes, chosen: Sequence[str], material: Material, plan: Plan) -> dict[str, str]:
    sound = {"flac": base64.b64encode(flac).decode()}
    if plan.shows("text"):
        sound["text"] = material.requests[chosen[one.request]].text
    if plan.shows("reference"):
        sound["reference"] = _reference(one.request)
    return sound


def _reference(number: int) -> str:
    return f"r{number + 1:03d}"


def _volume_check(seed: int) -> dict[str, Any]:
    """Beeps, each softer than the one before, and their number."""
    rate, count = 16_000, BEEPS[seed % len(BEEPS)]
    time = np.arange(round(BEEP_SECONDS * rate)) / rate
    beep = np.sin(2 * np.pi * 1000 * time) * np.hanning(len(time))
    levels = np.geomspace(0.1, SOFTEST_BEEP, count)
    wave = np.concatenate([np.concatenate([level * beep, np.zeros(len(time))]) for level in levels]).astype(np.float32)
    return {"beeps": count, "check": base64.b64encode(encode_flac(wave, rate)).decode()}
