"""Orders of a listening test: balanced over raters, every sound once, checks between."""

import itertools
from collections import Counter

import pytest

from soundmill.listening import design
from soundmill.listening.design import Stimulus


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9])
def test_a_latin_square_balanced_for_carry_over(size):
    rows = design.williams(size)
    assert len(rows) == (2 * size if size % 2 and size > 1 else size)
    assert all(sorted(row) == list(range(size)) for row in rows)
    times = len(rows) // size
    places = Counter((place, number) for row in rows for place, number in enumerate(row))
    assert set(places.values()) == {times}
    followers = Counter(pair for row in rows for pair in itertools.pairwise(row))
    assert set(followers.values()) <= {times}
    assert len(followers) == size * (size - 1)  # each after each other one


@pytest.mark.parametrize(("models", "requests"), [(1, 3), (2, 5), (3, 20), (5, 4)])
def test_every_treatment_with_every_request_and_checks_between(models, requests):
    treatments = [(f"m{number}",) for number in range(models)] + [("real",)]
    output = design.orders(treatments, ("bad",), requests, seed=7)
    assert output == design.orders(treatments, ("bad",), requests, seed=7)
    assert output != design.orders(treatments, ("bad",), requests, seed=8)
    assert len(output) == len(design.williams(models + 1))
    for trials in output:
        again = design.repeats(trials)
        firsts = Counter(trial for place, trial in enumerate(trials) if place not in again)
        expected = [(Stimulus(name, request),) for (name,) in treatments for request in range(requests)]
        expected += [(Stimulus("bad", request),) for request in range(design.checks(requests))]
        assert firsts == Counter(expected)
        assert len(again) == min(design.checks(requests), len(trials) - len(expected))
        assert min(place - first for place, first in again.items()) >= min(design.REPEAT_AFTER, len(treatments) * requests // 2)
        assert not any(trials[place][0].system == "bad" for place in again)
    first_heard = Counter(next(trial for trial in trials if trial[0].system != "bad")[0].system for trials in output)
    assert len(set(first_heard.values())) == 1  # no system has the ear that is still fresh more often


def test_pairs_change_sides_from_rater_to_rater_and_where_they_are_repeated():
    output = design.orders([("a", "b"), ("a", "c"), ("b", "c")], ("real", "bad"), 10, seed=0)
    first = {frozenset(trial): trial for trial in output[0][::-1]}
    second = {frozenset(trial): trial for trial in output[1][::-1]}
    assert all(first[pair] == second[pair][::-1] for pair in first if "bad" not in {one.system for one in pair})
    sides = Counter(trial[0].system == "a" for trial in first.values() if {one.system for one in trial} == {"a", "b"})
    assert sides == {True: 5, False: 5}
    for trials in output:
        again = design.repeats(trials)
        assert len(again) == 3
        assert all(trials[place] == trials[earlier][::-1] for place, earlier in again.items())
