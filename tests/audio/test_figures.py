"""Pictures show any text as it is written, whoever wrote it."""

import io
import warnings

import numpy as np
import pytest

from soundmill import drawing
from soundmill.audio import figures
from tests.models.components.test_mel_autoencoder import SPEC

# What people call their folders and write into captions; some of it ends matplotlib's own titles.
TEXTS = ("$x^$", r"$\frac{$ $", "_^}{%#&\\", "🐶 barks", "音\n声", "a\0b", "\udcff", "$ " * 5000, " ")


@pytest.mark.parametrize("text", TEXTS, ids=[ascii(text[:12]) for text in TEXTS])
def test_any_text_is_a_title(text, tmp_path):
    log_mels = np.random.default_rng(0).standard_normal((2, SPEC.n_mels, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.draw_log_mels(log_mels, [text, "rain"], SPEC, 2, text[:20].replace("\udcff", ""))
        figures.save_png(figure, tmp_path / "a.png")
        figure.savefig(io.BytesIO(), format="png", bbox_inches="tight")
        assert drawing.svg(figure, "a").startswith("<svg")
    shown = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert shown[-1] == "rain"
    assert all(len(title) <= drawing.LONGEST_TITLE for title in shown)


def test_long_texts_are_shortened():
    assert drawing.shorten("rain", 4) == "rain"
    assert drawing.shorten("a dog\n\tbarks ") == "a dog barks"
    assert drawing.shorten("a dog barks " * 10) == "a dog barks a dog barks a d…"
