"""Training clips that come again are found, by embedding and by fingerprint, and only those."""

from pathlib import Path

import numpy as np
import pytest

from soundmill import hashing
from soundmill.audio import fingerprint
from soundmill.audio.flac import write_wav
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.evaluation import cache, features, memorisation, protocols
from soundmill.evaluation.cache import Facts
from soundmill.evaluation.library import Setup

RATE = 16_000


def melody(seed: int, seconds: float = 4.0) -> np.ndarray:
    """Sixteen notes of three voices and a little noise, different for every seed."""
    random = np.random.default_rng(seed)
    length = int(seconds * RATE / 16)
    time = np.arange(length) / RATE
    notes = [sum(np.sin(2 * np.pi * random.uniform(150, 5_000) * time) for _ in range(3)) * np.exp(-6 * time) for _ in range(16)]
    return (0.2 * np.concatenate(notes) + 0.002 * random.standard_normal(16 * length)).astype(np.float32)


def view(directory: Path, rows: dict[str, np.ndarray]) -> features.View:
    """Embeddings as they lie in a cache, the key of each its content."""
    keys = {name: hashing.digest(frames.tobytes()) for name, frames in sorted(rows.items())}
    facts = Facts(RATE, RATE, False, False, "")
    embeddings = {key: cache.Embedding(key, facts, rows[name], np.zeros(0)) for name, key in keys.items()}
    cache.add(directory, embeddings.values())
    return features.View(directory, keys)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, list[features.View]]:
    """40 training clips, 30 held out, and 10 generated sounds: three of them training clips again, cut, softer and in noise."""
    tmp_path, random = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    waves = {
        "training": {f"t{index:02d}": melody(index) for index in range(40)},
        "real": {f"h{index:02d}": melody(100 + index) for index in range(30)},
        "generated": {f"g{index:02d}": melody(200 + index) for index in range(10)},
    }
    for copy, of in (("g03", "t07"), ("g04", "t21"), ("g08", "t39")):
        wave = 0.4 * waves["training"][of][8_000:]
        waves["generated"][copy] = (wave + 0.001 * random.standard_normal(len(wave))).astype(np.float32)
    printer = memorisation.Fingerprinter()
    result = {}
    for role, of in waves.items():
        sound = {}
        for name, wave in of.items():
            levels = np.log(np.abs(np.fft.rfft(wave[-48_000:]))[:24_000].reshape(-1, 100).mean(axis=1) + 1e-3)
            sound[name] = levels[None].astype(np.float32)  # [1, 240]: blind to gain
        printed = {name: printer.embed([wave]).frames[0] for name, wave in of.items()}
        result[role] = [view(tmp_path / f"{role}-spectra", sound), view(tmp_path / f"{role}-prints", printed)]
    return result


def test_planted_copies_are_found_and_no_others(sets):
    result = memorisation.search(sets["generated"], sets["real"], sets["training"], "spectrum")
    copies = {near.clip_id: near.copy_of for near in result.generated if near.copy_of}
    assert copies == {"g03": "t07", "g04": "t21", "g08": "t39"}
    nearest = {near.clip_id: near.neighbour for near in result.generated}
    assert {name: nearest[name] for name in copies} == copies
    assert {near.clip_id for near in result.worst(3)} == set(copies)
    assert all(result.is_near(near) for near in result.worst(3))
    metrics = result.metrics()
    assert metrics["memorised_fingerprint"] == 0.3
    assert metrics["memorised_fingerprint_real"] == 0
    assert metrics["memorised_spectrum"] >= 0.3
    assert metrics["memorised_spectrum_real"] == pytest.approx(memorisation.CLOSEST, abs=0.04)
    assert result.training == 40
    assert "3 of 10 generated sounds are copies of training clips, by fingerprint." in result.warnings()


def test_a_copy_that_is_too_short_to_be_embedded_is_found(sets, tmp_path):
    spectra, prints = sets["generated"]
    rows = {name: frames[:0] if name == "g03" else frames for name, frames in spectra.frames()}
    result = memorisation.search([view(tmp_path, rows), prints], sets["real"], sets["training"], "spectrum")
    assert {near.clip_id: near.similarity for near in result.worst(3)}["g03"] is None
    assert result.metrics()["memorised_fingerprint"] == 0.3


def test_real_sounds_that_were_trained_on_are_not_held_out(sets):
    training = [view(at.directory, dict(at.frames())) for at in sets["training"]]
    mixed = [
        view(at.directory.with_name(f"mixed{number}"), dict(at.frames()) | {"again": dict(other.frames())["t00"]})
        for number, (at, other) in enumerate(zip(sets["real"], training, strict=True))
    ]
    result = memorisation.search(sets["generated"], mixed, training, "spectrum")
    assert result.trained_on == ["again"]
    assert len(result.held_out) == 30
    assert any("1 of the real sounds are training clips (first: again)" in text for text in result.warnings())

    nothing = memorisation.search(sets["generated"], training, training, "spectrum")
    assert nothing.held_out == []
    assert set(nothing.metrics()) == {"memorised_fingerprint"}  # by embedding there is nothing to measure near by
    assert not nothing.is_near(nothing.generated[0])


def test_training_clips_pass_in_blocks(sets, monkeypatch):
    whole = memorisation.search(sets["generated"], sets["real"], sets["training"], "spectrum")
    monkeypatch.setattr(memorisation, "BLOCK", 7)
    assert memorisation.search(sets["generated"], sets["real"], sets["training"], "spectrum") == whole


def test_fingerprints_survive_being_kept(tmp_path):
    path = tmp_path / "a.wav"
    write_wav(path, melody(1), RATE)
    config = memorisation.FingerprintConfig("fingerprint")
    sound = features.file("a", path, hashing.file_digest(path))
    features.embed_all([config], [sound], tmp_path / "cache", 1)
    kept = dict(features.view(config, [sound], tmp_path / "cache").frames())["a"]
    wave = decode.read_mono(path, RATE, features.MAX_SECONDS)
    np.testing.assert_array_equal(memorisation.words(kept), fingerprint.fingerprint(wave))
    assert memorisation.words(np.zeros((0, 0), np.float32)).shape == (0, 2)


def test_ratings_find_no_copies(tmp_path):
    def setup(*names: str) -> Setup:
        return Setup(protocols.load("project").with_embedders([*names]), tmp_path, 1)

    assert memorisation.first_embedder(setup("audiobox", "yamnet")).name == "yamnet"
    with pytest.raises(UserError, match=r"by embeddings, which audiobox.*add another embedder"):
        memorisation.search_for_copies(setup("audiobox"), [], [], [])
