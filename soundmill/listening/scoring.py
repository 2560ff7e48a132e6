"""The result of a listening test: means with intervals, differences, agreement, who failed the checks, and scores beside ears."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation.comparison import holm
from soundmill.evaluation.library import rounded
from soundmill.listening import design
from soundmill.listening.answers import BAD, FIRST, REAL, SAME, Answers, Key
from soundmill.listening.design import Trial

MARGIN = 0.25  # of the scale: real sounds are better than bad ones by as much, and a repeated answer differs by no more
PREFERS_REAL = 0.75  # of comparisons of a real sound with a bad one, at least
REPEATED_ALIKE = 0.5  # of repeated comparisons, at least
LEVEL = 0.05  # of p, corrected, under which a difference is called one
FEWEST_MODELS = 3  # whose order a rank correlation looks at


@dataclass(frozen=True)
class Estimate:
    """A mean over raters and requests, its standard error and that one's degrees of freedom."""

    mean: float
    error: float
    freedom: float
    requests: int

    def interval(self) -> tuple[float, float]:
        """95 %, of Student's t."""
        from scipy.stats import t

        half = float(t.ppf(0.975, self.freedom)) * self.error if self.error else 0.0
        return self.mean - half, self.mean + half

    def p(self) -> float:
        """Of a true mean of zero, either way; where nothing varies, that of a sign test over the requests."""
        from scipy.stats import t

        if not self.error:
            return 1.0 if self.mean == 0 else 2.0 ** (1 - self.requests)
        return float(2 * t.sf(abs(self.mean) / self.error, self.freedom))


def estimate(values: np.ndarray) -> Estimate:
    """Of values [raters, requests], both drawn at random and crossed: others would have been other ones.

    Components of variance from the mean squares of a two-way layout, none below zero; degrees of freedom by Satterthwaite (1946).
    With one rater, of that rater alone: over requests.
    """
    raters, requests = values.shape
    if requests < 2:
        raise UserError("a mean over one request has no interval; ask for more with --per-model")
    mean = float(values.mean())
    by_rater, by_request = values.mean(axis=1), values.mean(axis=0)
    of_requests = raters * float(((by_request - mean) ** 2).sum()) / (requests - 1)
    if raters == 1:
        return Estimate(mean, math.sqrt(of_requests / requests), requests - 1, requests)
    of_raters = requests * float(((by_rater - mean) ** 2).sum()) / (raters - 1)
    rest = values - by_rater[:, None] - by_request[None, :] + mean
    of_rest = float((rest**2).sum()) / ((raters - 1) * (requests - 1)), (raters - 1) * (requests - 1)
    # In mean squares, the variance of the mean is (raters + requests - rest) / (raters * requests), where both exceed the rest.
    squares = [one for one in ((of_raters, raters - 1), (of_requests, requests - 1)) if one[0] > of_rest[0]] or [of_rest]
    total = sum(square for square, _ in squares)
    if len(squares) == 2:
        total -= of_rest[0]
        squares.append(of_rest)
    freedom = total**2 / sum(square**2 / its for square, its in squares) if total else 1.0
    return Estimate(mean, math.sqrt(total / (raters * requests)), freedom, requests)


def score(key: Key, everyone: Sequence[Answers]) -> dict[str, Any]:
    """The result, of the raters that passed the checks; those that failed are named with the reason, and counted apart."""
    failed = {answers.rater: reasons for answers in everyone if (reasons := _failures(key, answers))}
    passed = [answers for answers in everyone if answers.rater not in failed]
    result: dict[str, Any] = {
        "test": key.test,
        "scale": "comparison" if key.compare else f"1 to {key.scale}",
        "requests": len(_scored_requests(key)),
        "raters": {"passed": [answers.rater for answers in passed], "failed": {str(rater): why for rater, why in failed.items()}},
        "questions": {},
        "failed_means": {},
        "warnings": [],
    }
    warn = result["warnings"].append
    for question in key.questions:
        if passed:
            result["questions"][question] = _of_question(key, passed, question)
        if failed:
            others = [answers for answers in everyone if answers.rater in failed]
            result["failed_means"][question] = {
                name: rounded(float(values.mean())) for name, values in _ratings(key, others, question).items()
            }
    if not passed:
        warn("No rater passed the checks, so nothing is scored.")
    elif len(passed) == 1:
        warn("One rater passed: intervals and tests are over requests alone, and tell nothing of other raters.")
    differences = [line for part in result["questions"].values() for line in part["differences"]]
    for line, p in zip(differences, holm([line["p"] for line in differences]), strict=True):
        line["p_corrected"] = rounded(p)
        line["better"] = "neither" if p >= LEVEL else line["a" if line["difference"] > 0 else "b"]
    for question, part in result["questions"].items():
        if alike := [f"{line['a']} and {line['b']}" for line in part["differences"] if line["low"] == line["high"]]:
            warn(f"{question}: all answers about {', '.join(alike)} differ alike: the interval is no wider than a point.")
        if part["agreement"] is None and len(passed) > 1:
            warn(f"{question}: all answers are the same, of which no agreement can be told.")
    if len(key.models) < FEWEST_MODELS:
        warn(f"{len(key.models)} models are too few to rank; the correlation over models needs {FEWEST_MODELS}.")
    if not any(model.scores or model.of for model in key.models.values()):
        warn("No scores of the models were known when the test was made, so none stands beside the ears.")
    return result


def _of_question(key: Key, passed: Sequence[Answers], question: str) -> dict[str, Any]:
    ratings = _ratings(key, passed, question)
    least, most = (0.0, 1.0) if key.compare else (1.0, float(key.scale))
    means = {name: _described(estimate(values), least, most) for name, values in ratings.items()}
    ears, of = _by_model(key, ratings)
    differences = []
    for a, b in _pairs(key):
        moved = ratings[f"{a} against {b}"] - 0.5 if key.compare else ratings[a] - ratings[b]
        found = estimate(moved)
        low, high = found.interval()
        line = {"a": a, "b": b, "difference": found.mean, "low": low, "high": high, "p": found.p()}
        differences.append({name: rounded(value) if isinstance(value, float) else value for name, value in line.items()})
    return {
        "means": means,
        "differences": differences,
        "agreement": _agreement(key, passed, question),
        "correlation": {"models": _over_models(key, ears), "sounds": _over_sounds(key, of)},
    }


def _described(found: Estimate, least: float, most: float) -> dict[str, float]:
    low, high = found.interval()
    return {"mean": rounded(found.mean), "low": rounded(max(least, low)), "high": rounded(min(most, high))}


def _systems(key: Key) -> list[str]:
    there = {sound.system for sound in key.sounds.values()} - {BAD}
    return [*key.models, *([REAL] if REAL in there else [])]


def _pairs(key: Key) -> list[tuple[str, str]]:
    """What is compared with what: in a comparison, what the raters compared."""
    if not key.compare:
        return list(itertools.combinations(_systems(key), 2))
    names = list(key.models) if len(key.models) > 1 else [*key.models, REAL]
    return list(itertools.combinations(names, 2))


def _scored_requests(key: Key) -> list[str]:
    return sorted({sound.request for sound in key.sounds.values() if sound.system in key.models})


def _ratings(key: Key, raters: Sequence[Answers], question: str) -> dict[str, np.ndarray]:
    """Answers [raters, requests] by system, those to repeats and anchors left out; of a comparison, by `A against B`, the share by
    which A is preferred: 1, 0 or one half."""
    requests = {name: number for number, name in enumerate(key.requests)}
    columns = [requests[name] for name in _scored_requests(key)]
    ratings: dict[str, np.ndarray] = {}
    for row, answers in enumerate(raters):
        trials = key.trials(answers.rater)
        again = design.repeats(trials)
        for place, trial in enumerate(trials):
            if place in again or any(one.system == BAD for one in trial):
                continue
            name, value = _value(key, trial, answers.given[place][question])
            table = ratings.setdefault(name, np.full((len(raters), len(requests)), np.nan))
            table[row, trial[0].request] = value
    named = [f"{a} against {b}" for a, b in _pairs(key)] if key.compare else _systems(key)
    return {name: ratings[name][:, columns] for name in named}


def _value(key: Key, trial: Trial, answer: int | str) -> tuple[str, float]:
    """What is rated, and how."""
    if not key.compare:
        return trial[0].system, float(answer)
    first, second = (one.system for one in trial)
    preferred = 0.5 if answer == SAME else float(answer == FIRST)
    for a, b in _pairs(key):
        if (a, b) == (second, first):
            return f"{a} against {b}", 1 - preferred
    return f"{first} against {second}", preferred


def _failures(key: Key, answers: Answers) -> list[str]:
    """Why a rater's answers are not to be relied on: anchors and repeats, question by question."""
    trials = key.trials(answers.rater)
    again = design.repeats(trials)
    margin = MARGIN * (key.scale - 1)
    found = []
    for question in key.questions:
        given = [entry[question] for entry in answers.given]
        anchors = [place for place, trial in enumerate(trials) if any(one.system == BAD for one in trial)]
        if key.compare:
            right = np.mean([trials[place][given[place] != FIRST].system == REAL and given[place] != SAME for place in anchors])
            if right < PREFERS_REAL:
                found.append(f"anchors: {question}: the real sound is preferred to a bad one in {right:.0%} of the trials")
            values = [_value(key, trial, answer) for trial, answer in zip(trials, given, strict=True)]
            alike = np.mean([values[place] == values[first] for place, first in again.items()])
            if alike < REPEATED_ALIKE:
                found.append(f"repeats: {question}: {alike:.0%} of the repeated trials are answered alike")
            continue
        real = np.mean([given[place] for place, trial in enumerate(trials) if trial[0].system == REAL and place not in again])
        bad = np.mean([given[place] for place in anchors])
        if real - bad < margin:
            found.append(f"anchors: {question}: real sounds have {real:.3g}, bad ones {bad:.3g}; {margin:.3g} less is expected")
        apart = np.mean([abs(given[place] - given[first]) for place, first in again.items()])
        if apart > margin:
            found.append(f"repeats: {question}: repeated answers are {apart:.3g} apart, more than {margin:.3g}")
    return found


def _agreement(key: Key, raters: Sequence[Answers], question: str) -> float | None:
    """Krippendorff's alpha over all that is scored; None with one rater, or where all answers are the same."""
    import krippendorff

    if len(raters) < 2:
        return None
    units = np.concatenate(list(_ratings(key, raters, question).values()), axis=1)
    if len(np.unique(units)) < 2:
        return None
    measure = "nominal" if key.compare else "ordinal" if key.scale == 5 else "interval"
    return rounded(float(krippendorff.alpha(reliability_data=units, level_of_measurement=measure)))


def _by_model(key: Key, ratings: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The mean of each model, and that of each of its sounds; in a comparison, the share by which it is preferred to the others."""
    by_model: dict[str, list[np.ndarray]] = {name: [] for name in key.models}
    for a, b in _pairs(key) if key.compare else ():
        values = ratings[f"{a} against {b}"]
        for name, share in ((a, values), (b, 1 - values)):
            if name in by_model:
                by_model[name].append(share)
    if not key.compare:
        by_model = {name: [ratings[name]] for name in key.models}
    of = {name: np.mean([part.mean(axis=0) for part in parts], axis=0) for name, parts in by_model.items()}
    return {name: float(values.mean()) for name, values in of.items()}, of


def _over_models(key: Key, ears: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of each score that all models have with their means."""
    common = set.intersection(*(set(model.scores) for model in key.models.values()))
    pairs = {score: [(model.scores[score], ears[name]) for name, model in key.models.items()] for score in sorted(common)}
    return _correlations(pairs)


def _over_sounds(key: Key, of: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """That of each score that single sounds have, over the sounds of all models."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for name, model in key.models.items():
        for request, heard in zip(_scored_requests(key), of[name], strict=True):
            for score_, value in model.of.get(request, {}).items():
                pairs.setdefault(score_, []).append((value, float(heard)))
    return _correlations(dict(sorted(pairs.items())))


def _correlations(pairs: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    from scipy.stats import spearmanr

    found = {}
    for name, both in pairs.items():
        first, second = zip(*both, strict=True)
        if len(both) >= FEWEST_MODELS and len(set(first)) > 1 and len(set(second)) > 1:
            found[name] = {"rho": rounded(float(spearmanr(first, second).statistic)), "count": len(both)}
    return found
