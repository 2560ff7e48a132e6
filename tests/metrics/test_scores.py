"""Every metric under one call: values, order, degenerate sets, pairs, warnings; intervals; divergences and the inception score."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.distances import frechet_of_rows
from soundmill.errors import UserError
from soundmill.metrics import bootstrap, divergence, frechet, pairwise, scores
from soundmill.metrics.bootstrap import Influence, SetInfluence
from soundmill.metrics.divergence import EPSILON, exact, kl_divergence, paired_kl, reverse, softmax
from soundmill.metrics.scores import METRICS, EmbeddingSet, compute


def side(seed: int, clips: int = 40, patches: int = 3, size: int = 4, shift: float = 0.0, classes: int = 5) -> EmbeddingSet:
    random = np.random.default_rng(seed)
    ids = [f"clip{number:03d}" for number in range(clips)]
    frames = {clip_id: (random.standard_normal((patches, size)) + shift).astype(np.float32) for clip_id in ids}
    return EmbeddingSet.of(frames, {clip_id: random.standard_normal(classes).astype(np.float32) for clip_id in ids})


def other_for(metric: str, reference: EmbeddingSet) -> EmbeddingSet:
    """Prompts, for the score of those."""
    return side(9, len(reference.ids), patches=1) if metric == "clap_score" else reference


def shuffled(sounds: EmbeddingSet, seed: int) -> EmbeddingSet:
    """The same set, listed and streamed in another order each time."""
    random = np.random.default_rng(seed)
    held = dict(sounds.frames())

    def frames() -> Iterator[tuple[str, np.ndarray]]:
        for index in random.permutation(len(held)):
            clip_id = sounds.ids[index]
            yield clip_id, held[clip_id]

    return EmbeddingSet(tuple(random.permutation(sounds.ids).tolist()), frames, dict(reversed(sounds.logits.items())))


def flat(result: dict) -> dict[str, float]:
    return {key: value for key, value in result.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_clips_changes_nothing(metric, monkeypatch):
    monkeypatch.setattr(frechet, "CHUNK", 50)
    generated, reference = side(0, shift=0.3), other_for(metric, side(1))
    result = compute(metric, generated, reference, seed=3, replicates=60)
    again = compute(metric, shuffled(generated, 5), shuffled(reference, 6), seed=3, replicates=60)
    assert flat(result).keys() == flat(again).keys()
    for key, value in flat(result).items():
        assert again[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
    assert result["low"] <= result["value"] <= result["high"]
    assert METRICS[metric].least <= result["low"]
    assert result["high"] <= METRICS[metric].most
    assert {"low", "high"}.isdisjoint(compute(metric, generated, reference, seed=3, replicates=0))


def test_values_are_those_of_their_definitions():
    generated, reference = side(0, shift=0.5), side(1)
    rows = [np.concatenate(part.clips(), dtype=np.float64) for part in (generated, reference)]

    def value(metric: str) -> float:
        return compute(metric, generated, reference, seed=0, replicates=0)["value"]

    assert value("fad") == value("fd") == pytest.approx(frechet_of_rows(*rows), rel=1e-12)
    bandwidth = compute("mmd", generated, reference, seed=0, replicates=0)["bandwidth"]
    assert value("mmd") == pytest.approx(pairwise.discrepancy(*rows, pairwise.gaussian(bandwidth)), rel=1e-9)
    assert value("kid") == pairwise.in_subsets(*rows, 0)[0]
    expected = [kl_divergence(softmax(reference.logits[one]), softmax(generated.logits[one]), EPSILON) for one in generated.ids]
    assert value("kl") == pytest.approx(np.mean(expected), rel=1e-12)
    per_clip = compute("fad_per_clip", generated, reference, seed=0, replicates=0)
    first = dict(generated.frames())[generated.ids[0]]
    assert per_clip["of"][generated.ids[0]] == pytest.approx(frechet_of_rows(first, rows[1]), rel=1e-9)
    assert per_clip["value"] == pytest.approx(np.mean(list(per_clip["of"].values())))
    result = compute("kad", generated, reference, seed=0, replicates=40)
    kernel = pairwise.gaussian(pairwise.median_distance(rows[0], 0), 1e-8)
    assert result["value"] == pytest.approx(100 * pairwise.discrepancy(*rows, kernel), rel=1e-9)
    assert result["low"] < result["value"] < result["high"]
    silent = EmbeddingSet.of({name: np.ones((1, rows[0].shape[1])) for name in "abc"})  # has no bandwidth
    assert compute("kad", silent, reference, seed=0, replicates=0)["value"] == pytest.approx(100)


def test_ratings_are_means_of_clips():
    ratings = {name: np.array([[1, 2, 3, value]], np.float32) for name, value in (("a", 4), ("b", 8), ("c", 6))}
    result = compute("production_quality", EmbeddingSet.of(ratings), side(1), seed=0, replicates=200)
    assert (result["value"], result["of"]) == (6, {"a": 4, "b": 8, "c": 6})
    assert 4 <= result["low"] < 6 < result["high"] <= 8
    assert compute("content_usefulness", EmbeddingSet.of(ratings), side(1), seed=0, replicates=0)["value"] == 2
    with pytest.raises(UserError, match="long enough to be rated"):
        compute("production_quality", EmbeddingSet.of({}), side(1), seed=0, replicates=0)


@pytest.mark.parametrize("metric", ["kl", "clap_score"])
def test_three_missing_of_886_fail_with_their_names(metric):
    reference = side(0, 886, 1)
    generated = reference.only(set(reference.ids) - {"clip017", "clip301", "clip885"})
    with pytest.raises(UserError, match="no generated sound for reference clips clip017, clip301, clip885; pairs are never"):
        compute(metric, generated, reference, seed=0, replicates=0)
    with pytest.raises(UserError, match="no reference clip for generated clips clip017, clip301, clip885"):
        compute(metric, reference, generated, seed=0, replicates=0)


def test_clap_score_pairs_by_id_and_means_windows():
    random = np.random.default_rng(0)
    texts = {name: random.standard_normal((1, 6)) for name in "abc"}
    sounds = {"c": np.repeat(texts["c"], 3, axis=0), "a": 5 * texts["a"], "b": -texts["b"]}
    result = compute("clap_score", EmbeddingSet.of(sounds), EmbeddingSet.of(texts), seed=0, replicates=0)
    assert result["of"] == {"a": pytest.approx(1), "b": pytest.approx(-1), "c": pytest.approx(1)}
    assert result["value"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="clip b: the embedding of its"):
        compute("clap_score", EmbeddingSet.of(sounds | {"b": np.zeros((0, 6))}), EmbeddingSet.of(texts), seed=0, replicates=0)


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_not_finite_is_named(metric):
    generated, reference = side(0), other_for(metric, side(1))
    frames, logits = dict(generated.frames()), dict(generated.logits)
    frames["clip007"] = np.where(np.eye(3, 4), np.nan, frames["clip007"])
    logits["clip007"] = np.full(5, np.inf)
    with pytest.raises(UserError, match=r"clip007.* not finite|not finite.*clip007"):
        compute(metric, EmbeddingSet.of(frames, logits), reference, seed=0, replicates=0)


def test_a_stream_that_is_not_the_set_is_refused_and_a_classifier_asked_for():
    sounds = side(0, 3)
    items = list(sounds.frames())
    for frames, named in (
        (items[:2], "no embeddings of clip clip002"),
        ([*items, items[0]], "clip clip000 is streamed twice"),
        ([*items, ("other", items[0][1])], "clip other is"),
    ):
        with pytest.raises(UserError, match=named):
            compute("fad", EmbeddingSet(sounds.ids, lambda frames=frames: frames), sounds, seed=0, replicates=0)
    with pytest.raises(UserError, match="clip000 listed twice"):
        EmbeddingSet(("clip000", "clip001", "clip000"), lambda: items)
    deaf = EmbeddingSet.of(dict(side(0).frames()))
    for metric in ("kl", "is"):
        with pytest.raises(UserError, match="needs a classifier"):
            compute(metric, deaf, side(1), seed=0, replicates=0)


def test_one_patch_and_rank_deficient_sets():
    """A clip of one patch poisons nothing; a set of fewer rows than dimensions is measured."""
    generated, reference = side(0, 6, 1, 30), side(1, 8, 1, 30)
    result = compute("fad", generated, reference, seed=0, replicates=30)
    rows = [np.concatenate(part.clips()) for part in (generated, reference)]
    assert result["value"] == pytest.approx(frechet_of_rows(*rows), rel=1e-9)
    assert np.isfinite(result["low"])
    mixed = dict(side(0, 10).frames()) | {"clip003": np.ones((1, 4), np.float32), "clip005": np.zeros((0, 4), np.float32)}
    result = compute("fad_per_clip", EmbeddingSet.of(mixed), side(1), seed=0, replicates=10)
    assert result["left_out"] == 2
    assert {"clip003", "clip005"}.isdisjoint(result["of"])
    assert "2 of 10 generated clips have fewer than two patches" in result["warnings"][0]
    assert np.isfinite(compute("fad", EmbeddingSet.of(mixed), side(1), seed=0, replicates=10)["high"])
    with pytest.raises(UserError, match="no generated clip has two or"):
        compute("fad_per_clip", generated, reference, seed=0, replicates=0)
    with pytest.raises(UserError, match="at least 2 embeddings, found 1"):
        compute("fad", side(0, 1, 1), reference, seed=0, replicates=0)


def test_constant_embeddings():
    flat_set, reference = EmbeddingSet.of({f"clip{number:03d}": np.ones((2, 4)) for number in range(40)}), side(1)
    result = compute("fad", flat_set, reference, seed=0, replicates=20)
    moments = frechet.Moments.of(np.concatenate(reference.clips()))
    assert result["value"] == pytest.approx(((moments.mean - 1) ** 2).sum() + np.trace(moments.covariance), rel=1e-9)
    assert result["low"] < result["value"] < result["high"]
    assert compute("recall", flat_set, reference, seed=0, replicates=5)["value"] == 0
    with pytest.raises(UserError, match="embeddings are equal"):
        compute("mmd", reference, flat_set, seed=0, replicates=0)


def test_few_embeddings_are_warned_of_with_the_bias_measured():
    random = np.random.default_rng(0)
    sets = [EmbeddingSet.of({f"c{n}": rows for n, rows in enumerate(random.standard_normal((500, 1, 128)))}) for _ in range(2)]
    result = compute("fad", *sets, seed=0, replicates=0)
    assert result["bias"] == pytest.approx(16.9, rel=0.15)  # by the reference's eigenvalues, which are spread by chance
    assert result["value"] == pytest.approx(result["bias"], rel=0.15)
    (message,) = result["warnings"]
    assert "500 generated and 500 reference embeddings of 128 dimensions (fewer than 10 × 128)" in message
    assert f"{result['bias']:.3g} apart" in message
    enough = compute("fad", side(0, 20), side(1, 20), seed=0, replicates=0)
    assert "bias" not in enough
    assert enough["warnings"] == []
    assert "at least" in compute("fad", side(0, 6, 1, 30), side(1, 8, 1, 30), seed=0, replicates=0)["warnings"][0]


def test_fad_inf_takes_away_the_bias_of_the_generated_set():
    reference = side(1, 900, 10, 16)
    result = [
        {metric: compute(metric, side(seed, 100, 2, 16, 0.2), reference, seed=seed, replicates=50) for metric in ("fad", "fad_inf")}
        for seed in range(10, 16)
    ]
    true = 16 * 0.2**2
    biased, without = (np.mean([one[metric]["value"] for one in result]) for metric in ("fad", "fad_inf"))
    assert biased - true > 0.3
    assert abs(without - true) < 0.2
    for one in result:
        assert 0 < one["fad_inf"]["r2"] <= 1
        assert one["fad_inf"]["high"] - one["fad_inf"]["low"] > one["fad"]["high"] - one["fad"]["low"]
    message = compute("fad_inf", side(0, 30, 1, 16), side(1, 30, 1, 16), seed=0, replicates=0)["warnings"]
    assert "are not linear in 1/n" in message[0]
    assert "keeps the bias of its 30 reference" in message[1]
    with pytest.raises(UserError, match="needs at least 4 clips, found 3"):
        compute("fad_inf", side(0, 3), reference, seed=0, replicates=0)


@pytest.mark.parametrize("metric", ["fad", "is", "mmd", "density", "kl"])
def test_interval_is_as_wide_as_independent_sets_lie_apart(metric):
    values, widths = [], []
    for seed in range(60):
        sides = side(2 * seed, 30, 2, 5, 0.6), side(2 * seed + 1, 30, 2, 5)
        result = compute(metric, *sides, seed=0, replicates=200 if seed < 8 else 0)
        values.append(result["value"])
        if "low" in result:
            widths.append(result["high"] - result["low"])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values), rel=0.35)


def test_pairs_of_a_large_set_are_those_of_a_seeded_part_without_clips_that_are_longer(monkeypatch):
    monkeypatch.setattr(scores, "MAX_ROWS", 60)
    generated, reference = side(0), side(1)
    result = compute("precision", generated, reference, seed=0, replicates=5)
    assert [line[:51] for line in result["warnings"]] == [
        "precision uses 20 of 40 generated clips, chosen by ",
        "precision uses 20 of 40 reference clips, chosen by ",
    ]
    assert compute("precision", shuffled(generated, 1), shuffled(reference, 2), seed=0, replicates=5) == result
    assert compute("fad", generated, reference, seed=0, replicates=5)["warnings"] == []
    monkeypatch.setattr(scores, "MAX_ROWS", 30)
    random = np.random.default_rng(0)
    some = EmbeddingSet.of({f"{index}": random.standard_normal((40 if index < 4 else 5, 2)) for index in range(10)})
    result = scores.compute("mmd", some, some, seed=0, replicates=0)
    assert "mmd uses 6 of 10 generated clips" in result["warnings"][0]
    with pytest.raises(UserError, match="every generated clip has more than"):
        scores.compute("mmd", some.only("0123"), some, seed=0, replicates=0)


@pytest.mark.parametrize("metric", ["kid", "mmd", "precision", "recall", "density", "coverage"])
def test_a_set_without_an_embedding_is_an_error_that_says_so(metric):
    some = EmbeddingSet.of({str(index): np.random.default_rng(index).standard_normal((3, 2)) for index in range(8)})
    for sides in ((EmbeddingSet.of({}), some), (some, EmbeddingSet.of({}))):
        with pytest.raises(UserError, match="no embeddings to compare"):
            scores.compute(metric, *sides, seed=0, replicates=0)


def test_inception_score_looks_at_generated_sounds_alone():
    generated = side(0)
    alone, beside = (compute("is", generated, other, seed=0, replicates=9) for other in (EmbeddingSet.of({}), side(1)))
    assert alone == beside


def test_of_a_mean_it_is_the_bootstrap():
    values = np.random.default_rng(0).standard_normal(40) + 3
    moved = Influence(SetInfluence.of(values)).shifts(0, 30)
    for replicate, result in enumerate(moved):
        drawn = np.random.default_rng([0, replicate]).integers(40, size=40)
        assert result == pytest.approx(values[drawn].mean() - values.mean(), abs=1e-12)
    ends = bootstrap.interval(values.mean(), Influence(SetInfluence.of(values)).shifts(0, 2000), -np.inf, np.inf)
    assert ends["high"] - ends["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.1)


def test_clips_of_more_rows_count_more():
    """A mean over rows, resampled by clip."""
    random = np.random.default_rng(1)
    clips = [random.standard_normal(size) for size in (1, 5, 0, 3, 9, 2)]
    influence = Influence(SetInfluence.of(np.array([clip.sum() for clip in clips]), np.array([len(clip) for clip in clips])))
    for replicate, result in enumerate(influence.shifts(0, 30)):
        drawn = np.random.default_rng([0, replicate]).integers(6, size=6)
        rows = np.concatenate([clips[index] for index in drawn])
        assert result == pytest.approx(rows.mean() - np.concatenate(clips).mean(), abs=1e-12)


def test_a_replicate_depends_on_its_number_and_the_seed_alone():
    influence = Influence(SetInfluence.of(np.arange(9.0)), SetInfluence.of(np.arange(5.0)))
    whole = influence.shifts(0, 60)
    np.testing.assert_array_equal(influence.shifts(0, 20), whole[:20])
    assert not np.allclose(influence.shifts(1, 20), whole[:20])


def test_what_two_sets_share_cancels_out_in_their_difference():
    random = np.random.default_rng(2)
    hard = random.standard_normal(50) * 10
    one, two = (Influence(SetInfluence.of(hard + random.standard_normal(50) * 0.1), SetInfluence.of(hard[:20])) for _ in range(2))
    assert one.shifts(0, 200).std() > 1
    assert (one - two).shifts(0, 200).std() < 0.1
    np.testing.assert_allclose((one - one).shifts(0, 9), 0, atol=1e-12)


def test_interval_stays_within_what_the_metric_can_be_and_knows_another_error():
    moved = np.array([-0.2, -0.1, 0, 0.1, 0.2])
    ends = bootstrap.interval(0.95, moved, 0, 1)
    assert ends["high"] == 1
    assert 0.75 <= ends["low"] < 0.8
    wider = bootstrap.interval(0.95, moved, 0, 1, error=0.2)
    assert wider["low"] == pytest.approx(0.95 - np.hypot(0.95 - ends["low"], 1.96 * 0.2))


P = np.array([0.05, 0.1, 0.2, 0.05, 0.15, 0.25, 0.08, 0.12])
Q = np.array([0.3, 0.1, 0.2, 0.1, 0.1, 0.02, 0.08, 0.1])


def test_known_answers():
    assert kl_divergence(P, Q, 0) == pytest.approx(0.589885181619163, abs=1e-14)
    assert kl_divergence(P, Q, EPSILON) == pytest.approx(0.5898663152950138, abs=1e-14)
    assert kl_divergence(Q, P, 0) == pytest.approx(0.497549319448034, abs=1e-14)
    assert paired_kl({"a": np.log(P)}, {"a": np.log(Q)})["a"] == pytest.approx(0.5898663152950138, abs=1e-12)


def test_other_tools_kls_have_known_answers():
    logits = {"a": np.log(P) + 700}, {"a": np.log(Q) - 700}
    assert paired_kl(*logits, exact)["a"] == pytest.approx(0.589885181619163, abs=1e-12)
    assert paired_kl(*logits, reverse)["a"] == pytest.approx(float(kl_divergence(Q, P, EPSILON)), abs=1e-12)
    assert exact(np.array([0.0, -50.0]), np.array([-50.0, 0.0])) == pytest.approx(50)  # ε would make it 13.8


@given(arrays(np.float32, 5, elements=st.floats(-1e4, 1e4, width=32)))
def test_softmax_is_a_distribution_for_any_size_of_logit(logits):
    result = softmax(logits)
    assert result.dtype == np.float64
    assert result.sum() == pytest.approx(1)
    np.testing.assert_allclose(result, softmax(logits.astype(np.float64) + 1000), atol=1e-9)


def test_no_pairs_and_other_class_counts_are_refused():
    with pytest.raises(UserError, match="no pairs"):
        paired_kl({}, {})
    for distance in (divergence.smoothed, exact):
        with pytest.raises(UserError, match="2 and 3 classes"):
            distance(np.zeros(2), np.zeros(3))


ROWS = np.array([[0.75, 0.25], [0.25, 0.75]])


def by_id(logits: np.ndarray) -> dict[str, np.ndarray]:
    return {f"clip{number:03d}": row for number, row in enumerate(logits)}


def test_known_inception_scores():
    assert divergence.inception_score(by_id(np.log(ROWS)), 0) == (pytest.approx(1.1397535284773888, abs=1e-14), 0, 1)
    assert divergence.inception_score(by_id(np.log(ROWS[[0, 0, 0]])), 0)[0] == pytest.approx(1, abs=1e-14)
    assert divergence.inception_score(by_id(1e3 * np.eye(5)), 0)[0] == pytest.approx(5)  # sure of all, and all different


def test_under_a_hundred_sounds_there_is_one_part():
    logits = np.random.default_rng(0).standard_normal((99, 4))
    value, std, splits = divergence.inception_score(by_id(logits), 0)
    assert (std, splits) == (0, 1)
    assert value == pytest.approx(divergence.inception_score(by_id(logits[::-1]), 1)[0])  # then the shuffle changes nothing
    twice = by_id(np.concatenate([logits, logits]))
    value, std, splits = divergence.inception_score(twice, 0)
    assert (splits, std > 0) == (10, True)
    assert divergence.inception_score(twice, 0)[0] == value != divergence.inception_score(twice, 1)[0]


def test_what_a_sound_adds_is_the_slope_of_the_score():
    logits = np.random.default_rng(0).standard_normal((400, 5))
    added = divergence.inception_influence(by_id(logits)).generated
    assert added.sums.sum() == pytest.approx(0, abs=1e-9)
    whole = divergence.inception_score(by_id(logits[:40]), 0)[0]
    without = divergence.inception_score(by_id(logits[1:40]), 0)[0]
    assert divergence.inception_influence(by_id(logits[:40])).generated.sums[0] / 39 == pytest.approx(whole - without, rel=0.1)
