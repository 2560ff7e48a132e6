"""Scoring a listening test: means and differences with intervals, agreement, failed raters, correlation with scores; printed."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from rich.markup import escape
from scipy import stats

from soundmill import terminal
from soundmill.errors import UserError
from soundmill.evaluation.comparison import LEVEL, holm
from soundmill.evaluation.evaluator import open_console, show_warnings
from soundmill.evaluation.library import rounded
from soundmill.evaluation.score_rows import BETTER, METRICS
from soundmill.listening.answers import BAD, FIRST, REAL, SAME, Answers, Key, Trial, repeats
from soundmill.metrics.bootstrap import INTERVAL

MARGIN = 0.25  # of the scale: minimum for real sounds above bad anchors, maximum for differences of repeated answers
MIN_REAL_PREFERRED = 0.75  # share of comparisons of a real sound with a bad anchor
MIN_REPEATED_EQUAL = 0.5  # share of repeated comparisons with the same answer
MIN_RANKED = 3  # values of a rank correlation
MIN_RESAMPLED = 5  # models of an interval over models: of fewer, resamples have too few different ones
REPLICATES = 1000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A mean over raters and requests, its standard error, and the degrees of freedom of that error."""

    mean: float
    error: float
    freedom: float
    requests: int

    def interval(self) -> tuple[float, float]:
        """95 % interval (Student's t)."""
        half = float(stats.t.ppf(0.975, self.freedom)) * self.error if self.error else 0.0
        return self.mean - half, self.mean + half

    def p(self) -> float:
        """Two-sided p of a true mean of zero; without any variance, that of a sign test over the requests."""
        if not self.error:
            return 1.0 if self.mean == 0 else 2.0 ** (1 - self.requests)
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.freedom))


def estimate(values: np.ndarray) -> Estimate:
    """Estimate from values [raters, requests], where raters and requests are crossed random effects.

    Variance components come from the mean squares of the two-way layout, none below zero; degrees of freedom from Satterthwaite
    (1946). With one rater it is over requests only. UserError for a single request.
    """
    raters, requests = values.shape
    if requests < 2:
        raise UserError("a mean over one request has no interval; use more requests (--per-model)")
    mean = float(values.mean())
    by_rater, by_request = values.mean(axis=1), values.mean(axis=0)
    square_requests = raters * float(((by_request - mean) ** 2).sum()) / (requests - 1)
    if raters == 1:
        return Estimate(mean, math.sqrt(square_requests / requests), requests - 1, requests)
    square_raters = requests * float(((by_rater - mean) ** 2).sum()) / (raters - 1)
    rest = values - by_rater[:, None] - by_request[None, :] + mean
    rest_freedom = (raters - 1) * (requests - 1)
    square_rest = float((rest**2).sum()) / rest_freedom
    # Var(mean) = (MS_raters + MS_requests - MS_rest) / (raters * requests), if both mean squares exceed MS_rest.
    squares = [(square_raters, raters - 1), (square_requests, requests - 1)]
    squares = [(square, degrees) for square, degrees in squares if square > square_rest] or [(square_rest, rest_freedom)]
    total = sum(square for square, _ in squares)
    if len(squares) == 2:
        total -= square_rest
        squares.append((square_rest, rest_freedom))
    freedom = total**2 / sum(square**2 / degrees for square, degrees in squares) if total else 1.0
    return Estimate(mean, math.sqrt(total / (raters * requests)), freedom, requests)


def score(key: Key, all_answers: Sequence[Answers]) -> dict[str, Any]:
    """The result of the raters who passed the checks; failed raters have reasons and separate means."""
    failed = {answers.rater: reasons for answers in all_answers if (reasons := _failures(key, answers))}
    passed = [answers for answers in all_answers if answers.rater not in failed]
    result: dict[str, Any] = {
        "test": key.test,
        "scale": "comparison" if key.compare else f"1 to {key.scale}",
        "requests": len(_scored_requests(key)),
        "raters": {
            "passed": [answers.rater for answers in passed],
            "failed": {str(rater): reasons for rater, reasons in failed.items()},
        },
        "questions": {},
        "failed_means": {},
        "warnings": [],
    }
    warn = result["warnings"].append
    for question in key.questions:
        if passed:
            result["questions"][question] = _score_question(key, passed, question)
        if failed:
            rejected = [answers for answers in all_answers if answers.rater in failed]
            result["failed_means"][question] = {
                name: rounded(float(values.mean())) for name, values in _ratings(key, rejected, question).items()
            }
    if not passed:
        warn("No rater passed the checks, so nothing is scored.")
    elif len(passed) == 1:
        warn("One rater passed: intervals and tests are over requests only and do not generalise to other raters.")
    differences = [line for part in result["questions"].values() for line in part["differences"]]
    for line, p in zip(differences, holm([line["p"] for line in differences]), strict=True):
        line["p_corrected"] = rounded(p)
        line["better"] = "neither" if p >= LEVEL else line["a" if line["difference"] > 0 else "b"]
    for question, part in result["questions"].items():
        if constant := [f"{line['a']} and {line['b']}" for line in part["differences"] if line["low"] == line["high"]]:
            warn(f"{question}: the difference of {', '.join(constant)} is the same in all answers, so its interval has no width.")
        if part["agreement"] is None and len(passed) > 1:
            warn(f"{question}: all answers are equal, so agreement is undefined.")
    if len(key.models) < MIN_RANKED:
        warn(f"{len(key.models)} models are too few for a rank correlation over models, which needs {MIN_RANKED}.")
    elif len(key.models) < MIN_RESAMPLED:
        warn(f"Rank correlations over {len(key.models)} models have no interval, which needs {MIN_RESAMPLED} models.")
    if not any(model.scores or model.of for model in key.models.values()):
        warn("The models had no scores when the test was made, so there is nothing to correlate with.")
    return result


def _score_question(key: Key, passed: Sequence[Answers], question: str) -> dict[str, Any]:
    ratings = _ratings(key, passed, question)
    least, most = (0.0, 1.0) if key.compare else (1.0, float(key.scale))
    means, differences = {}, []
    for name, values in ratings.items():
        mean = estimate(values)
        low, high = mean.interval()
        means[name] = {"mean": rounded(mean.mean), "low": rounded(max(least, low)), "high": rounded(min(most, high))}
    for a, b in _pairs(key):
        difference = estimate(ratings[f"{a} against {b}"] - 0.5 if key.compare else ratings[a] - ratings[b])
        low, high = difference.interval()
        line = {"a": a, "b": b, "difference": difference.mean, "low": low, "high": high, "p": difference.p()}
        differences.append({name: rounded(value) if isinstance(value, float) else value for name, value in line.items()})
    return {
        "means": means,
        "differences": differences,
        "agreement": _agreement(key, ratings),
        "correlation": correlations(
            _by_model(key, ratings),
            _scored_requests(key),
            {name: model.scores for name, model in key.models.items()},
            {name: model.of for name, model in key.models.items()},
        ),
    }


def _systems(key: Key) -> list[str]:
    systems = {sound.system for sound in key.sounds.values()}
    return [*key.models, *([REAL] if REAL in systems else [])]


def _pairs(key: Key) -> list[tuple[str, str]]:
    """Pairs of systems with a difference: all, or in a comparison those that the raters compared."""
    names = key.models if key.compare and len(key.models) > 1 else _systems(key)
    return list(itertools.combinations(names, 2))


def _scored_requests(key: Key) -> list[str]:
    return sorted({sound.request for sound in key.sounds.values() if sound.system in key.models})


def _ratings(key: Key, raters: Sequence[Answers], question: str) -> dict[str, np.ndarray]:
    """Answers [raters, requests] by system, without repeats and anchors; in a comparison by `A against B`: 1 if A is
    preferred, 0 if B is, 0.5 for no difference."""
    requests = key.request_numbers
    columns = [requests[name] for name in _scored_requests(key)]
    ratings: dict[str, np.ndarray] = {}
    for row, answers in enumerate(raters):
        trials = key.trials(answers.rater)
        repeated = repeats(trials)
        for place, trial in enumerate(trials):
            if place in repeated or any(one.system == BAD for one in trial):
                continue
            name, value = _value(key, trial, answers.given[place][question])
            table = ratings.setdefault(name, np.full((len(raters), len(requests)), np.nan))
            table[row, trial[0].request] = value
    names = [f"{a} against {b}" for a, b in _pairs(key)] if key.compare else _systems(key)
    return {name: ratings[name][:, columns] for name in names}


def _value(key: Key, trial: Trial, answer: int | str) -> tuple[str, float]:
    """The system or pair that a trial rates, and the answer as a number."""
    if not key.compare:
        return trial[0].system, float(answer)
    first, second = (one.system for one in trial)
    preferred = 0.5 if answer == SAME else float(answer == FIRST)
    if (second, first) in _pairs(key):
        return f"{second} against {first}", 1 - preferred
    return f"{first} against {second}", preferred


def _failures(key: Key, answers: Answers) -> list[str]:
    trials = key.trials(answers.rater)
    repeated = repeats(trials)
    margin = MARGIN * (key.scale - 1)
    failures = []
    for question in key.questions:
        given = [entry[question] for entry in answers.given]
        anchors = [place for place, trial in enumerate(trials) if any(one.system == BAD for one in trial)]
        if key.compare:
            preferred = [trials[place][given[place] != FIRST].system == REAL and given[place] != SAME for place in anchors]
            right = np.mean(preferred or [True])  # votes of the page to play have no anchors and no repeats
            if right < MIN_REAL_PREFERRED:
                failures.append(f"anchors: {question}: prefers the real sound to a bad one in only {right:.0%} of the trials")
            values = [_value(key, trial, answer) for trial, answer in zip(trials, given, strict=True)]
            equal = np.mean([values[place] == values[first] for place, first in repeated.items()] or [True])
            if equal < MIN_REPEATED_EQUAL:
                failures.append(f"repeats: {question}: gives the same answer to only {equal:.0%} of the repeated trials")
            continue
        real = np.mean([given[place] for place, trial in enumerate(trials) if trial[0].system == REAL and place not in repeated])
        bad = np.mean([given[place] for place in anchors])
        if real - bad < margin:
            failures.append(
                f"anchors: {question}: real sounds have {real:.3g}, bad ones {bad:.3g}; required difference: {margin:.3g}"
            )
        change = np.mean([abs(given[place] - given[first]) for place, first in repeated.items()])
        if change > margin:
            failures.append(f"repeats: {question}: repeated answers differ by {change:.3g} on average, more than {margin:.3g}")
    return failures


def _agreement(key: Key, ratings: Mapping[str, np.ndarray]) -> float | None:
    """Krippendorff's alpha over all scored answers; None with one rater or if all answers are equal."""
    units = np.concatenate(list(ratings.values()), axis=1)
    if len(units) < 2 or len(np.unique(units)) < 2:
        return None
    level = "nominal" if key.compare else "ordinal" if key.scale == 5 else "interval"
    return rounded(krippendorff_alpha(units, level))


def _by_model(key: Key, ratings: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Answers [raters, requests] by model; in a comparison, the share of answers that prefer it."""
    if not key.compare:
        return {name: ratings[name] for name in key.models}
    shares: dict[str, list[np.ndarray]] = {name: [] for name in key.models}
    for a, b in _pairs(key):
        values = ratings[f"{a} against {b}"]
        for name, share in ((a, values), (b, 1 - values)):
            if name in shares:
                shares[name].append(share)
    return {name: np.mean(parts, axis=0) for name, parts in shares.items()}


def krippendorff_alpha(ratings: np.ndarray, level: Literal["nominal", "ordinal", "interval"]) -> float:
    """Krippendorff's alpha of `ratings`, (raters, units) with NaN for missing ones; units with fewer than two do not count.

    1 is perfect agreement, 0 that of chance. Undefined, NaN, if all ratings are equal. Krippendorff, Computing Krippendorff's
    Alpha-Reliability, 2011, section E.
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=0).astype(float)  # (units, values)
    counts = counts[counts.sum(axis=1) >= 2]
    pairable = counts.sum(axis=1)
    coincidences = (counts / (pairable - 1)[:, None]).T @ counts
    coincidences -= np.diag((counts / (pairable - 1)[:, None]).sum(axis=0))  # a rating is not paired with itself
    totals = counts.sum(axis=0)
    expected = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    if level == "ordinal":  # the number of ratings between two values, with half of those at the ends
        values = np.cumsum(totals) - totals / 2
    distances = 1.0 - np.eye(len(values)) if level == "nominal" else np.subtract.outer(values, values) ** 2
    with np.errstate(invalid="ignore"):
        return float(1 - (coincidences * distances).sum() / (expected * distances).sum())


def correlations(
    ratings: Mapping[str, np.ndarray],
    requests: Sequence[str],
    scores: Mapping[str, Mapping[str, float]],
    of: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Spearman's and Kendall's rank correlations of each score with the ratings, over `models` and over `sounds`.

    `ratings` [raters, requests] are by model; `scores` are those of a model's whole set, `of` those of single sounds by request.
    Intervals (95 %) are percentiles over resamples of raters and requests and, over models, of models: so they generalise to other
    raters, requests and models. Over sounds the models are these. Raters and requests are drawn for all models at once.

    The verdict: the score `agrees` with the listeners, `contradicts` them, or is `open`: the interval of rho holds 0 or is missing.
    """
    values = np.stack(list(ratings.values()))
    raters, asked, drawn = _draws(*values.shape)
    means = np.einsum("br,mrq->bmq", raters, values) / values.shape[1]  # by resample, model and request
    rows = np.arange(REPLICATES)[:, None]
    found: dict[str, dict[str, dict[str, Any]]] = {"models": {}, "sounds": {}}

    of_models = np.take_along_axis(means, asked[:, None, :], axis=2).mean(axis=2)
    for name in sorted(set.intersection(*(set(scores[model]) for model in ratings))):
        score = np.array([scores[model][name] for model in ratings])
        resampled = (score[drawn], of_models[rows, drawn]) if len(score) >= MIN_RESAMPLED else None
        if one := _correlation(name, score, values.mean(axis=(1, 2)), resampled):
            found["models"][name] = one

    of_sounds = np.take_along_axis(means, asked[:, None, :], axis=2).reshape(REPLICATES, -1)
    for name in sorted({name for model in ratings for by_name in of[model].values() for name in by_name}):
        score = np.array([[of[model].get(request, {}).get(name, np.nan) for request in requests] for model in ratings])
        resampled = (score[:, asked].swapaxes(0, 1).reshape(REPLICATES, -1), of_sounds)
        if one := _correlation(name, score.ravel(), values.mean(axis=1).ravel(), resampled):
            found["sounds"][name] = one
    return found


def _draws(models: int, raters: int, requests: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bootstrap resamples: how often each rater counts [B, raters], and the drawn requests [B, requests] and models [B, models].

    A single rater is not resampled, nor are fewer than MIN_RESAMPLED models; a resample has MIN_RANKED models or more.
    """
    random = np.random.default_rng(SEED)
    heard = random.integers(raters, size=(REPLICATES, raters))
    asked = random.integers(requests, size=(REPLICATES, requests))
    drawn = np.tile(np.arange(models), (REPLICATES, 1))
    for row in drawn if models >= MIN_RESAMPLED else ():
        row[:] = random.integers(models, size=models)
        while len(np.unique(row)) < MIN_RANKED:
            row[:] = random.integers(models, size=models)
    return np.stack([np.bincount(row, minlength=raters) for row in heard]), asked, drawn


def _correlation(
    name: str, score: np.ndarray, rating: np.ndarray, resampled: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any] | None:
    """Both correlations of scores [n], NaN where unknown, with ratings [n], with intervals if there are resamples [B, n] of them;
    None if they are undefined."""
    count = int((~np.isnan(score)).sum())
    if count < MIN_RANKED or np.isnan(_spearman(score[None], rating[None])[0]):
        return None
    result: dict[str, Any] = {"count": count}
    tau_b = partial(stats.kendalltau, axis=1, nan_policy="omit")
    for key, statistic in (("rho", _spearman), ("tau", lambda *pair: tau_b(*pair).statistic)):
        result[key] = rounded(float(statistic(score[None], rating[None])[0]))
        if resampled:
            ends = np.nanpercentile(statistic(*resampled), INTERVAL)  # a resample of equal values has no order
            result |= {f"{key}_low": rounded(float(ends[0])), f"{key}_high": rounded(float(ends[1]))}
    metric = max((one for one in METRICS if f"{name}_".startswith(f"{one}_")), key=len, default=None)
    if metric is None or "rho_low" not in result or result["rho_low"] <= 0 <= result["rho_high"]:
        return result | {"verdict": "open"}
    return result | {"verdict": "agrees" if (result["rho_low"] > 0) == (BETTER[metric] == "higher") else "contradicts"}


def _spearman(score: np.ndarray, rating: np.ndarray) -> np.ndarray:
    """Of each row of values [B, n], without those whose score is NaN; NaN if either has no order."""
    rating = np.where(np.isnan(score), np.nan, rating)
    ranks = [stats.rankdata(values, axis=1, nan_policy="omit") for values in (score, rating)]
    first, second = (one - np.nanmean(one, axis=1, keepdims=True) for one in ranks)
    with np.errstate(invalid="ignore"):
        return np.nansum(first * second, axis=1) / np.sqrt(np.nansum(first**2, axis=1) * np.nansum(second**2, axis=1))


def show(result: Mapping[str, Any]) -> None:
    console = open_console()
    passed, failed = result["raters"]["passed"], result["raters"]["failed"]
    console.print(
        f"[bold]listening test {escape(str(result['test']))}[/bold]  {result['requests']} requests, {result['scale']}; "
        f"{len(passed)} raters passed the checks, {len(failed)} failed"
    )
    for question, part in result["questions"].items():
        means = terminal.table(question, "mean", "95 %", *(["failed raters"] if failed else []))
        for name, one in part["means"].items():
            others = [f"{result['failed_means'][question][name]:.3g}"] if failed else []
            means.add_row(escape(name), f"{one['mean']:.3g}", f"{one['low']:.3g} … {one['high']:.3g}", *others)
        console.print(means)
        differences = terminal.table(f"{question}: difference", "", "95 %", "p", "p corrected", "better")
        for line in part["differences"]:
            cells = [f"{line['difference']:+.3g}", f"{line['low']:.3g} … {line['high']:.3g}"]
            cells += [f"{line['p']:.3g}", f"{line['p_corrected']:.3g}", escape(line["better"])]
            differences.add_row(escape(f"{line['a']} − {line['b']}"), *cells)
        console.print(differences)
        if part["agreement"] is not None:
            console.print(f"agreement of raters (Krippendorff's alpha): {part['agreement']:.3g}")
        for over, found in part["correlation"].items():
            title = f"{question}: score, over {over}"
            correlations = terminal.table(title, "count", "Spearman", "95 %", "Kendall", "95 %", "verdict")
            for score, one in found.items():
                cells = []
                for key in ("rho", "tau"):
                    low, high = one.get(f"{key}_low"), one.get(f"{key}_high")
                    cells += [f"{one[key]:+.3g}", "–" if low is None else f"{low:+.3g} … {high:+.3g}"]
                correlations.add_row(escape(score), str(one["count"]), *cells, one["verdict"])
            if found:
                console.print(correlations)
    show_warnings(console, (f"rater {rater} failed: {reason}" for rater, reasons in failed.items() for reason in reasons))
    show_warnings(console, result["warnings"])


def scores_of(key: Key, result: Mapping[str, Any], model: str) -> dict[str, float]:
    """A model's ratings by the names of metrics: `mos_quality`, `mos_quality_low` …; of a comparison `preference_quality`, the mean
    share of answers that prefer it to another model."""
    scores = {}
    for question, part in result["questions"].items():
        if not key.compare:
            mean = part["means"][model]
            scores |= {f"mos_{question}": mean["mean"], f"mos_{question}_low": mean["low"], f"mos_{question}_high": mean["high"]}
            continue
        shares = [
            0.5 + line["difference"] * (1 if line["a"] == model else -1)
            for line in part["differences"]
            if model in (line["a"], line["b"])
        ]
        scores[f"preference_{question}"] = sum(shares) / len(shares)
    return scores
