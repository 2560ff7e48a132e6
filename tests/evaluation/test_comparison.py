"""Which of two models is better: the test holds its size, finds a difference, and pairs by id; of several: permutations, the
correction of p, and the reference."""

import shutil

import numpy as np
import pytest

from soundmill.audio import flac
from soundmill.errors import UserError
from soundmill.evaluation import comparison, evaluator, pairwise, protocols
from soundmill.evaluation.comparison import compare
from soundmill.metrics import frechet, scores
from soundmill.metrics.scores import EmbeddingSet
from tests.prepared import sound, write_sounds


def models(seed: int, effect: float = 0.0, clips: int = 40, size: int = 4) -> tuple[EmbeddingSet, EmbeddingSet, EmbeddingSet]:
    """Two models of equal prompts, the first worse by `effect`, and a reference of the same ids; sounds follow their prompt."""
    random = np.random.default_rng(seed)
    ids = [f"clip{number:03d}" for number in range(clips)]
    prompt = random.standard_normal((clips, 1, size))

    def sounds(noise: float, shift: float) -> EmbeddingSet:
        rows = prompt + noise * random.standard_normal((clips, 3, size)) + shift
        logits = rows.mean(axis=1) * 2 + shift * np.arange(size)
        return EmbeddingSet.of(dict(zip(ids, rows, strict=True)), dict(zip(ids, logits, strict=True)))

    return sounds(0.8, 0.2 + effect), sounds(0.8, 0.2), sounds(0.5, 0.0)


@pytest.mark.parametrize("metric", ["fad", "is", "mmd"])
def test_models_that_are_alike_are_told_apart_one_time_in_twenty(metric):
    """Of 200 pairs: five per cent, by three binomial deviations; with 19 exchanges the least p is 0.05."""
    result = np.array([compare(metric, *models(seed, clips=24), seed=seed, replicates=19)["p"] for seed in range(200)])
    assert 0.005 <= np.mean(result <= 0.05) <= 0.1
    assert np.mean(result <= 0.5) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("metric", ["fad", "fad_inf", "fad_per_clip", "kl", "mmd", "kid"])
def test_a_real_difference_is_found(metric):
    a, b, reference = models(0, effect=0.5, clips=60)
    result = compare(metric, a, b, reference, seed=0, replicates=199)
    sure = metric != "fad_inf"  # whose line has an error of its own
    assert result["p"] < 0.05
    assert result["better"] == ("b" if sure else "neither")
    assert result["difference"] == result["a"] - result["b"] > 0
    assert result["low"] < result["difference"] < result["high"]
    assert (result["low"] > 0) == sure
    assert result["clips"] == 60
    other = compare(metric, b, a, reference, seed=0, replicates=199)
    assert (other["better"], other["difference"]) == ("a" if sure else "neither", pytest.approx(-result["difference"]))


@pytest.mark.parametrize("metric", ["recall", "coverage"])
def test_what_partners_both_reach_hides_no_difference_and_makes_none(metric):
    """Sounds in the place of others that are near them; shares of few rows are often equal, so that p is rather too large."""
    result = np.array([compare(metric, *models(seed, clips=24), seed=seed, replicates=19)["p"] for seed in range(200)])
    assert np.mean(result <= 0.05) <= 0.1
    _, b, reference = models(7, clips=60)
    frames = dict(b.frames())
    first = frames[b.ids[0]]
    alike = {name: first + 1e-3 * rows if number % 2 else rows for number, (name, rows) in enumerate(frames.items())}
    result = compare(metric, EmbeddingSet.of(alike), b, reference, seed=0, replicates=199)
    assert result["difference"] < 0
    assert result["p"] < 0.05
    assert result["low"] < 0 < result["high"]
    assert result["better"] == "neither"


@pytest.mark.parametrize(("seed", "real"), [(7, True), (6, False), (9, False)])
def test_the_test_is_of_the_difference_itself(seed, real):
    """By what each clip adds to the FAD of a and b together, p is 0.002 and 0.005 of the last two, whose FADs are equal."""
    a, b, reference = np.random.default_rng(seed).standard_normal((3, 60, 3, 8))
    a[..., 0] += 1  # beside the reference
    b[:, 0, 0] -= 0.5
    b[:, 1:] = 0  # two thirds of its rows are one point
    sets = [EmbeddingSet.of({f"clip{number:03d}": rows for number, rows in enumerate(clips)}) for clips in (a, b, reference)]
    result = compare("fad", *sets, seed=0, replicates=199)
    assert (result["p"] < 0.05) == real
    assert result["better"] == ("a" if real else "neither")


def test_what_differs_by_rounding_alone_is_no_difference():
    _, b, reference = models(8, clips=30)
    frames = dict(b.frames())
    again = EmbeddingSet.of({clip_id: rows * (1 + 1e-15) for clip_id, rows in frames.items()})
    for metric in ("fad", "mmd", "coverage"):
        result = compare(metric, again, b, reference, seed=0, replicates=99)
        assert (result["p"], result["better"]) == (1, "neither")


def test_where_higher_is_better_the_higher_is_better():
    a, b, reference = models(1, effect=1.5, clips=80)
    result = compare("density", a, b, reference, seed=0, replicates=99)
    assert result["difference"] < 0
    assert result["better"] == "b"


def test_what_prompts_do_to_both_cancels_out():
    """Each model's own interval holds the other's value; that of their difference does not hold zero."""
    a, b, reference = models(2, effect=0.12, clips=100)
    alone = scores.compute("fad", a, reference, seed=0, replicates=300)
    result = compare("fad", a, b, reference, seed=0, replicates=300)
    assert alone["low"] < result["b"] < alone["high"]
    assert result["low"] > 0
    assert result["p"] < 0.05


@pytest.mark.parametrize("metric", scores.METRICS)
def test_every_metric_can_be_compared_whatever_the_order(metric):
    a, b, reference = models(4, effect=0.1)
    if metric == "clap_score":
        reference = EmbeddingSet.of({clip_id: rows[:1] for clip_id, rows in reference.frames()})
    ticks: list[int] = []
    result = compare(metric, a, b, reference, seed=0, replicates=30, progress=ticks.append)
    assert sum(ticks) == 31
    sides = (a, b, reference)
    backwards = [EmbeddingSet(side.ids[::-1], lambda side=side: reversed(list(side.frames())), side.logits) for side in sides]
    again = compare(metric, *backwards, seed=0, replicates=30)
    for key in ("a", "b", "difference", "low", "high", "p"):
        assert again[key] == pytest.approx(result[key], rel=1e-6, abs=1e-9)
    assert {"low", "high", "p", "better"}.isdisjoint(compare(metric, a, b, reference, seed=0, replicates=0))


def test_clips_without_a_partner_are_named_and_warnings_say_of_which_model():
    a, b, reference = models(5)
    with pytest.raises(UserError, match="only a has clip003, clip004; a comparison needs"):
        compare("fad", a, b.only(set(b.ids) - {"clip003", "clip004"}), reference, seed=0, replicates=0)
    with pytest.raises(UserError, match="only b has clip003"):
        compare("fad", a.only(set(a.ids) - {"clip003"}), b, reference, seed=0, replicates=0)
    short = EmbeddingSet.of(dict(a.frames()) | {"clip001": np.ones((1, 4))}, a.logits)
    with pytest.raises(UserError, match="clip001: one of the two sounds"):
        compare("fad_per_clip", short, b, reference, seed=0, replicates=0)
    a, b, reference = models(6, clips=10, size=8)
    result = compare("fad", a, b, reference, seed=0, replicates=0)
    assert [line[:3] for line in result["warnings"]] == ["a: ", "b: "]


def test_p_of_few_pairs_is_that_of_all_exchanges():
    """Three equal differences: 2 of the 8 exchanges of signs are as large."""
    assert comparison.permutation(np.ones(3), 0, 4000) == pytest.approx(2 / 8, abs=0.02)


@pytest.mark.parametrize(("metric", "axes"), [("fad", 4), ("fd", 4), ("mmd", 4), ("coverage", 4), ("fad", 40)])
def test_an_exchange_has_the_metric_of_the_exchanged_sets(metric, axes):
    """Of as many axes as have their correlations in an exchanged Fréchet distance: the metric; of more, the difference of both."""
    a, b, reference = models(9, effect=0.3, clips=30, size=axes)
    chosen = np.stack([np.ones(30), np.arange(30) % 2]).astype(np.float32)
    kind = scores.METRICS[metric]
    values = kind.exchanged(a, b, reference, 0, chosen)
    sounds = [dict(side.frames()) for side in (a, b)]
    mixed = [EmbeddingSet.of({name: sounds[(number + place) % 2][name] for number, name in enumerate(a.ids)}) for place in (1, 0)]
    expected = [[kind.statistic(side, reference, 0).value for side in pair] for pair in ((a, mixed[0]), (b, mixed[1]))]
    if axes == 4:
        assert values == pytest.approx(np.array(expected))
    assert values[0] - values[1] == pytest.approx(np.subtract(*np.array(expected)), abs=0.2)


def test_a_difference_beyond_the_first_axes_is_found():
    """b is narrow where the three sets vary least."""
    scale = np.r_[np.full(frechet.AXES, 1.0), np.full(64, 0.6)]
    a, b, reference = np.random.default_rng(0).standard_normal((3, 60, 6, len(scale))) * scale
    b[..., frechet.AXES :] /= 2
    sides = [EmbeddingSet.of({f"clip{number:03d}": rows for number, rows in enumerate(clips)}) for clips in (a, b, reference)]
    result = compare("fad", *sides, seed=0, replicates=199)
    assert result["better"] == "a"
    assert result["high"] < 0


def test_an_exchange_that_leaves_a_set_without_embeddings_is_one_of_a_point():
    """Each prompt has an embedding of one model alone: some exchanges take all that a set has."""
    random = np.random.default_rng(0)
    some, none = random.standard_normal((2, 4)), np.zeros((0, 4))
    a, b = EmbeddingSet.of({"c0": some, "c1": none, "c2": none}), EmbeddingSet.of({"c0": none, "c1": some, "c2": some})
    reference = EmbeddingSet.of({f"c{number}": random.standard_normal((4, 4)) for number in range(3)})
    assert 0 < compare("fad", a, b, reference, seed=0, replicates=99)["p"] <= 1


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
def compare_models(tmp_path, shared, monkeypatch, in_this_process):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    where = {"model_metrics": MODEL_METRICS, "embedder": "yamnet", "tagger": tmp_path / "no tagger", "cache": tmp_path / "cache"}
    return lambda models, clips, catalog, others=(): pairwise.compare(models, dict(others), clips, catalog, **where)


@pytest.mark.slow
def test_of_seven_models_a_clear_difference_can_be_told(corpus, compare_models, tmp_path):
    """Of 42 tests p is multiplied by up to 42: 500 permutations would leave nothing under 0.05."""
    clips, catalog, ids = corpus(16)
    models = {f"model{level}": write_noisy(tmp_path / f"model{level}", ids, 10 ** (level / 2 - 3.5)) for level in range(7)}
    found = compare_models(models, clips, catalog)
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


def test_models_folders_and_differences_have_the_reference_of_the_models_own_scores(corpus, compare_models, tmp_path):
    """Sets are measured against all test clips, whatever was asked for; a folder with a model's sounds has its scores."""
    clips, catalog, ids = corpus(9)
    asked = ids[:5]
    models = {name: write_noisy(tmp_path / name, asked, noise) for name, noise in (("near", 0.003), ("far", 0.3))}
    everything = tmp_path / "real"
    for number, clip_id in enumerate(ids):
        flac.write_wav(everything / f"{clip_id}.wav", real(number), RATE)
    shutil.copytree(models["near"], tmp_path / "mine")
    found = compare_models(models, clips, catalog, {"mine": tmp_path / "mine"})
    protocol = protocols.load("project").with_embedders(["yamnet"]).model_copy(update={"replicates": 20})
    setup = evaluator.Setup(protocol, tmp_path / "cache", 1)
    of = {name: evaluator.evaluate(setup, folder, everything, unpaired=True).metrics for name, folder in models.items()}
    differences = {one["metric"]: one for one in found.differences}
    assert set(differences) == {"mmd", "kl"}
    assert differences["mmd"]["value"] == pytest.approx(of["near"]["mmd_yamnet"] - of["far"]["mmd_yamnet"], rel=1e-4)
    assert found.others["mine"]["mmd_yamnet"] == of["near"]["mmd_yamnet"]
    assert found.others["mine"]["files"]["reference"] == of["near"]["files"]["reference"]


def test_most_models_are_paired_and_a_bad_folder_costs_itself_alone(corpus, compare_models, tmp_path):
    clips, catalog, ids = corpus(6)
    models = {"alone": write_noisy(tmp_path / "alone", ids[:2], 0.1)}
    models |= {name: write_noisy(tmp_path / name, ids[2:], noise) for name, noise in (("one", 0.01), ("two", 0.1))}
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_bytes(b"RIFF and nothing more")
    found = compare_models(models, clips, catalog, {"bad": tmp_path / "bad", "good": models["one"]})
    assert found.unpaired == ["alone"]
    assert {(one["a"], one["b"]) for one in found.differences} == {("one", "two")}
    assert set(found.failed) == {"bad"}
    assert set(found.others) == {"good"}
