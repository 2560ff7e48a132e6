"""The files of a listening test: its key, and what its raters answered, held to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from soundmill import params
from soundmill.errors import UserError
from soundmill.listening.design import Heard, Trial
from soundmill.params import StageParams

REAL, BAD = "real", "bad"  # systems that are no model: the real sounds, and the deliberately bad anchor
FIRST, SAME, SECOND = "first", "same", "second"  # answers of a comparison
MOST_BYTES = 4_000_000  # of a file of answers
MOST_RATERS = 10_000  # the highest number that a rater may have


class KeyedSound(StageParams):
    """Whose a sound is, and what it was made for."""

    system: str
    request: str


class KeyedModel(StageParams):
    """A model of the test: its family and weights, if it is one of a checkout, and the scores that it had."""

    family: str
    weights: str
    scores: dict[str, float]
    of: dict[str, dict[str, float]]  # of single sounds, by request


class Key(StageParams):
    """What the page of a test does not tell."""

    format: Literal[1]
    test: str
    questions: list[Literal["quality", "relevance", "similarity", "loopability"]] = Field(min_length=1)
    scale: Literal[5, 100]
    compare: bool
    seed: int
    salt: str = ""  # drawn at random when the test is made: without it nobody can rebuild the key; "" in keys made without one
    sounds: dict[str, KeyedSound]
    orders: list[list[list[str]]] = Field(min_length=1)
    models: dict[str, KeyedModel]

    def text(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def check_replaces(self, path: Path) -> None:
        """UserError where there is the key of another test, whose answers would be lost."""
        if path.exists() and read_key(path).test != self.test:
            raise UserError(f"{path}: the key of another test, whose answers cannot be scored without it; name another --output")

    def order_of(self, rater: int) -> list[list[str]]:
        """The sounds of each trial of a rater."""
        return self.orders[(rater - 1) % len(self.orders)]

    def trials(self, rater: int) -> list[Trial]:
        return [
            tuple(Heard(self.sounds[name].system, self.request_numbers[self.sounds[name].request]) for name in names)
            for names in self.order_of(rater)
        ]

    @property
    def requests(self) -> list[str]:
        return sorted({sound.request for sound in self.sounds.values()})

    @property
    def request_numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.requests)}


@dataclass(frozen=True)
class Answers:
    """One rater's answers, trial by trial: by question a number of the scale, or which of two sounds."""

    path: Path
    rater: int
    given: list[dict[str, int | str]]


def read_key(path: Path) -> Key:
    remedy = "give the key.json that `soundmill listening-test new` wrote: --key FILE"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    key = params.parse(Key, params.read_json(path, remedy), str(path))
    named = {name for trials in key.orders for names in trials for name in names}
    if unknown := sorted(named - key.sounds.keys()):
        raise UserError(f"{path}: orders: {unknown[0]} is none of its sounds; {remedy}")
    return key


def read_all(paths: Sequence[Path], key: Key) -> list[Answers]:
    """Every rater's answers, by their numbers; any fault is a UserError that names the file and the place in it."""
    by_rater: dict[int, Answers] = {}
    for path in paths:
        answers = read(path, key)
        if answers.rater in by_rater:
            other = by_rater[answers.rater].path
            raise UserError(
                f"{path}: rater: {answers.rater} has answered in {other}, too; keep one of both, or give another number"
            )
        by_rater[answers.rater] = answers
    return [by_rater[rater] for rater in sorted(by_rater)]


def read(path: Path, key: Key) -> Answers:
    """The answers of one file, held to the key."""
    document = _json(path)

    def fault(where: str, what: str) -> UserError:
        return UserError(f"{path}: {where}: {what}")

    def whole(values: Any, where: str, names: Sequence[str]) -> Mapping[str, Any]:
        """A mapping that has these keys and no others."""
        if not isinstance(values, dict):
            raise fault(where, f"expected {', '.join(names)}, found {_short(values)}")
        for name in values:
            if name not in names:
                raise fault(f"{where}.{_short(name)}".lstrip("."), f"unknown{params.did_you_mean(name, list(names))}")
        for name in names:
            if name not in values:
                raise fault(f"{where}.{name}".lstrip("."), "missing")
        return values

    top = whole(document, "", ("format", "test", "rater", "answers"))
    if top["format"] != 1 or type(top["format"]) is not int:
        raise fault("format", f"{_short(top['format'])}: expected 1; take the page's own file as it is")
    if top["test"] != key.test:
        raise fault("test", f"{_short(top['test'])}: answers to another test than the key's, {key.test}")
    rater = top["rater"]
    if type(rater) is not int or not 1 <= rater <= MOST_RATERS:
        raise fault("rater", f"{_short(rater)}: expected a number from 1 to {MOST_RATERS}")
    order, given = key.order_of(rater), top["answers"]
    if not isinstance(given, list):
        raise fault("answers", f"expected a list, found {_short(given)}")
    answers: list[dict[str, int | str]] = []
    for number, entry in enumerate(given):
        where = f"answers.{number}"
        entry = whole(entry, where, ("sounds", *key.questions))
        names = entry["sounds"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise fault(f"{where}.sounds", f"expected names of sounds, found {_short(names)}")
        if unknown := [name for name in names if name not in key.sounds]:
            raise fault(f"{where}.sounds", f"{_short(unknown[0])} is no sound of this test")
        if number >= len(order):
            raise fault(where, f"one more than the {len(order)} trials of this test: something was answered twice")
        if names != order[number]:
            raise fault(f"{where}.sounds", f"{', '.join(names)}: trial {number + 1} of rater {rater} is {', '.join(order[number])}")
        answers.append({name: _answer(entry[name], key, f"{where}.{name}", fault) for name in key.questions})
    if len(answers) < len(order):
        raise fault("answers", f"{len(answers)} of {len(order)} trials are answered; let rater {rater} finish the test")
    return Answers(path, rater, answers)


def _answer(value: Any, key: Key, where: str, fault: Callable[[str, str], UserError]) -> int | str:
    if key.compare:
        if value not in (FIRST, SAME, SECOND) or not isinstance(value, str):
            raise fault(where, f"{_short(value)}: expected {FIRST}, {SAME} or {SECOND}")
    elif type(value) is not int or not 1 <= value <= key.scale:
        raise fault(where, f"{_short(value)}: expected a whole number from 1 to {key.scale}")
    return value


def _json(path: Path) -> Any:
    """The value of the file; a key that is there twice is a fault, too."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{_short(repeated)} is there twice")
        return dict(pairs)

    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: larger than {MOST_BYTES // 1_000_000} MB: no file of answers")
    try:
        return params.parse_json(data, object_pairs_hook=once)
    except ValueError as error:
        raise UserError(f"{path}: not readable as answers: {error}; take the page's own file as it is") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
