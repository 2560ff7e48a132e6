"""Order of the trials of a listening test, balanced over raters."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    first = [0]
    for step in range(1, size):
        first.append(-(step // 2) % size if step % 2 == 0 else (step + 1) // 2)
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
