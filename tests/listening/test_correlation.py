"""Which scores agree with simulated listeners, whose true opinion is known."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from soundmill.listening import answers, scoring
from soundmill.listening.correlation import correlations
from tests.listening.answering import answered, make_key, write

MODELS = ["a", "b", "c", "d", "e", "f", "g", "h"]


def crowd(random: np.random.Generator, models: int, raters: int, requests: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """True quality [models, requests], and ratings [models, raters, requests] of raters with habits and noise of their own."""
    quality = random.standard_normal((models, 1)) + 0.5 * random.standard_normal((models, requests))
    habits = 0.5 * random.standard_normal((raters, 1))
    return quality, quality[:, None] + habits + noise * random.standard_normal((models, raters, requests))


def by_model(values) -> dict:
    return dict(zip(MODELS, values, strict=False))


def of_sounds(table: np.ndarray, name: str) -> dict:
    return by_model({f"q{number}": {name: value} for number, value in enumerate(row)} for row in table.tolist())


def test_true_unrelated_and_reversed_scores(tmp_path, capsys):
    """Five raters of eight models on the scale of 100: a score that is the true quality, its opposite, and one of chance."""
    random = np.random.default_rng(3)
    quality = np.linspace(-1.5, 1.5, 8)[:, None] + 0.3 * random.standard_normal((8, 10))
    chance, chances = random.permutation(8), random.standard_normal((8, 10))
    facts = {}
    for number, name in enumerate(MODELS):
        true = float(quality[number].mean())
        facts[name] = {"scores": {"recall_x": true, "fad_x": -true, "coverage_x": -true, "kl_x": float(chance[number])}}
        facts[name]["of"] = {
            f"q{request}": {"clap_score": value, "kl_x": -value, "fad_per_clip_x": float(chances[number, request])}
            for request, value in enumerate(quality[number].tolist())
        }
    key = make_key(MODELS, 10, scale=100, **facts)
    noise = np.random.default_rng(4)

    def rate(rater, question, systems, request, again):
        (system,) = systems
        value = {"real": 95, "bad": 5}.get(system) or 50 + 15 * quality[MODELS.index(system), request]
        return int(np.clip(value + 4 * noise.standard_normal(), 1, 100))

    files = [write(tmp_path / f"{rater}.json", answered(key, rater, partial(rate, rater))) for rater in range(1, 6)]
    result = scoring.score(key, answers.read_all(files, key))
    assert not result["raters"]["failed"]
    found = result["questions"]["quality"]["correlation"]
    for name, sign, verdict in (("recall_x", 1, "agrees"), ("fad_x", -1, "agrees"), ("coverage_x", -1, "contradicts")):
        one = found["models"][name]
        assert sign * one["rho"] > 0.95
        assert sign * one["tau"] > 0.9
        assert min(sign * one["rho_low"], sign * one["rho_high"]) > 0.7
        assert (one["verdict"], one["count"]) == (verdict, 8)
    for name, sign in (("clap_score", 1), ("kl_x", -1)):
        one = found["sounds"][name]
        assert sign * one["rho"] > 0.95
        assert sign * one["tau"] > 0.8
        assert (one["verdict"], one["count"]) == ("agrees", 80)
    for one in (found["models"]["kl_x"], found["sounds"]["fad_per_clip_x"]):
        assert one["rho_low"] < 0 < one["rho_high"]
        assert one["tau_low"] < 0 < one["tau_high"]
        assert one["verdict"] == "open"
    scoring.show(result)
    shown = capsys.readouterr().out
    assert "quality: score, over models" in shown
    assert "contradicts" in shown


def test_the_values_are_scipys():
    """Spearman's and Kendall's coefficients of the mean ratings, with ties; a sound without a score does not count."""
    _, ratings = crowd(np.random.default_rng(0), 5, 3, 6, 1.0)
    ratings = ratings.round()
    table = np.random.default_rng(1).integers(4, size=(5, 6)).astype(float)
    of = of_sounds(table, "kl_x")
    del of["c"]["q2"]["kl_x"]
    scores = by_model({"fad_x": value} for value in (1.0, 2.0, 2.0, 3.0, 5.0))
    found = correlations(by_model(ratings), [f"q{number}" for number in range(6)], scores, of)
    kept = np.ones((5, 6), bool)
    kept[2, 2] = False
    pairs = {"models": ([1, 2, 2, 3, 5], ratings.mean(axis=(1, 2))), "sounds": (table[kept], ratings.mean(axis=1)[kept])}
    for over, name in (("models", "fad_x"), ("sounds", "kl_x")):
        one = found[over][name]
        assert one["count"] == len(pairs[over][0])
        assert one["rho"] == pytest.approx(spearmanr(*pairs[over]).statistic, abs=1e-5)
        assert one["tau"] == pytest.approx(kendalltau(*pairs[over]).statistic, abs=1e-5)
    again = correlations(by_model(ratings), [f"q{number}" for number in range(6)], scores, of)
    assert again == found


def test_a_score_without_order_has_no_correlation():
    _, ratings = crowd(np.random.default_rng(0), 5, 3, 4, 1.0)
    found = correlations(
        by_model(ratings), ["q0", "q1", "q2", "q3"], by_model({"fad_x": 1.0} for _ in range(5)), by_model([{}] * 5)
    )
    assert found == {"models": {}, "sounds": {}}
    assert (
        correlations(
            by_model(np.full((5, 3, 4), 2.0)),
            ["q0", "q1", "q2", "q3"],
            by_model({"fad_x": float(n)} for n in range(5)),
            by_model([{}] * 5),
        )
        == found
    )
