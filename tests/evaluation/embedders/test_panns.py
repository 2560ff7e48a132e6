"""Cnn14: what it does not hear, and files with anything but tensors."""

import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from soundmill.errors import UserError
from soundmill.evaluation.embedders.panns import NUMPY, Cnn14Embedder
from soundmill.training import torch_weights
from tests import recorded


def test_silence_after_a_short_sound_and_a_constant_change_nothing(tmp_path):
    """Other tools subtract the mean, which makes no difference."""
    net = Cnn14Embedder("panns_cnn14_16k", recorded.write("panns_cnn14_16k", tmp_path / "weights"))
    (tmp_path / "weights").unlink()  # 330 MB
    wave = recorded.sound("noise", 1.0, net.sample_rate)
    longer = np.pad(wave, (0, net.sample_rate))
    short, padded, shifted, long, other = net.embed(
        [wave, longer, longer + np.float32(0.1), np.tile(wave, 3), np.tile(wave, 3)]
    ).frames
    np.testing.assert_array_equal(short, padded)
    np.testing.assert_allclose(shifted, padded, atol=1e-4)
    np.testing.assert_array_equal(long, other)
    assert not np.allclose(long, short, atol=0.01)


class Harmful:
    """Would write a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("format", [True, False])
def test_a_file_with_anything_but_tensors_is_refused(tmp_path, format):
    path, touched = tmp_path / "cnn14.pth", tmp_path / "touched"
    for thing in (Harmful(touched), datetime.date(2020, 1, 1), print, np.array([Harmful(touched)])):
        torch.save({"model": {}, "sampler": thing}, path, _use_new_zipfile_serialization=format)
        with pytest.raises(UserError, match=r"cannot be read as weights .* fetch it again"):
            Cnn14Embedder("panns_cnn14_16k", path)
    assert not touched.exists()
    torch.save({"model": np.arange(3)}, path, _use_new_zipfile_serialization=format)
    with pytest.raises(UserError, match="cannot be read as weights"):
        torch_weights.read_checkpoint(path)  # arrays of numpy only where they are allowed
    content = path.read_bytes()
    random = np.random.default_rng(0)
    flipped = [bytes(random.integers(256) if random.random() < 0.2 else byte for byte in content) for _ in range(20)]
    for damaged in (b"", content[: len(content) // 2], b"\x80" + content, bytes(1000), *flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read as weights"):
            torch_weights.read_checkpoint(path, NUMPY)
