"""Who hears what when: orders of a listening test that are balanced over its raters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_CHECKS = 3
CHECK_SHARE = 5  # one check of each kind for so many requests
REPEAT_AFTER = 10  # trials at least between a sound and its repetition, where the test has as many


@dataclass(frozen=True)
class Heard:
    """A sound of a trial: whose it is, and the number of its request."""

    system: str
    request: int


Trial = tuple[Heard, ...]  # one sound to be rated, or two to be compared


def williams(size: int) -> list[list[int]]:
    """Rows of a Latin square that is balanced for carry-over: in them each number stands as often at each place, and as often right
    after each other one (Williams 1949). Of an odd size it takes two squares."""
    first = [0]
    for step in range(1, size):
        first.append(-(step // 2) % size if step % 2 == 0 else (step + 1) // 2)
    rows = [[(number + shift) % size for number in first] for shift in range(size)]
    return rows + [row[::-1] for row in rows] if size % 2 and size > 1 else rows


def checks(requests: int) -> int:
    """How many bad anchors, and how many repeats, a test of so many requests has."""
    return min(requests, max(FEWEST_CHECKS, math.ceil(requests / CHECK_SHARE)))


def orders(treatments: Sequence[tuple[str, ...]], anchor: tuple[str, ...], requests: int, seed: int) -> list[list[Trial]]:
    """The trials of each kind of rater, in their order: every treatment (one system, or two to compare) with every request.

    In a block each treatment comes once, in the order of a row of the Latin square; rater by rater and block by block the rows take
    turns. A request's treatments are spread over the test. Between them lie bad anchors and repeats, at places that the seed draws.
    Of two sounds the one that comes first takes turns, and changes where a trial is repeated.
    """
    square = williams(len(treatments))
    shift = max(1, requests // len(treatments))
    random = np.random.default_rng([seed, 0])
    labelled = [treatments[number] for number in random.permutation(len(treatments))]
    sequence = [int(number) for number in random.permutation(requests)]
    made = []
    for row in range(len(square)):
        trials = []
        for block in range(requests):
            for number in square[(row + block) % len(square)]:
                request = sequence[(block + number * shift) % requests]
                trials.append(_trial(labelled[number], request, (row + request) % 2))
        made.append(_with_checks(trials, anchor, checks(requests), np.random.default_rng([seed, 1, row])))
    return made


def repeats(trials: Sequence[Trial]) -> dict[int, int]:
    """Place of each repetition → place of the trial that it repeats."""
    seen: dict[frozenset[Heard], int] = {}
    found = {}
    for place, trial in enumerate(trials):
        first = seen.setdefault(frozenset(trial), place)
        if first != place:
            found[place] = first
    return found


def _trial(systems: tuple[str, ...], request: int, swapped: int) -> Trial:
    return tuple(Heard(system, request) for system in (systems[::-1] if swapped else systems))


def _with_checks(trials: list[Trial], anchor: tuple[str, ...], count: int, random: np.random.Generator) -> list[Trial]:
    """The trials with anchors at even distances, and some of them once more."""
    apart = min(REPEAT_AFTER, len(trials) // 2)
    firsts = random.choice(len(trials) - apart, size=min(count, len(trials) - apart), replace=False)
    added = [(int(random.integers(first + apart, len(trials))), trials[first][::-1]) for first in sorted(firsts)]
    edges = np.linspace(0, len(trials), count + 1).astype(int)
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        added.append((int(random.integers(low, max(high, low + 1))), _trial(anchor, number, number % 2)))
    whole = list(trials)
    for place, trial in sorted(added, key=lambda item: item[0], reverse=True):
        whole.insert(place + 1, trial)
    return whole
