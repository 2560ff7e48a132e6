"""Other tools' own code: protocols compared with kadtk's, and what originals say with what is recorded of them."""

import sys

import numpy as np
import pytest

from bench import parity
from soundmill.metrics import scores
from tests import recorded
from tests.bench import originals


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench.parity", *arguments])
    with pytest.raises(SystemExit) as stopped:
        parity.main()
    return stopped.value.code


def test_our_kad_is_kadtks(monkeypatch, capsys):
    assert run(monkeypatch, "kadtk") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kadtk-1"
    assert len(lines) == 3
    assert all("KAD" in line for line in lines[1:])


def test_a_difference_is_told(monkeypatch, capsys):
    monkeypatch.setattr(scores, "KAD_SCALE", 101)
    assert run(monkeypatch, "kadtk") == 1
    assert capsys.readouterr().out.count("DIFFERENT") == 2


def test_a_tool_that_is_no_package_needs_a_checkout(monkeypatch, capsys):
    assert run(monkeypatch, "av-benchmark") == 2
    assert "give a checkout with --tool" in capsys.readouterr().err


@pytest.mark.parametrize("name", originals.ORIGINALS)
def test_the_original_says_what_is_recorded(name):
    said, expected = originals.say(name), recorded.said(name)
    assert said.keys() == expected.keys()
    for what, values in said.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, expected[what], rtol=1e-5, atol=2e-5, err_msg=what)
        else:
            np.testing.assert_array_equal(values, expected[what], err_msg=what)
