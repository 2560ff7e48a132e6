"""Parameters of one point after another, in a workspace that others may use too."""

import os
from pathlib import Path

import pytest

from flows import locks, trials
from soundmill.errors import UserError


def test_parameters_are_not_changed_beside_a_pipeline(tiny: Path) -> None:
    before = (tiny / "params.yaml").read_bytes()
    with locks.only_one(tiny, 0, print), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        trials.run_pipeline(tiny, {"first": {"number": 9}}, ["first"], "a point")
    assert (tiny / "params.yaml").read_bytes() == before
