"""CLAP through transformers' own loading, with random weights: windows, texts, files that are missing, the best of several."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from soundmill import hub
from soundmill.audio.resample import resample
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import clap
from soundmill.evaluation.embedders.base import HUB_FILES
from tests.clap_weights import write
from tests.waves import noise

RATE = clap.SAMPLE_RATE


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory):
    """$SOUNDMILL_WEIGHTS with a small CLAP in it."""
    directory = tmp_path_factory.mktemp("weights")
    write(directory / clap.NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDMILL_WEIGHTS", str(directory))
        yield directory


@pytest.fixture(scope="module")
def network(weights):
    return embedders.load("clap", Path())


@pytest.mark.parametrize(
    ("seconds", "starts"), [(0.5, [0]), (10, [0]), (10.24, [0, 0.24]), (20, [0, 10]), (25, [0, 7.5, 15]), (31, [0, 7, 14, 21])]
)
def test_windows_cover_a_wave_evenly(seconds, starts):
    wave = np.arange(round(seconds * RATE), dtype=np.float32)
    result = list(clap.windows(wave))
    np.testing.assert_allclose([window[0] / RATE for window in result], starts, atol=0.001)
    assert result[-1][-1] == wave[-1]
    assert {len(window) for window in result} == {min(len(wave), 10 * RATE)}


def test_embeddings_are_of_unit_length_and_the_same_every_time(network):
    waves = [noise(1, RATE), noise(12, RATE, seed=1)]
    result = network.embed(waves)
    assert [part.shape for part in result.frames] == [(1, 8), (2, 8)]
    assert result.logits.shape == (2, 0)
    for part in result.frames:
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(network.embed(waves[1:]).frames[0], result.frames[1], atol=1e-6)
    assert not np.allclose(result.frames[1][0], result.frames[1][1], atol=1e-4)


def test_more_windows_than_run_together(network):
    waves = [noise(seconds, RATE, seed=seed) for seed, seconds in enumerate((1, 85, 0.5))]
    result = network.embed(waves)
    assert [len(part) for part in result.frames] == [1, 9, 1]
    for wave, part in zip(waves, result.frames, strict=True):
        np.testing.assert_allclose(network.embed([wave]).frames[0], part, atol=1e-6)
    assert network.embed([]).frames == []
    assert network.embed([waves[0][:0]]).frames[0].shape == (0, 8)


def test_a_net_with_feature_fusion_is_told_nothing_at_random(tmp_path):
    write(tmp_path / "fused", fusion=True)
    fused = clap.ClapEmbedder(tmp_path / "fused")
    first = fused.embed([noise(1, RATE)]).frames[0]
    for _ in range(3):
        np.testing.assert_array_equal(fused.embed([noise(1, RATE)]).frames[0], first)


def test_texts_do_not_depend_on_one_another_and_are_cut(network):
    texts = ["a dog barks", "rain", "a dog barks"]
    result = network.embed_texts(texts)
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(result[0], result[2])
    np.testing.assert_array_equal(result[1], network.embed_texts(["rain"])[0])
    assert not np.allclose(result[0], result[1], atol=1e-4)
    assert network.embed_texts(["rain " * 500]).shape == (1, 8)


def test_similarity_is_the_cosine(network):
    waves, texts = [noise(1, RATE), noise(12, RATE, seed=1)], ["a dog barks", "rain"]
    result = network.similarity(texts, waves)
    frames, outcome = network.embed(waves).frames, network.embed_texts(texts)
    mean = frames[1].mean(axis=0)
    assert result == pytest.approx([float(frames[0][0] @ outcome[0]), float(mean @ outcome[1] / np.linalg.norm(mean))], abs=1e-5)


def test_the_best_of_every_group_is_kept(network):
    texts = ["a dog barks"] * 4 + ["rain"] * 4
    waves = [noise(0.5, RATE, seed=seed)[: RATE // 6] * (1 + seed) for seed in range(8)]
    kept = clap.best_of(4)(texts, [wave[None] for wave in waves], 16_000)
    scores = network.similarity(texts, [resample(wave, 16_000, RATE) for wave in waves])
    assert kept == [int(scores[:4].argmax()), 4 + int(scores[4:].argmax())]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no model.safetensors .weights in other formats can run code"),
        ("processor_config.json", "has no preprocessor_config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
    ],
)
def test_a_missing_file_is_named_with_the_place_it_belongs_to(tmp_path, weights, monkeypatch, file, message):
    shutil.copytree(weights / clap.NAME, tmp_path / clap.NAME)
    (tmp_path / clap.NAME / file).rename(tmp_path / "pytorch_model.bin")
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        clap.best_of(2)
    assert f"$SOUNDMILL_WEIGHTS/{clap.NAME}" in str(error.value)
    assert message.split(" .")[0] in embedders.unavailable("clap")


def test_files_that_do_not_belong_together_are_refused(tmp_path, weights):
    shutil.copytree(weights / clap.NAME, tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        clap.ClapEmbedder(tmp_path / "torn")
    write(tmp_path / "other", max_length_s=5)
    with pytest.raises(UserError, match="this is not laion"):
        clap.ClapEmbedder(tmp_path / "other")


def test_only_the_files_that_are_read_count(tmp_path, weights, monkeypatch):
    """Those that Python opens to prepare sounds and texts are counted; others in the directory are not."""
    shutil.copytree(weights / clap.NAME, tmp_path / "a" / clap.NAME)
    directory = tmp_path / "a" / clap.NAME
    opened: set[str] = set()
    recording = True

    def note(event: str, arguments: tuple) -> None:
        if recording and event == "open" and str(directory) in str(arguments[0]):
            opened.add(Path(str(arguments[0])).name)

    for name in ("special_tokens_map.json", "added_tokens.json", "notes.json", "notes.txt"):
        (directory / name).write_text("{}")
    sys.addaudithook(note)  # stays, and is silent afterwards
    clap.load_processor(directory)
    recording = False
    assert opened
    assert opened <= set(HUB_FILES["clap_music_speech"].files)
    digest = hub.digest(directory, HUB_FILES["clap_music_speech"].files)
    (directory / "notes.json").write_text("{1: 2}")
    (directory / "model.safetensors").write_bytes(b"other")
    assert hub.digest(directory, HUB_FILES["clap_music_speech"].files) == digest
    (directory / "tokenizer.json").write_text("{}")
    assert hub.digest(directory, HUB_FILES["clap_music_speech"].files) != digest
