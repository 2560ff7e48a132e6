"""The embedded loops: enough of each kind, the same every time, and seamless."""

import csv
from collections import Counter

import numpy as np
import pytest

from soundmill.corpora import loop_corpus
from soundmill.errors import UserError


def test_every_label_is_in_every_split_with_every_tempo_hint():
    loops = loop_corpus.plan(240, 0.1, 0.25, 0)
    assert loops == loop_corpus.plan(240, 0.1, 0.25, 0) != loop_corpus.plan(240, 0.1, 0.25, 1)
    assert len({loop.name for loop in loops}) == 240
    assert set(Counter((loop.label, loop.split) for loop in loops).values()) == {26, 4, 10}
    for label in loop_corpus.PATTERNS:
        assert {loop.hint for loop in loops if loop.label == label} == set(loop_corpus.TEMPO_HINTS)
    assert all(loop_corpus.SLOWEST <= loop.bpm <= loop_corpus.FASTEST for loop in loops)


def test_a_split_without_a_loop_is_refused():
    with pytest.raises(UserError, match=r"corpus\.recordings: 18 are 3 of each"):
        loop_corpus.plan(18, 0.1, 0.25, 0)


def test_a_loop_of_whole_bars_goes_on_at_its_beginning():
    """What rings at its end begins its beginning: there is no jump where it wraps."""
    loops = [loop for loop in loop_corpus.plan(60, 0.2, 0.2, 0) if loop.hint == "whole"][:6]
    for loop in loops:
        wave = loop_corpus.render(loop, 0)
        assert len(wave) == round(loop.bars * 240 / loop.bpm * loop.rate)
        assert np.abs(wave).max() == pytest.approx(10 ** (loop.level / 20))
        jumps = np.abs(np.diff(wave.mean(1), append=wave.mean(1)[:1]))
        assert jumps[-1] <= np.quantile(jumps, 0.9999) + 1e-3  # attacks, which loops begin with, are jumps themselves


def test_the_table_has_the_plan_of_each_loop(tmp_path):
    loops = loop_corpus.plan(30, 0.2, 0.2, 0)
    loop_corpus.write_csv(loops, tmp_path / "metadata.csv")
    with (tmp_path / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file_name"], float(row["bpm"]), row["split"]) for row in rows] == [
        (loop.name, loop.bpm, loop.split) for loop in loops
    ]
