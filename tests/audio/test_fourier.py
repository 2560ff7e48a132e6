"""The transform that everything here hears by: scipy's own, to the bit, without what scipy imports for it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.fft

from soundmill.audio import fourier


@pytest.mark.parametrize("shape", [(1, 2), (1, 16), (3, 1000), (16, 2048), (33, 4096)])
def test_bits_are_those_of_scipy(shape):
    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted = scipy.fft.rfft(rows)
    place = np.empty_like(wanted)
    for found in (fourier.rfft(rows), fourier.rfft(rows, place), place):
        assert found.dtype == np.complex64
        np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_scipy_itself_is_not_imported():
    code = """
import sys
import numpy as np
from soundmill.audio import fourier

fourier.rfft(np.ones((2, 16), np.float32))
assert not any(name.startswith("scipy") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_scipy_has_it_elsewhere_it_is_asked_for_it(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)
    wanted = fourier.rfft(rows)
    monkeypatch.setattr(fourier.PathFinder, "find_spec", lambda *_: None)
    place = np.empty_like(wanted)
    np.testing.assert_array_equal(fourier._compiled.__wrapped__()(rows, (1,), True, 0, place, 1), wanted)
    np.testing.assert_array_equal(place, wanted)
