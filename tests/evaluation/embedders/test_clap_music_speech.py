"""LAION's music-speech CLAP against laion_clap's network and RoBERTa at random weights, and checkpoints that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from bench import references
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import clap, htsat
from soundmill.evaluation.embedders.clap_music_speech import HTSAT, MusicSpeechClap
from tests import clap_weights

RATE = clap.SAMPLE_RATE
TOLERANCE = 1e-4
FILTERS, TRANSFORM = HTSAT + htsat.FILTERS, [HTSAT + name for name in htsat.TRANSFORM]


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """$SOUNDMILL_WEIGHTS with the files of `clap`, whose tokenizer knows few words."""
    directory = tmp_path_factory.mktemp("weights")
    clap_weights.write(directory / clap.NAME)
    return directory


@pytest.fixture(autouse=True)
def _found(place, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(place))


def save(state: dict, path) -> None:
    """As the published file: of the older format, with keys of a module in parallel and NumPy's older names."""
    checkpoint = {"epoch": 15, "name": "x", "state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save({**checkpoint, "best": np.float64(0.9)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"numpy._core.multiarray") == 1
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.fixture(scope="module")
def theirs():
    return references.music_speech_clap()


@pytest.fixture(scope="module")
def ours(theirs, place, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "clap.pt"
    save(theirs.state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDMILL_WEIGHTS", str(place))
        result = MusicSpeechClap(path)
    path.unlink()  # 800 MB
    return result


@pytest.mark.slow(minutes=0.5)
def test_embeddings_of_sounds_are_laion_claps(theirs, ours):
    waves = [noise(10), noise(0.9, 1), np.zeros(RATE, np.float32)]
    result = ours.embed(waves)
    filled = [np.tile(wave, clap.WINDOW // len(wave)) for wave in waves]  # as laion_clap's `repeatpad`
    filled = torch.from_numpy(np.stack([np.pad(wave, (0, clap.WINDOW - len(wave))) for wave in filled]))
    with torch.no_grad():
        embeddings = theirs.audio_branch({"waveform": filled})["embedding"]
        expected = normalize(theirs.audio_projection(embeddings), dim=-1)
    np.testing.assert_allclose(np.concatenate(result.frames), expected, atol=TOLERANCE)
    assert expected.std(dim=0).max() > 0.01  # it hears a difference
    assert result.logits.shape == (3, 0)


@pytest.mark.slow(minutes=0.5)
def test_embeddings_of_texts_are_laion_claps(theirs, ours):
    texts = ["a dog barks", "rain", "thunder " * 50]
    result = ours.embed_texts(texts)
    tokenizer = ours._processor.tokenizer
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        pooled = theirs.text_branch(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        expected = normalize(theirs.text_projection(pooled), dim=-1)
    np.testing.assert_allclose(result, expected, atol=TOLERANCE)
    assert len(tokenizer(texts[2])["input_ids"]) > 77  # so it was cut


@pytest.mark.slow(minutes=0.5)
def test_checkpoints_of_other_networks_are_refused(theirs, tmp_path):
    path = tmp_path / "other.pt"
    state = theirs.state_dict()

    def load(state: dict, message: str) -> None:
        save(state, path)
        with pytest.raises(UserError, match=message) as error:
            MusicSpeechClap(path)
        assert str(path) in str(error.value)

    load({FILTERS: state[FILTERS]}, "is not a transform of 1024 samples")
    of_sounds = {key: value for key, value in state.items() if key.startswith("audio_branch.") and ".layers." not in key}
    load({**of_sounds, FILTERS: 2 * state[FILTERS]}, "are not the mel filters that sounds are prepared with")
    load({**of_sounds, TRANSFORM[0]: state[TRANSFORM[1]]}, "is not the Fourier transform")
    load(of_sounds, r"not the weights of ClapModel .*Missing key")
    torch.save({"epoch": 1}, path)
    with pytest.raises(UserError, match="not a checkpoint of laion_clap"):
        MusicSpeechClap(path)


def test_missing_files_are_named(place, tmp_path, monkeypatch):
    assert "51c68f12f9d7" in embedders.find("clap_music_speech").weights.sha256
    assert "run `soundmill weights fetch clap_music_speech`" in embedders.unavailable("clap_music_speech")
    (tmp_path / "music_speech_audioset_epoch_15_esc_89.98.pt").touch()
    (tmp_path / clap.NAME).mkdir(parents=True)
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    reason = embedders.unavailable("clap_music_speech")
    assert "has no preprocessor_config.json" in reason
    assert f"into the directory $SOUNDMILL_WEIGHTS/{clap.NAME}" in reason
