"""Keys and files of answers, made by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from soundmill.listening.answers import Key, orders


def make_key(
    models: Sequence[str],
    requests: int,
    questions: Sequence[str] = ("quality",),
    scale: int = 5,
    compare: bool = False,
    **facts: Any,
) -> Key:
    """The key of a test of requests `q0`, `q1` …; `facts`: by model, its `scores` and those of single sounds, `of`."""
    treatments = [(name,) for name in (*models, "real")]
    if compare:
        treatments = [(a, b) for index, a in enumerate(models) for b in models[index + 1 :]]
    ordered = orders(treatments, ("real", "bad") if compare else ("bad",), requests, seed=0)
    heard = sorted({one for trials in ordered for trial in trials for one in trial}, key=lambda one: (one.system, one.request))
    names = {one: f"s{number:03d}" for number, one in enumerate(heard)}
    return Key.model_validate(
        {
            "format": 1,
            "test": "0123456789ab",
            "questions": list(questions),
            "scale": scale,
            "compare": compare,
            "seed": 0,
            "sounds": {names[one]: {"system": one.system, "request": f"q{one.request}"} for one in heard},
            "orders": [[[names[one] for one in trial] for trial in trials] for trials in ordered],
            "models": {name: {"family": "", "weights": "", "scores": {}, "of": {}, **facts.get(name, {})} for name in models},
        }
    )


def answered(key: Key, rater: int, rate: Callable[..., int | str]) -> dict[str, Any]:
    """A rater's file: `rate(question, systems, request, again)` answers each trial; `again` is whether it was heard before."""
    answers, seen = [], set()
    for names in key.order_of(rater):
        sounds = [key.sounds[name] for name in names]
        again = frozenset(names) in seen
        seen.add(frozenset(names))
        given = {
            one: rate(one, [sound.system for sound in sounds], key.request_numbers[sounds[0].request], again)
            for one in key.questions
        }
        answers.append({"sounds": names, **given})
    return {"format": 1, "test": key.test, "rater": rater, "answers": answers}


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
