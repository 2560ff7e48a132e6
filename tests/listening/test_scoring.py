"""Scores of listening tests against answers whose result is known, and against simulated listeners, whose true opinion is known."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from soundmill.errors import UserError
from soundmill.listening import answers, scoring
from soundmill.listening.scoring import Estimate, correlations, estimate, holm, krippendorff_alpha
from tests.listening.test_answers import answered, make_key, write

T2 = 4.302653  # 97.5 % of Student's t with two degrees of freedom, from its table
LIKED = {"a": [5, 4, 4], "b": [2, 2, 3], "real": [5, 5, 5], "bad": [1, 1, 1]}
MODELS = ["a", "b", "c", "d", "e", "f", "g", "h"]


def rated(key, raters, tmp_path, rate):
    """`rate(rater, question, systems, request, again)`"""
    files = [write(tmp_path / f"{rater}.json", answered(key, rater, partial(rate, rater))) for rater in raters]
    return answers.read_all(files, key)


def p_of_t(t: float) -> float:
    """Two-sided, of two degrees of freedom, where the distribution has a closed form."""
    return 1 - abs(t) / math.sqrt(t * t + 2)


def test_means_intervals_and_differences_of_known_answers(tmp_path):
    """Three raters of one mind, so that all comes from the requests: t tests over three differences, by hand."""
    of = {"a": {"of": {"q0": {"kl_x": 0.1}, "q1": {"kl_x": 0.2}, "q2": {"kl_x": 0.2}}, "scores": {"fad_x": 1.0}}}
    of |= {"b": {"of": {"q0": {"kl_x": 0.4}, "q1": {"kl_x": 0.4}, "q2": {"kl_x": 0.3}}, "scores": {"fad_x": 2.0}}}
    key = make_key(["a", "b"], 3, **of)
    result = scoring.score(
        key, rated(key, (1, 2, 3), tmp_path, lambda rater, question, systems, request, again: LIKED[systems[0]][request])
    )
    assert result["raters"] == {"passed": [1, 2, 3], "failed": {}}
    part = result["questions"]["quality"]
    half = T2 / 3  # of the standard error 1/3
    assert part["means"]["a"] == {"mean": 4.33333, "low": pytest.approx(13 / 3 - half, abs=1e-5), "high": 5.0}
    assert part["means"]["b"] == {"mean": 2.33333, "low": 1.0, "high": pytest.approx(7 / 3 + half, abs=1e-5)}
    assert part["means"]["real"] == {"mean": 5.0, "low": 5.0, "high": 5.0}
    lines = {(line["a"], line["b"]): line for line in part["differences"]}
    # a − b is 3, 2, 1: mean 2, standard error 1/√3; a − real 0, −1, −1; b − real −3, −3, −2: standard errors 1/3
    expected = {("a", "b"): (2, 2 * math.sqrt(3)), ("a", "real"): (-2 / 3, -2), ("b", "real"): (-8 / 3, -8)}
    for pair, (difference, t) in expected.items():
        assert lines[pair]["difference"] == pytest.approx(difference, abs=1e-5)
        assert lines[pair]["p"] == pytest.approx(p_of_t(t), abs=1e-5)
    assert lines["a", "b"]["low"] == pytest.approx(2 - T2 / math.sqrt(3), abs=1e-5)
    corrected = {pair: line["p_corrected"] for pair, line in lines.items()}
    assert corrected["b", "real"] == pytest.approx(3 * p_of_t(8), abs=1e-5)  # 0.046
    assert corrected["a", "b"] == pytest.approx(2 * p_of_t(2 * math.sqrt(3)), abs=1e-5)
    assert corrected["a", "real"] == pytest.approx(p_of_t(2), abs=1e-5)
    assert {pair: line["better"] for pair, line in lines.items()} == dict.fromkeys(lines, "neither") | {("b", "real"): "real"}
    assert part["agreement"] == 1.0
    assert part["correlation"]["models"] == {}
    (sounds,) = part["correlation"]["sounds"].items()
    assert sounds[0] == "kl_x"
    assert sounds[1].items() >= {"rho": -1.0, "tau": -1.0, "count": 6, "verdict": "agrees"}.items()
    assert "2 models are too few for a rank correlation over models, which needs 3." in result["warnings"]


@pytest.mark.parametrize(("count", "said"), [(2, "too few for a rank"), (4, "have no interval"), (5, None)])
def test_correlations_over_models_need_three_and_their_intervals_five(tmp_path, count, said):
    key, liked = make_key(list("abcde")[:count], 3), {"real": 5, "bad": 1}
    result = scoring.score(key, rated(key, (1, 2), tmp_path, lambda rater, question, systems, *_: liked.get(systems[0], 3)))
    of_models = [one for one in result["warnings"] if "ank correlation" in one]
    assert [said in one for one in of_models] == ([True] if said else [])


def test_raters_and_requests_both_add_to_the_interval():
    """Mean squares by hand: of raters 1.5, of requests 2, of the rest 0."""
    found = estimate(np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]))
    assert found.mean == 2.5
    assert found.error == pytest.approx(math.sqrt(3.5 / 6))
    assert found.freedom == pytest.approx(3.5**2 / (1.5**2 / 1 + 2**2 / 2))
    only_raters = estimate(np.array([[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]]))
    assert (only_raters.error, only_raters.freedom) == (1.0, 1)
    assert only_raters.interval()[1] == pytest.approx(2 + 12.7062, abs=1e-4)  # Student's t with one degree of freedom
    assert estimate(np.full((2, 3), 4.0)).interval() == (4.0, 4.0)
    found = estimate(np.array([[1.0, 2.0, 3.0]]))
    assert found == Estimate(2.0, pytest.approx(1 / math.sqrt(3)), 2, 3)
    assert found.interval() == (pytest.approx(2 - T2 / math.sqrt(3), abs=1e-6), pytest.approx(2 + T2 / math.sqrt(3), abs=1e-6))
    with pytest.raises(UserError, match="one request"):
        estimate(np.array([[1.0], [2.0]]))
    for raters in (1, 4):  # answers all alike: 2 of the 8 ways that signs of three requests may fall are as one-sided
        assert estimate(np.full((raters, 3), 0.5)).p() == 0.25
        assert estimate(np.zeros((raters, 3))).p() == 1


@pytest.mark.parametrize(
    ("raters", "requests", "spread"), [(6, 12, (1.0, 0.5, 1.0)), (10, 20, (0.3, 1.0, 0.5)), (4, 8, (0, 0, 1.0))]
)
def test_intervals_hold_what_they_promise(raters, requests, spread):
    """Of 600 tests with other raters and requests drawn from the same crowd, 95 % or a few more hold the true mean."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        values = 3 + spread[0] * random.standard_normal((raters, 1)) + spread[1] * random.standard_normal((1, requests))
        low, high = estimate(values + spread[2] * random.standard_normal((raters, requests))).interval()
        hits += low <= 3 <= high
    assert 0.92 <= hits / 600 <= 0.995


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_raters_who_fail_are_named_with_the_reason_and_counted_apart(tmp_path):
    key = make_key(["a", "b"], 10, ("quality", "relevance"))
    liked = {"a": 4, "b": 3, "real": 5, "bad": 1}

    def rate(rater, question, systems, request, again):
        if rater == 3:  # the same of everything
            return 3
        if rater == 4 and question == "relevance" and again:  # not what it said before
            return 1 if liked[systems[0]] > 3 else 5
        return liked[systems[0]]

    result = scoring.score(key, rated(key, (1, 2, 3, 4), tmp_path, rate))
    assert result["raters"]["passed"] == [1, 2]
    assert result["raters"]["failed"]["3"] == [
        "anchors: quality: real sounds have 3, bad ones 3; required difference: 1",
        "anchors: relevance: real sounds have 3, bad ones 3; required difference: 1",
    ]
    (reason,) = result["raters"]["failed"]["4"]
    assert reason.startswith("repeats: relevance: repeated answers differ by ")
    assert result["questions"]["quality"]["means"]["a"]["mean"] == 4.0
    assert result["failed_means"]["quality"] == {"a": 3.5, "b": 3.0, "real": 4.0}

    nobody = scoring.score(key, rated(key, (3,), tmp_path, rate))
    assert nobody["questions"] == {}
    assert "No rater passed the checks, so nothing is scored." in nobody["warnings"]
    alone = scoring.score(key, rated(key, (1,), tmp_path, rate))
    assert alone["questions"]["quality"]["agreement"] is None
    assert any("One rater passed" in warning for warning in alone["warnings"])


def test_the_scale_of_a_hundred_has_margins_of_its_own(tmp_path):
    key = make_key(["a"], 5, scale=100)
    liked = {"a": 50, "real": 80, "bad": 55}
    result = scoring.score(key, rated(key, (1, 2), tmp_path, lambda rater, question, systems, *_: liked[systems[0]]))
    assert not result["raters"]["failed"]
    liked["bad"] = 56  # less than a quarter of 99 below
    result = scoring.score(key, rated(key, (1, 2), tmp_path, lambda rater, question, systems, *_: liked[systems[0]]))
    assert set(result["raters"]["failed"]) == {"1", "2"}


def test_comparisons(tmp_path):
    """Both raters prefer A to B, but the second finds no difference for request 0: shares by hand, whatever the side."""
    key = make_key(["a", "b"], 4, compare=True)

    def rate(rater, question, systems, request, again):
        if (rater, request) == (2, 0) and "a" in systems:
            return "same"
        return "first" if systems[0] in ("a", "real") else "second"

    result = scoring.score(key, rated(key, (1, 2), tmp_path, rate))
    assert result["raters"] == {"passed": [1, 2], "failed": {}}
    part = result["questions"]["quality"]
    expected = estimate(np.array([[1, 1, 1, 1], [0.5, 1, 1, 1]]))
    assert part["means"]["a against b"]["mean"] == 0.9375
    assert part["means"]["a against b"]["high"] == 1.0
    (line,) = part["differences"]
    assert line["difference"] == 0.4375
    assert line["p"] == pytest.approx(replace(expected, mean=0.4375).p(), abs=1e-6)
    assert line["better"] == "a"

    def careless(rater, question, systems, request, again):
        return "first"  # whatever it is

    failed = scoring.score(key, rated(key, (1,), tmp_path, careless))["raters"]["failed"]["1"]
    assert [reason.split(":")[0] for reason in failed] == ["anchors", "repeats"]


_ = math.nan
OBSERVERS = np.array(  # four observers of twelve units: Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_own_example(level, alpha):
    assert krippendorff_alpha(OBSERVERS, level) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_agreement_is_one_if_perfect_and_about_zero_by_chance(level):
    ratings = np.random.default_rng(0).integers(1, 6, (3, 4000)).astype(float)
    assert krippendorff_alpha(ratings, level) == pytest.approx(0.0, abs=0.02)
    assert krippendorff_alpha(np.tile(ratings[:1], (3, 1)), level) == 1.0
    assert krippendorff_alpha(ratings[::-1], level) == pytest.approx(krippendorff_alpha(ratings, level))  # raters have no order
    assert math.isnan(krippendorff_alpha(np.ones((2, 5)), level))


def test_any_name_is_shown_as_it_is(capsys):
    """Brackets are letters, whatever they mean to what prints."""
    names = ("[run]", "[/run]", "a [bold]")
    means = {name: {"mean": 3.0, "low": 2.0, "high": 4.0} for name in names}
    line = {"a": names[0], "b": names[1], "difference": 0.5, "low": 0.1, "high": 0.9, "p": 0.01, "p_corrected": 0.01}
    part = {"means": means, "differences": [{**line, "better": names[1]}], "agreement": None, "correlation": {}}
    result = {"test": "[/test]", "scale": "1 to 5", "requests": 2, "raters": {"passed": ["one"], "failed": {}}}
    scoring.show(result | {"questions": {"quality": part}, "failed_means": {}, "warnings": []})
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*names, "[/test]", "[run] − [/run]"))
    assert shown.count("[/run]") == 3


def by_model(values) -> dict:
    return dict(zip(MODELS, values, strict=False))


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

    result = scoring.score(key, rated(key, range(1, 6), tmp_path, rate))
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
    ratings = np.random.default_rng(0).standard_normal((5, 3, 6)).round()  # [models, raters, requests]
    table = np.random.default_rng(1).integers(4, size=(5, 6)).astype(float)
    of = by_model({f"q{number}": {"kl_x": value} for number, value in enumerate(row)} for row in table.tolist())
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
    ratings = np.random.default_rng(0).standard_normal((5, 3, 4))
    for rated_alike, scores in ((ratings, [1.0] * 5), (np.full((5, 3, 4), 2.0), map(float, range(5)))):
        of_models = by_model({"fad_x": score} for score in scores)
        found = correlations(by_model(rated_alike), ["q0", "q1", "q2", "q3"], of_models, by_model([{}] * 5))
        assert found == {"models": {}, "sounds": {}}
