"""VGGish: its log-mels and patches are those of torchvggish, or of Google's FAD."""

import numpy as np
import pytest

from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders.vggish import FRONT_ENDS, VggishEmbedder, patches
from tests import recorded

RATE = 16_000
GOOGLE = FRONT_ENDS["google-fad"]


@pytest.mark.parametrize(
    ("num_samples", "count"), [(0, 0), (1, 0), (15_599, 0), (15_600, 1), (30_959, 1), (30_960, 2), (160_000, 10), (160_240, 10)]
)
def test_an_incomplete_patch_is_dropped(num_samples, count):
    result = patches(np.zeros(num_samples, np.float32), FRONT_ENDS["torchvggish"])
    assert result.shape == (count, 96, 64)
    np.testing.assert_array_equal(result, np.float32(np.log(np.float32(0.01))))


@pytest.mark.parametrize(("num_samples", "count"), [(15_999, 0), (16_000, 1), (23_999, 1), (24_000, 2), (160_000, 19)])
def test_google_wants_whole_seconds_every_half(num_samples, count):
    assert len(patches(np.zeros(num_samples, np.float32), GOOGLE)) == count


@pytest.mark.parametrize("seconds", [0.975, 2.5])
def test_log_mels_are_torchvggishs(seconds):
    result = patches(recorded.sound("noise", seconds, RATE), FRONT_ENDS["torchvggish"])
    assert result.dtype == np.float32
    recorded.check("vggish", f"log-mels of {seconds} s", result, 1e-6)


@pytest.mark.parametrize("loudness", [0.05, 4.0])  # below the least peak that is divided by, and above full scale
def test_log_mels_of_google_are_of_one_second_each(loudness):
    wave = recorded.sound("noise", 3.3, RATE) * np.float32(loudness)
    recorded.check("vggish", f"google at {loudness}", patches(wave, GOOGLE), 1e-6)


def test_an_unknown_front_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'google-fad'"):
        VggishEmbedder(tmp_path, front_end="google_fad")
    with pytest.raises(UserError, match="yamnet: unknown option 'front_end'; it has none"):
        embedders.load("yamnet", tmp_path, front_end="google-fad")
