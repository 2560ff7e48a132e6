"""Audiobox Aesthetics: sounds of several windows."""

import numpy as np

from soundmill.evaluation.embedders import audiobox
from tests import recorded


def test_windows_are_weighted_by_their_length(tmp_path, monkeypatch):
    """Sounds of a frame, of nearly a window, of one and of more, by windows of two seconds to be short."""
    net = audiobox.Audiobox(recorded.write("audiobox", tmp_path / "weights"))
    (tmp_path / "weights").unlink()  # 415 MB
    assert audiobox.WINDOW == 10 * audiobox.SAMPLE_RATE
    monkeypatch.setattr(audiobox, "WINDOW", 2 * audiobox.SAMPLE_RATE)
    frames = net.embed([*recorded.sounds("audiobox_short"), np.zeros(0, np.float32)]).frames
    assert [part.shape for part in frames] == [(1, 4)] * 4 + [(0, 4)]
    recorded.check("audiobox", "by short windows", np.concatenate(frames))
