"""Microsoft's CLAP of 2023 against msclap at random weights: sounds and texts through its own wrapper; files that are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch

from bench import references
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import msclap

RATE = msclap.SAMPLE_RATE
TOLERANCE = 1e-4


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.1 * np.cumsum(random.standard_normal(round(seconds * RATE))) % 1 - 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """$SOUNDMILL_WEIGHTS with a tokenizer that has no merges."""
    directory = tmp_path_factory.mktemp("weights")
    references.write_gpt2_tokenizer(directory / msclap.TOKENIZER)
    return directory


@pytest.fixture(autouse=True)
def _found(place, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(place))


@pytest.fixture(scope="module")
def net():
    return references.msclap()


@pytest.fixture(scope="module")
def checkpoint(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "clap.pth"
    references.write_msclap(net, path)
    yield path
    path.unlink()  # 690 MB


@pytest.fixture(scope="module")
def ours(checkpoint, place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDMILL_WEIGHTS", str(place))
        return msclap.MsClapEmbedder(checkpoint)


@pytest.fixture(scope="module")
def theirs(net, checkpoint, place):
    """msclap's wrapper, loaded from the checkpoint; what it would download is replaced."""
    from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model

    def tokenizer(name: str):
        loaded = msclap.load_tokenizer(place / msclap.TOKENIZER)
        loaded.encode_plus = lambda text, **options: loaded(text, **options)  # its name in older versions
        return loaded

    module = references.module("msclap.CLAPWrapper")
    module.torchaudio = SimpleNamespace(load=read)  # needs FFmpeg's libraries
    with (
        mock.patch.object(AutoModel, "from_pretrained", return_value=GPT2Model(GPT2Config())),
        mock.patch.object(AutoTokenizer, "from_pretrained", tokenizer),
    ):
        return module.CLAPWrapper(checkpoint, "2023")


def read(path: str) -> tuple[torch.Tensor, int]:
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(wave.T.copy()), rate


@pytest.mark.slow(minutes=0.7)
def test_embeddings_of_sounds_are_msclaps(theirs, ours, tmp_path):
    waves = [noise(7), noise(0.9, 1), np.zeros(RATE, np.float32), noise(3.21, 2)]
    paths = [str(tmp_path / f"{number}.wav") for number in range(len(waves))]
    for path, wave in zip(paths, waves, strict=True):
        soundfile.write(path, wave, RATE, "FLOAT")
    result = ours.embed(waves)
    expected = theirs.get_audio_embeddings(paths).numpy()
    np.testing.assert_allclose(np.concatenate(result.frames), expected, atol=TOLERANCE)
    assert expected.std(axis=0).max() > 0.01  # it hears a difference
    assert result.logits.shape == (4, 0)


@pytest.mark.slow(minutes=0.5)
def test_embeddings_of_texts_are_msclaps(theirs, ours):
    texts = ["a dog barks", "", "Help! Rain!!", "Grüße, 雨"]
    result = ours.embed_texts(texts)
    np.testing.assert_allclose(result, theirs.get_text_embeddings(texts), atol=TOLERANCE)
    assert result.std(axis=0).max() > 0.01
    long = "thunder and rain " * 20
    np.testing.assert_allclose(ours.embed_texts([long]), theirs.get_text_embeddings([long]), atol=TOLERANCE)
    assert ours.embed_texts(["rain " * 500]).shape == (1, 1024)  # longer than GPT-2's input, which msclap cannot embed
    assert ours.embed_texts([]).shape == (0, 1024)


@pytest.mark.slow(minutes=0.5)
def test_a_long_sound_has_several_windows_and_none_has_none(ours):
    waves = [noise(15), np.zeros(0, np.float32), noise(1.0, 2)]
    together = ours.embed(waves)
    assert [part.shape for part in together.frames] == [(3, 1024), (0, 1024), (1, 1024)]
    np.testing.assert_allclose(ours.embed([waves[0][: 7 * RATE]]).frames[0][0], together.frames[0][0], atol=1e-5)
    np.testing.assert_allclose(ours.embed([waves[0][-7 * RATE :]]).frames[0][0], together.frames[0][2], atol=1e-5)
    assert ours.embed([]).frames == []


@pytest.mark.slow(minutes=0.3)
def test_checkpoints_of_other_networks_are_refused(net, tmp_path):
    path = tmp_path / "other.pth"
    state = net.state_dict()

    def load(state: object, message: str) -> None:
        torch.save(state, path)
        with pytest.raises(UserError, match=message) as error:
            msclap.MsClapEmbedder(path)
        assert str(path) in str(error.value)

    load({"epoch": 1}, "not a checkpoint of msclap")
    load({"model": {}}, "is not a transform of 1024 samples")
    few = {key: values for key, values in state.items() if "extractor" in key}
    load({"model": few}, r"not the weights of MsClap .*Missing key.*audio_model")


def test_missing_and_other_files_are_named(place, tmp_path, monkeypatch):
    reason = embedders.unavailable("msclap")
    assert "CLAP_weights_2023.pth is not in" in reason
    assert "run `soundmill weights fetch msclap`" in reason
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    (tmp_path / "CLAP_weights_2023.pth").touch()
    directory = tmp_path / msclap.TOKENIZER
    directory.mkdir(parents=True)
    reason = embedders.unavailable("msclap")
    assert "has no tokenizer.json" in reason
    assert f"into the directory $SOUNDMILL_WEIGHTS/{msclap.TOKENIZER}" in reason
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        msclap.load_tokenizer(directory)
    content = Path(place / msclap.TOKENIZER / "tokenizer.json").read_text()
    (directory / "tokenizer.json").write_text(content.replace("50256", "50255").replace("unused 50255", "unused"))
    with pytest.raises(UserError, match=r"tokenizer\.json: "):
        msclap.load_tokenizer(directory)
    assert embedders.unavailable("msclap") is None  # whether it is the right one shows when it is loaded


def test_only_the_files_that_it_reads_count(place, tmp_path, monkeypatch):
    digests = []
    for number, (name, content) in enumerate([("README.md", "a"), ("config.json", "b"), ("tokenizer.json", "c")]):
        directory = tmp_path / str(number)
        (directory / msclap.TOKENIZER).mkdir(parents=True)
        tokenizer = Path(place / msclap.TOKENIZER / "tokenizer.json").read_bytes()
        (directory / msclap.TOKENIZER / "tokenizer.json").write_bytes(tokenizer)
        (directory / msclap.TOKENIZER / name).write_text(content)
        monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(directory))
        digests.append(embedders.digest("msclap", None))
    assert digests[0] == digests[1] != digests[2]
