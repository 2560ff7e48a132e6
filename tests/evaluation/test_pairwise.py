"""Comparison of several models: number of permutations, correction of p, and the reference."""

import shutil

import numpy as np
import pytest

from soundmill.audio import flac
from soundmill.evaluation import evaluator, pairwise, protocols
from tests.prepared import sound, write_sounds

RATE = 16_000
MODEL_METRICS = {"reference": "test", "seed": 0, "replicates": 20}


def real(number: int) -> np.ndarray:
    time = np.arange(RATE) / RATE
    return (0.4 * np.sin(2 * np.pi * (200 + 70 * number) * time) * np.exp(-4 * (time % 0.25))).astype(np.float32)


@pytest.fixture
def corpus(tmp_path):
    """A variant with so many test clips, and one of training."""

    def make(count: int):
        ids = [f"clip{number:02d}" for number in range(count)]
        rows = [sound(clip_id, real(number), split="test", digest=clip_id) for number, clip_id in enumerate(ids)]
        rows.append(sound("trained", real(count)))
        tables = write_sounds(rows, tmp_path / "clips", tmp_path / "catalog.parquet")
        return tables.clips, tables.catalog, ids

    return make


def write_noisy(directory, ids, noise: float):
    """The clips' own sounds in noise."""
    random = np.random.default_rng(1)
    for number, clip_id in enumerate(ids):
        flac.write_wav(directory / f"{clip_id}.wav", real(number) + noise * random.standard_normal(RATE).astype(np.float32), RATE)
    return directory


@pytest.fixture
def compare(tmp_path, shared, monkeypatch, in_this_process):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    where = {"model_metrics": MODEL_METRICS, "embedder": "yamnet", "tagger": tmp_path / "no tagger", "cache": tmp_path / "cache"}
    return lambda models, clips, catalog, others=(): pairwise.compare(models, dict(others), clips, catalog, **where)


@pytest.mark.slow
def test_of_seven_models_a_clear_difference_can_be_told(corpus, compare, tmp_path):
    """Of 42 tests p is multiplied by up to 42: 500 permutations would leave nothing under 0.05."""
    clips, catalog, ids = corpus(16)
    models = {f"model{level}": write_noisy(tmp_path / f"model{level}", ids, 10 ** (level / 2 - 3.5)) for level in range(7)}
    found = compare(models, clips, catalog)
    assert len(found.differences) == 42
    sure = {(one["a"], one["b"]) for one in found.differences if one["better"] == "model0" and one["p"] < 0.05}
    assert sure >= {("model0", f"model{level}") for level in (4, 5, 6)}


def test_p_is_corrected_for_the_number_of_tests_that_rank() -> None:
    """Holm (1979): 0.01 · 3, 0.02 · 2, and 0.04 · 1 which may not fall below those before it."""
    away = {"low": 0.1, "high": 0.3}
    found = [{"p": p, "better": better, **away} for p, better in ((0.02, "a"), (0.01, "b"), (0.04, "a"), (0.001, "unranked"))]
    assert [one["p"] for one in pairwise.correct(found)] == pytest.approx([0.04, 0.03, 0.04, 0.001])
    assert [one["better"] for one in found] == ["a", "b", "a", "unranked"]
    assert {one["better"] for one in pairwise.correct([{"p": 0.02, "better": "a", **away} for _ in range(3)])} == {"neither"}
    assert pairwise.correct([{"p": 0.001, "better": "a", "low": -0.1, "high": 0.3}])[0]["better"] == "neither"


def test_models_folders_and_differences_have_the_reference_of_the_models_own_scores(corpus, compare, tmp_path):
    """Sets are measured against all test clips, whatever was asked for; a folder with a model's sounds has its scores."""
    clips, catalog, ids = corpus(9)
    asked = ids[:5]
    models = {name: write_noisy(tmp_path / name, asked, noise) for name, noise in (("near", 0.003), ("far", 0.3))}
    everything = tmp_path / "real"
    for number, clip_id in enumerate(ids):
        flac.write_wav(everything / f"{clip_id}.wav", real(number), RATE)
    shutil.copytree(models["near"], tmp_path / "mine")
    found = compare(models, clips, catalog, {"mine": tmp_path / "mine"})
    protocol = protocols.load("project").with_embedders(["yamnet"]).model_copy(update={"replicates": 20})
    setup = evaluator.Setup(protocol, tmp_path / "cache", 1)
    of = {name: evaluator.evaluate(setup, folder, everything, unpaired=True).metrics for name, folder in models.items()}
    differences = {one["metric"]: one for one in found.differences}
    assert set(differences) == {"mmd", "kl"}
    assert differences["mmd"]["value"] == pytest.approx(of["near"]["mmd_yamnet"] - of["far"]["mmd_yamnet"], rel=1e-4)
    assert found.others["mine"]["mmd_yamnet"] == of["near"]["mmd_yamnet"]
    assert found.others["mine"]["files"]["reference"] == of["near"]["files"]["reference"]


def test_most_models_are_paired_and_a_bad_folder_costs_itself_alone(corpus, compare, tmp_path):
    clips, catalog, ids = corpus(6)
    models = {"alone": write_noisy(tmp_path / "alone", ids[:2], 0.1)}
    models |= {name: write_noisy(tmp_path / name, ids[2:], noise) for name, noise in (("one", 0.01), ("two", 0.1))}
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_bytes(b"RIFF and nothing more")
    found = compare(models, clips, catalog, {"bad": tmp_path / "bad", "good": models["one"]})
    assert found.unpaired == ["alone"]
    assert {(one["a"], one["b"]) for one in found.differences} == {("one", "two")}
    assert set(found.failed) == {"bad"}
    assert set(found.others) == {"good"}
