"""Microsoft's CLAP of 2023: windows, and its tokenizer."""

from pathlib import Path

import numpy as np
import pytest

from bench import references
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import msclap
from tests import recorded

RATE = msclap.SAMPLE_RATE


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """$SOUNDMILL_WEIGHTS with a tokenizer that has no merges."""
    directory = tmp_path_factory.mktemp("weights")
    references.write_gpt2_tokenizer(directory / msclap.TOKENIZER)
    return directory


@pytest.fixture(autouse=True)
def _found(place, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(place))


def test_a_long_sound_has_several_windows_and_a_long_text_is_cut(place, tmp_path):
    ours = msclap.MsClapEmbedder(recorded.write("msclap", tmp_path / "weights"))
    (tmp_path / "weights").unlink()  # 690 MB
    wave = recorded.sound("noise", 8, RATE)
    whole, first, last = ours.embed([wave, wave[: 7 * RATE], wave[-7 * RATE :]]).frames
    np.testing.assert_allclose(whole, np.concatenate([first, last]), atol=1e-5)
    assert not np.allclose(first, last, atol=1e-3)
    assert ours.embed_texts(["rain " * 500]).shape == (1, 1024)  # longer than GPT-2's input, which msclap cannot embed


def test_other_tokenizers_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    (tmp_path / "CLAP_weights_2023.pth").touch()
    directory = tmp_path / msclap.TOKENIZER
    directory.mkdir(parents=True)
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        msclap.load_tokenizer(directory)
    content = Path(place / msclap.TOKENIZER / "tokenizer.json").read_text()
    (directory / "tokenizer.json").write_text(content.replace("50256", "50255").replace("unused 50255", "unused"))
    with pytest.raises(UserError, match=r"tokenizer\.json: "):
        msclap.load_tokenizer(directory)
    assert embedders.unavailable("msclap") is None  # whether it is the right one shows when it is loaded
