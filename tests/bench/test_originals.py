"""Recordings of what originals say, which other tests compare ours with, against the originals."""

import numpy as np
import pytest

from tests import recorded
from tests.bench import originals


@pytest.mark.parametrize("name", originals.ORIGINALS)
def test_the_original_says_what_is_recorded(name):
    said, expected = originals.say(name), recorded.said(name)
    assert said.keys() == expected.keys()
    for what, values in said.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, expected[what], rtol=1e-5, atol=2e-5, err_msg=what)
        else:
            np.testing.assert_array_equal(values, expected[what], err_msg=what)
