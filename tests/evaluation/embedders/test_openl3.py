"""OpenL3: windows, channels, and what it hears where there is no sound."""

import numpy as np
import pytest

from soundmill.errors import UserError
from soundmill.evaluation.embedders.openl3 import SAMPLE_RATE, OpenL3Embedder, windows
from tests import recorded


@pytest.mark.parametrize("seconds", [0.00003, 0.2, 0.5, 0.75, 1.0, 1.9, 2.1])
@pytest.mark.parametrize("hop", [0.1, 0.5])
def test_windows_are_torchopenl3s(seconds, hop):
    wave = np.arange(1, 1 + round(seconds * SAMPLE_RATE), dtype=np.float32)
    cut = recorded.thinned(windows(wave, int(hop * SAMPLE_RATE)), 50)
    np.testing.assert_array_equal(cut, recorded.said("openl3_env")[f"windows of {seconds} s every {hop}"])


def test_the_hop_and_the_channels_are_options(tmp_path):
    path = recorded.write("openl3_env", tmp_path / "weights")
    stereo = OpenL3Embedder("openl3_env", path, hop=0.25, channels=2)
    left, right = recorded.sound("noise", 0.5, SAMPLE_RATE), recorded.sound("noise", 1.0, SAMPLE_RATE)[24_000:]
    both, mono = stereo.embed([np.stack([left, right]), np.stack([left, left])]).frames
    np.testing.assert_allclose(mono[:, :512], mono[:, 512:], atol=1e-6)
    np.testing.assert_allclose(both[:, :512], mono[:, :512], atol=1e-4)
    recorded.check("openl3_env", "left", both[:, :512])
    recorded.check("openl3_env", "right", both[:, 512:])
    (hum,) = OpenL3Embedder("openl3_env", path).embed([recorded.sound("hum", 0.5, SAMPLE_RATE)]).frames
    recorded.check("openl3_env", "hum", hum)  # which has bands without sound: there torchopenl3 hears its own rounding
    with pytest.raises(UserError, match=r"openl3_env: 3 channels; it has 1 .* or 2"):
        OpenL3Embedder("openl3_env", path, channels=3)
    with pytest.raises(UserError, match="openl3_env: a hop of 0 seconds"):
        OpenL3Embedder("openl3_env", path, hop=0)
