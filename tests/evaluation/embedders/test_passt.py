"""PaSST: its filters, and the windows of three tools."""

import numpy as np
import pytest
from torch import nn
from torchaudio.compliance import kaldi

from soundmill.errors import UserError
from soundmill.evaluation.embedders import passt
from soundmill.evaluation.embedders.passt import SAMPLE_RATE
from soundmill.evaluation.embedders.passt_net import mel_filters
from tests import recorded


def test_the_filters_are_kaldis():
    expected, _ = kaldi.get_mel_banks(128, 1024, 32_000, 0.0, 15_000.0, 100.0, -500.0, 1.0)
    np.testing.assert_allclose(mel_filters(), nn.functional.pad(expected, (0, 1)), atol=2e-5)


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
    wave = np.arange(1, 1 + round(seconds * SAMPLE_RATE), dtype=np.float32)
    cut = passt.FRONT_ENDS[front_end](wave)
    assert [(window[0] - 1) / SAMPLE_RATE for window in cut] == starts
    assert [len(window) / SAMPLE_RATE for window in cut] == lengths
    assert sum(np.count_nonzero(window) for window in cut) == sum(
        min(len(window), len(wave) - round(start * SAMPLE_RATE)) for start, window in zip(starts, cut, strict=True)
    )


def test_a_long_scene_is_reflected_at_its_ends():
    """As in hear21passt."""
    cut = passt.scene(recorded.sound("noise", 11.0, SAMPLE_RATE))
    np.testing.assert_array_equal(recorded.thinned(np.stack(cut)), recorded.said("passt")["windows"])
    assert [window[passt.WINDOW // 2] / SAMPLE_RATE for window in passt.scene(np.arange(12.0 * SAMPLE_RATE))] == [
        0,
        2.5,
        5,
        7.5,
        10,
    ]


def test_no_sound_has_no_window():
    for windows in passt.FRONT_ENDS.values():
        assert sum(map(len, windows(np.zeros(0, np.float32)))) == 0


def test_an_unknown_front_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="passt: unknown front end 'hear21pass'; did you mean 'hear21passt'"):
        passt.PasstEmbedder(tmp_path, front_end="hear21pass")
