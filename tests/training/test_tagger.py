"""The tagger: what it learns, stores and hears; targets from labels, captions or clusters."""

import numpy as np
import pytest
import torch

from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.training import tagger
from soundmill.training.curve import write_curve
from soundmill.training.tagger import average_precision, cluster, from_names, load_tagger, num_steps, save_tagger, train_tagger
from tests.mels import spec_with

SPEC = spec_with(n_fft=512, win_length=512, hop_length=320, n_mels=32, f_min=50.0, power=2.0, floor=1e-10)
PARAMS = tagger.TaggerParams(
    mel="tagger",
    width=4,
    embedding_size=8,
    patch_seconds=1.0,
    crop_seconds=1.0,
    dropout=0.1,
    epochs=20,
    max_steps=60,
    max_clips=100,
    batch_size=8,
    learning_rate=1e-2,
    weight_decay=0.01,
    augmentation=tagger.AugmentationParams(gain_db=6.0, roll=True, masked_bands=0.2, masked_frames=0.2),
    max_words=8,
    clusters=3,
    seed=0,
    threads=1,
)


def sound(kind: int, seed: int, seconds: float) -> np.ndarray:
    """A tone (kind 0), noise (1) or clicks (2)."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(16_000 * seconds)) / 16_000
    wave = [
        np.sin(2 * np.pi * rng.uniform(300, 900) * t),
        rng.normal(0, 0.3, len(t)),
        (t * 8 % 1 < 0.01) * rng.normal(0, 1, len(t)),
    ]
    return (0.3 * wave[kind] * rng.uniform(0.3, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def corpus():
    """Twelve sounds of each kind, two lengths."""
    waves = {f"{kind}-{n}": sound(kind, 10 * n + kind, 1.0 + n % 2) for kind in range(3) for n in range(12)}
    mels = {name: log_mel(wave, SPEC).astype(np.float16) for name, wave in waves.items()}
    training = sorted(name for name in waves if int(name.split("-")[1]) < 8)
    valid = sorted(set(waves) - set(training))
    targets = from_names({name: [f"kind {name[0]}"] for name in waves}, training, "labels")
    return waves, mels, targets, training, valid


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    _, mels, targets, training, valid = corpus
    points = []
    net, curve = train_tagger(PARAMS, SPEC, mels, targets, training, valid, lambda *point: points.append(point), lambda n: None)
    directory = tmp_path_factory.mktemp("tagger")
    save_tagger(net, PARAMS, SPEC, targets, directory)
    return directory, curve, points


def test_it_learns_what_is_easy_and_reports_its_speed_and_memory(trained, corpus):
    _, mels, targets, _, valid = corpus
    directory, curve, points = trained
    assert curve[-1]["loss/train"] < 0.6 * curve[0]["loss/train"]
    assert curve[-1]["accuracy/valid"] >= 0.9
    assert [step for _, step in points] == [point["step"] for point in curve]
    scores = tagger.evaluate(load_tagger(directory).net, mels, targets, valid)
    assert scores["accuracy"] == curve[-1]["accuracy/valid"]
    assert scores["mean_average_precision"] > 0.9
    speeds = {"steps_per_second", "items_per_second", "sound_seconds_per_second", "data_wait_share", "peak_memory_bytes"}
    assert not speeds & {key for point in curve for key in point}
    for values, _ in points:
        assert speeds <= values.keys()
        assert values["items_per_second"] == pytest.approx(values["steps_per_second"] * PARAMS.batch_size)
        assert values["sound_seconds_per_second"] == pytest.approx(values["items_per_second"] * PARAMS.crop_seconds)
        assert 0 < values["data_wait_share"] < 1


def test_same_inputs_same_bytes_whatever_was_drawn_before(trained, corpus, tmp_path):
    _, mels, targets, training, valid = corpus
    torch.rand(7)
    net, curve = train_tagger(PARAMS, SPEC, mels, targets, training, valid, lambda *_: None, lambda n: None)
    save_tagger(net, PARAMS, SPEC, targets, tmp_path)
    write_curve(curve, tmp_path / "a.csv", tagger.CURVE)
    write_curve(trained[1], tmp_path / "b.csv", tagger.CURVE)
    assert (tmp_path / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()
    assert (tmp_path / "config.json").read_bytes() == (trained[0] / "config.json").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert not torch.are_deterministic_algorithms_enabled()


def test_embeddings_are_of_patches_and_depend_neither_on_company_nor_much_on_level(trained, corpus):
    waves = [*list(corpus[0].values())[:20], sound(0, 1, 5.0)]
    model = load_tagger(trained[0])
    embeddings, logits = model.embed(waves, threads=1)
    assert model.labels == ["kind 0", "kind 1", "kind 2"]
    assert logits.shape == (21, 3)
    assert {part.shape[1] for part in embeddings} == {8}
    assert [len(part) for part in (embeddings[0], embeddings[1], embeddings[-1])] == [1, 3, 9]  # of about 1 s, every half second
    assert logits.dtype == embeddings[0].dtype == np.float32
    alone, scores = model.embed(waves[3:4], threads=1)
    np.testing.assert_allclose(alone[0], embeddings[3], atol=1e-4)
    np.testing.assert_allclose(scores[0], logits[3], atol=1e-4)
    nothing, none = model.embed([])
    assert (nothing, none.shape) == ([], (0, 3))
    waves = [corpus[0][name] for name in corpus[4]]
    _, loud = model.embed(waves)
    _, soft = model.embed([0.6 * wave for wave in waves])
    assert (loud.argmax(1) == soft.argmax(1)).mean() > 0.9


@pytest.mark.parametrize(
    "wave",
    [np.zeros(0), np.zeros(1), np.zeros(80_000), np.full(16_000, 1e-38), np.ones(16_000), sound(1, 0, 0.2), 1e4 * sound(1, 0, 1.0)],
    ids=["nothing", "one sample", "silence", "denormal", "constant", "short", "far too loud"],
)
def test_any_wave_has_finite_embeddings(trained, wave):
    embeddings, logits = load_tagger(trained[0]).embed([wave.astype(np.float32)])
    assert len(embeddings[0]) >= 1
    assert np.isfinite(embeddings[0]).all()
    assert np.isfinite(logits).all()


def test_tampered_or_missing_files_are_named(trained, tmp_path):
    with pytest.raises(UserError, match=r"no tagger here \(config\.json is missing\); `dvc repro` makes one"):
        load_tagger(tmp_path)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(UserError, match="the digest differs"):
        load_tagger(tmp_path)


def test_average_precision_and_bounded_steps_have_known_answers():
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([0.1, 0.2, 0.3]), np.array([True, False, False])) == pytest.approx(1 / 3)
    assert num_steps(PARAMS, 24) == 60
    assert num_steps(PARAMS, 16) == 40
    assert num_steps(PARAMS, 10**6) == 60


def test_labels_share_a_clips_weight():
    targets = from_names({"a": ["dog"], "b": ["rain", "dog", "dog"], "c": [], "d": ["cat"]}, ["a", "b", "c"], "labels")
    assert targets.classes == ["dog", "rain"]
    assert targets.of_clip["b"].tolist() == [0.5, 0.5]
    assert sorted(targets.of_clip) == ["a", "b"]  # d's only label was never seen in training
    assert from_names({"a": ["dog"], "b": ["dog"]}, ["a", "b"], "labels") is None


def test_caption_words_are_content_words_that_several_clips_share():
    captions = {
        "a": ["A dog barks while rain falls"],
        "b": ["The dog growls, and barks"],
        "c": ["Rain is falling followed by thunder"],
        "d": ["A dog-like sound"],
        "e": ["A bell"],
    }
    words = tagger.caption_words(captions, list("abcde"), 2)
    assert words == {"a": ["barks", "dog"], "b": ["barks", "dog"], "c": [], "d": ["dog"], "e": []}


def test_clusters_find_kinds_without_any_word_and_equal_sounds_are_one():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10]])
    points = {f"{kind}-{n}": centres[kind] + rng.normal(0, 0.5, 2) for kind in range(3) for n in range(10)}
    targets = cluster(points, sorted(points), 3)
    found = {kind: {int(targets.of_clip[name].argmax()) for name in points if name[0] == kind} for kind in "012"}
    assert all(len(one) == 1 for one in found.values())
    assert len(set.union(*found.values())) == 3
    targets = cluster({"a": np.ones(4), "b": np.ones(4)}, ["a", "b"], 2)
    assert targets.classes == ["cluster 0"]
