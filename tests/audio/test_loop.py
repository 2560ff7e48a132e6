"""Loops that go on at their beginning."""

import numpy as np

from soundmill.audio.loop import closed


def test_a_closed_loop_goes_on_at_its_beginning():
    """Of a sound that has nothing to do with the loop's length, the seam is as smooth as any other place."""
    wave = np.sin(2 * np.pi * 37.3 * np.arange(4000, dtype=np.float32) / 4000)
    loop = closed(wave[None, None], 1000, 2000, 100)[0, 0]
    assert (loop[:1900] == wave[1000:2900]).all()
    jumps, plainly = np.abs(np.roll(loop, -1) - loop), np.abs(np.diff(wave)).max()
    assert jumps[-1] <= plainly  # as anywhere in the wave itself
    assert jumps[:-1].max() < 1.2 * plainly
    assert abs(wave[1000] - wave[2999]) > 5 * jumps[-1]
