"""A listening test: the order of its trials, balanced over raters, its key, and the raters' answers, checked against the key."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, create_model

from soundmill import disk, params
from soundmill.errors import UserError
from soundmill.params import StageParams

REAL, BAD = "real", "bad"  # systems besides the models: the real sounds and the bad anchors
FIRST, SAME, SECOND = "first", "same", "second"  # answers of a comparison
QUESTION = r"^[a-z][a-z0-9_]{0,39}$"  # the name of a question, which names metrics too
MAX_BYTES = 4_000_000  # of a file of answers
MIN_CHECKS = 3
REQUESTS_PER_CHECK = 5  # for each kind of check
REPEAT_AFTER = 10  # minimum number of trials until a repeat; fewer in a short test


@dataclass(frozen=True)
class Stimulus:
    """A sound of a trial: its system and the number of its request."""

    system: str
    request: int


Trial = tuple[Stimulus, ...]  # one sound to be rated, or two to be compared


def williams(size: int) -> list[list[int]]:
    """Rows of a Latin square balanced for carry-over: each number is equally often at each place and directly after each other
    number (Williams 1949). An odd size needs two squares."""
    first = [-(step // 2) % size if step % 2 == 0 else (step + 1) // 2 for step in range(size)]
    rows = [[(number + shift) % size for number in first] for shift in range(size)]
    return rows + [row[::-1] for row in rows] if size % 2 and size > 1 else rows


def checks(requests: int) -> int:
    """Number of bad anchors, and also of repeats, in a test of this many requests."""
    return min(requests, max(MIN_CHECKS, math.ceil(requests / REQUESTS_PER_CHECK)))


def orders(treatments: Sequence[tuple[str, ...]], anchor: tuple[str, ...], requests: int, seed: int) -> list[list[Trial]]:
    """Trials in order, one list per row of the Latin square: every treatment (one system, or two to compare) with every request.

    A block has each treatment once, in the order of one row of the square; successive raters and blocks use successive rows. The
    treatments of a request are spread over the test. Bad anchors and repeats are inserted at random places. The order of two
    compared sounds alternates and is reversed in a repeat.
    """
    square = williams(len(treatments))
    shift = max(1, requests // len(treatments))
    random = np.random.default_rng([seed, 0])
    labelled = [treatments[number] for number in random.permutation(len(treatments))]
    sequence = [int(number) for number in random.permutation(requests)]
    orders = []
    for row in range(len(square)):
        trials = []
        for block in range(requests):
            for number in square[(row + block) % len(square)]:
                request = sequence[(block + number * shift) % requests]
                trials.append(_trial(labelled[number], request, (row + request) % 2))
        orders.append(_with_checks(trials, anchor, checks(requests), np.random.default_rng([seed, 1, row])))
    return orders


def repeats(trials: Sequence[Trial]) -> dict[int, int]:
    """Index of each repeat → index of the trial it repeats."""
    seen: dict[frozenset[Stimulus], int] = {}
    repeated = {}
    for place, trial in enumerate(trials):
        first = seen.setdefault(frozenset(trial), place)
        if first != place:
            repeated[place] = first
    return repeated


def _trial(systems: tuple[str, ...], request: int, swapped: int) -> Trial:
    return tuple(Stimulus(system, request) for system in (systems[::-1] if swapped else systems))


def _with_checks(trials: list[Trial], anchor: tuple[str, ...], count: int, random: np.random.Generator) -> list[Trial]:
    """The trials with `count` anchors, evenly spread, and `count` repeats."""
    distance = min(REPEAT_AFTER, len(trials) // 2)
    firsts = random.choice(len(trials) - distance, size=min(count, len(trials) - distance), replace=False)
    checks = [(int(random.integers(first + distance, len(trials))), trials[first][::-1]) for first in sorted(firsts)]
    edges = np.linspace(0, len(trials), count + 1).astype(int)
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        checks.append((int(random.integers(low, max(high, low + 1))), _trial(anchor, number, number % 2)))
    mixed = list(trials)
    for place, trial in sorted(checks, key=lambda item: item[0], reverse=True):
        mixed.insert(place + 1, trial)
    return mixed


class KeyedSound(StageParams):
    system: str
    request: str


class KeyedModel(StageParams):
    """A model: family and digest of its weights, if it is from a checkout, and its scores when the test was made."""

    family: str
    weights: str
    scores: dict[str, float]
    of: dict[str, dict[str, float]]  # scores of single sounds, by request


class Key(StageParams):
    """What the raters' page does not contain."""

    format: Literal[1]
    test: str
    questions: list[Annotated[str, Field(pattern=QUESTION)]] = Field(min_length=1)
    scale: Literal[5, 100]
    compare: bool
    seed: int
    salt: str = ""  # random: without it the key cannot be rebuilt from the seed; "" in older keys
    sounds: dict[str, KeyedSound]
    orders: list[list[list[str]]] = Field(min_length=1)
    models: dict[str, KeyedModel]

    def write(self, path: Path) -> None:
        """Write it to a file that others cannot read."""
        with open(path, "w", encoding="utf-8", opener=disk.private) as file:
            file.write(json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    def order_of(self, rater: int) -> list[list[str]]:
        """Names of the sounds of each trial of a rater."""
        return self.orders[(rater - 1) % len(self.orders)]

    def trials(self, rater: int) -> list[Trial]:
        numbers = self.request_numbers
        return [
            tuple(Stimulus(self.sounds[name].system, numbers[self.sounds[name].request]) for name in names)
            for names in self.order_of(rater)
        ]

    @property
    def request_numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(sorted({sound.request for sound in self.sounds.values()}))}


@dataclass(frozen=True)
class Answers:
    """One rater's answers by trial and question: a number of the scale, or FIRST, SAME or SECOND."""

    path: Path
    rater: int
    given: list[dict[str, int | str]]


def read_key(path: Path, remedy: str = "give the key.json that `soundmill listening-test new` wrote: --key FILE") -> Key:
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    key = params.parse(Key, params.read_json(path, remedy), str(path))
    ordered = {name for trials in key.orders for names in trials for name in names}
    if unknown := sorted(ordered - key.sounds.keys()):
        raise UserError(f"{path}: orders: {unknown[0]} is not in sounds; {remedy}")
    return key


def read_all(paths: Sequence[Path], key: Key) -> list[Answers]:
    """All raters' answers, sorted by rater; UserError names the file and the place of the first mistake."""
    by_rater: dict[int, Answers] = {}
    for path in paths:
        answers = read(path, key)
        if answers.rater in by_rater:
            other = by_rater[answers.rater].path
            raise UserError(
                f"{path}: rater: {answers.rater} is also the rater of {other}; remove one file, or change the number in one"
            )
        by_rater[answers.rater] = answers
    return [by_rater[rater] for rater in sorted(by_rater)]


def read(path: Path, key: Key) -> Answers:
    """One rater's file of answers, as the page saved it; UserError names the file and the place of the first mistake."""
    values = _json(path)
    if not isinstance(values, dict) or "answers" not in values:  # such as the key beside the page
        raise UserError(f"{path}: not a file of answers; use the file as the page saved it")
    document = params.parse(_Document, values, str(path))
    if document.test != key.test:
        raise UserError(f"{path}.test: {document.test!r:.60}: answers to another test; the key is for {key.test}")
    order, answers = key.order_of(document.rater), []
    answer = Literal[FIRST, SAME, SECOND] if key.compare else Annotated[int, Field(ge=1, le=key.scale)]
    entry = create_model("Entry", __base__=StageParams, sounds=list[str], **dict.fromkeys(key.questions, answer))
    for number, (names, given) in enumerate(zip(order, document.answers, strict=False)):
        where = f"{path}.answers.{number}"
        answers.append(params.parse(entry, given, where).model_dump())
        if (found := answers[-1].pop("sounds")) != names:
            raise UserError(
                f"{where}.sounds: {', '.join(found):.60}: expected {', '.join(names)} as trial {number + 1} "
                f"of rater {document.rater}"
            )
    if len(document.answers) != len(order):
        raise UserError(
            f"{path}.answers: {len(document.answers)} of {len(order)} trials; rater {document.rater} must finish the test once"
        )
    return Answers(path, document.rater, answers)


class _Document(StageParams):
    format: Literal[1]
    test: str
    rater: int = Field(ge=1, le=10_000)
    answers: list[dict[str, Any]]


def _json(path: Path) -> Any:
    """The parsed file; UserError for repeated keys, too."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{repeated[:60]!r} is repeated")
        return dict(pairs)

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB: not a file of answers")
    try:
        return params.parse_json(data, object_pairs_hook=unique)
    except ValueError as error:
        raise UserError(f"{path}: not a file of answers: {error}; use the file as the page saved it") from None
