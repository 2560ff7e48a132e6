"""What embedders of others do to sounds before their nets: windows, levels, channels; and files with anything but tensors."""

import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchaudio.compliance import kaldi

from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import openl3, passt, vggish
from soundmill.evaluation.embedders.panns import NUMPY, Cnn14Embedder
from soundmill.training import torch_weights
from tests import recorded


@pytest.mark.parametrize("seconds", [0.00003, 0.2, 0.5, 0.75, 1.0, 1.9, 2.1])
@pytest.mark.parametrize("hop", [0.1, 0.5])
def test_windows_are_torchopenl3s(seconds, hop):
    wave = np.arange(1, 1 + round(seconds * openl3.SAMPLE_RATE), dtype=np.float32)
    cut = recorded.thinned(openl3.windows(wave, int(hop * openl3.SAMPLE_RATE)), 50)
    np.testing.assert_array_equal(cut, recorded.said("openl3_env")[f"windows of {seconds} s every {hop}"])


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


def test_the_filters_are_kaldis():
    expected, _ = kaldi.get_mel_banks(128, 1024, 32_000, 0.0, 15_000.0, 100.0, -500.0, 1.0)
    np.testing.assert_allclose(passt.mel_filters(), nn.functional.pad(expected, (0, 1)), atol=2e-5)


@pytest.mark.parametrize(
    ("front_end", "seconds", "starts", "lengths"),
    [
        ("hear21passt", 1, [0], [1]),
        ("hear21passt", 10, [0], [10]),
        ("stable-audio-metrics", 1, [0], [1]),
        ("stable-audio-metrics", 1.5, [0], [1.5]),
        ("stable-audio-metrics", 2, [0], [10]),
        ("stable-audio-metrics", 10, [0], [10]),
        ("stable-audio-metrics", 12, [0, 5], [10, 10]),
        ("stable-audio-metrics", 20, [0, 5, 10], [10] * 3),
        ("stable-audio-metrics", 21, [0, 5, 10, 15], [10] * 4),
        ("av-benchmark", 1, [0], [10]),
        ("av-benchmark", 12, [0], [10]),
    ],
)
def test_every_tool_has_its_own_windows(front_end, seconds, starts, lengths):
    wave = np.arange(1, 1 + round(seconds * passt.SAMPLE_RATE), dtype=np.float32)
    cut = passt.FRONT_ENDS[front_end](wave)
    assert [(window[0] - 1) / passt.SAMPLE_RATE for window in cut] == starts
    assert [len(window) / passt.SAMPLE_RATE for window in cut] == lengths
    assert sum(np.count_nonzero(window) for window in cut) == sum(
        min(len(window), len(wave) - round(start * passt.SAMPLE_RATE)) for start, window in zip(starts, cut, strict=True)
    )


def test_a_long_scene_is_reflected_at_its_ends():
    """As in hear21passt."""
    cut = passt.scene(recorded.sound("noise", 11.0, passt.SAMPLE_RATE))
    np.testing.assert_array_equal(recorded.thinned(np.stack(cut)), recorded.said("passt")["windows"])
    assert [window[passt.WINDOW // 2] / passt.SAMPLE_RATE for window in passt.scene(np.arange(12.0 * passt.SAMPLE_RATE))] == [
        0,
        2.5,
        5,
        7.5,
        10,
    ]


def test_no_sound_has_no_window():
    for windows in passt.FRONT_ENDS.values():
        assert sum(map(len, windows(np.zeros(0, np.float32)))) == 0


@pytest.mark.parametrize(
    ("num_samples", "count"), [(0, 0), (1, 0), (15_599, 0), (15_600, 1), (30_959, 1), (30_960, 2), (160_000, 10), (160_240, 10)]
)
def test_an_incomplete_patch_is_dropped(num_samples, count):
    result = vggish.patches(np.zeros(num_samples, np.float32), vggish.FRONT_ENDS["torchvggish"])
    assert result.shape == (count, 96, 64)
    np.testing.assert_array_equal(result, np.float32(np.log(np.float32(0.01))))


@pytest.mark.parametrize(("num_samples", "count"), [(15_999, 0), (16_000, 1), (23_999, 1), (24_000, 2), (160_000, 19)])
def test_google_wants_whole_seconds_every_half(num_samples, count):
    assert len(vggish.patches(np.zeros(num_samples, np.float32), vggish.FRONT_ENDS["google-fad"])) == count


@pytest.mark.parametrize("seconds", [0.975, 2.5])
def test_log_mels_are_torchvggishs(seconds):
    result = vggish.patches(recorded.sound("noise", seconds, 16_000), vggish.FRONT_ENDS["torchvggish"])
    assert result.dtype == np.float32
    recorded.check("vggish", f"log-mels of {seconds} s", result, 1e-6)


@pytest.mark.parametrize("loudness", [0.05, 4.0])  # below the least peak that is divided by, and above full scale
def test_log_mels_of_google_are_of_one_second_each(loudness):
    wave = recorded.sound("noise", 3.3, 16_000) * np.float32(loudness)
    recorded.check("vggish", f"google at {loudness}", vggish.patches(wave, vggish.FRONT_ENDS["google-fad"]), 1e-6)


def test_an_unknown_front_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="passt: unknown front end 'hear21pass'; did you mean 'hear21passt'"):
        passt.PasstEmbedder(tmp_path, front_end="hear21pass")
    with pytest.raises(UserError, match="did you mean 'google-fad'"):
        vggish.VggishEmbedder(tmp_path, front_end="google_fad")
    with pytest.raises(UserError, match="yamnet: unknown option 'front_end'; it has none"):
        embedders.load("yamnet", tmp_path, front_end="google-fad")
