"""The results of a bake-off: rows, which differences are real, a table in several forms, and what they say in words."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flows.sweep_table import Estimate, markdown_table, over_seeds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Title, whether more is better, and whether it is a share, by metric; in the order of the columns.
SCORES = {
    "fad": ("FAD", False, False),
    "mmd": ("MMD", False, False),
    "kl": ("KL", False, False),
    "label_accuracy": ("class asked for", True, True),
    "recall": ("recall", True, True),
    "coverage": ("coverage", True, True),
    "memorised": ("near-copies", False, True),
}
LEADING = ("fad", "mmd")  # rows are ranked by the first that they have: of fewer than 50 real clips a FAD is bias
LINES = ("codec", "floor", "real")  # baselines beside a score, where it has them
IMPROVING = 0.01  # of the held-out loss: what twice the steps must promise to lower it by to be called a help
LEAST_POINTS = 5  # of the held-out loss, to tell its slope


@dataclass(frozen=True)
class Part:
    """One training of a family: the stage, its steps, and the minutes that they were measured to take.

    `slope` is what twice the steps promise to change its held-out loss by, as a share of the last one; None: it cannot be told.
    """

    stage: str
    steps: int
    minutes: float
    slope: Estimate | None = None


@dataclass(frozen=True)
class Score:
    total: Estimate  # with the interval by clip, or of several seeds over these
    lines: Mapping[str, float] = field(default_factory=dict)  # of LINES
    unranked: str | None = None  # why it ranks no models


@dataclass(frozen=True)
class Row:
    """A family, or somebody's folder of sounds; `why_not`: what kept it from a score."""

    name: str
    kind: str = ""
    why_not: str | None = None
    parameters: int | None = None
    parts: Sequence[Part] = ()
    peak_memory_bytes: float | None = None
    seconds_per_second: float | None = None  # to make a second of sound
    scores: Mapping[str, Score] = field(default_factory=dict)

    @property
    def minutes(self) -> float | None:
        return sum(part.minutes for part in self.parts) if self.parts else None


@dataclass(frozen=True)
class Difference:
    """Of a metric between two rows, a − b, with its interval and the corrected p; `better` is a name, `neither` or `unranked`."""

    metric: str
    a: str
    b: str
    value: float
    low: float
    high: float
    p: float
    better: str


def scores_of(seeds: Sequence[Mapping[str, Any]], embedder: str) -> dict[str, Score]:
    """The scores under an embedder, from the metrics that each seed's `evaluate` wrote."""
    found = {}
    first = seeds[0]
    for metric in SCORES:
        key = f"{metric}_{embedder}"
        if metric == "memorised" and key not in first:  # one embedder looks for copies, the first
            key = next((other for name in first.get("embedders", ()) if (other := f"memorised_{name}") in first), key)
        if any(not isinstance(metrics.get(key), int | float) for metrics in seeds):
            continue
        values = [float(metrics[key]) for metrics in seeds]
        one = Estimate(values[0], first.get(f"{key}_low"), first.get(f"{key}_high"))
        lines = {**first.get("baselines", {}).get(key, {})}
        if metric == "memorised":
            one = of_share(values[0], first.get("counts", {}).get("generated"))
            lines |= {"real": first[f"{key}_real"]} if f"{key}_real" in first else {}
        unranked = next((reasons[key] for metrics in seeds if key in (reasons := metrics.get("unranked", {}))), None)
        found[metric] = Score(
            one if len(seeds) == 1 else over_seeds(values), {name: lines[name] for name in LINES if name in lines}, unranked
        )
    return found


def of_share(share: float, count: int | None) -> Estimate:
    """A share of so many clips with Wilson's 95 % interval (1927), which is one of no and of all clips too."""
    if not count:
        return Estimate(share)
    square = 1.96**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = 1.96 * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def apart(row: Row, why: str) -> Row:
    """The row with all its scores out of the ranking."""
    return replace(row, scores={metric: replace(score, unranked=why) for metric, score in row.scores.items()})


def slope(points: Sequence[tuple[int, float]]) -> Estimate | None:
    """What twice as many steps promise to change the held-out loss by, as a share of the last one; `points` are (step, loss).

    A line through the last half of them over the logarithm of the step, with Student's 95 % interval. None where there are fewer
    than LEAST_POINTS, or the loss is not positive.
    """
    late = points[len(points) // 2 :]
    if len(points) < LEAST_POINTS or points[-1][1] <= 0 or len(late) < 3:
        return None
    from scipy.stats import t

    xs, ys = [math.log2(step) for step, _ in late], [loss for _, loss in late]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    tilt = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
    rest = sum((y - y_mean - tilt * (x - x_mean)) ** 2 for x, y in zip(xs, ys, strict=True))
    half = float(t.ppf(0.975, len(xs) - 2)) * math.sqrt(rest / (len(xs) - 2) / spread)
    return Estimate(tilt / ys[-1], (tilt - half) / ys[-1], (tilt + half) / ys[-1])


def falling(row: Row) -> list[Part]:
    """The trainings whose held-out loss still falls, by more than IMPROVING and beyond chance."""
    return [part for part in row.parts if part.slope and part.slope.high < 0 and part.slope.value < -IMPROVING]


def flat(row: Row) -> bool:
    """Whether no training's held-out loss falls by more than IMPROVING, beyond chance."""
    return all(part.slope and part.slope.low > -IMPROVING for part in row.parts)


def ranks(row: Row, metric: str) -> bool:
    return metric in row.scores and not row.scores[metric].unranked


def leading(rows: Sequence[Row]) -> str:
    """The score that rows are ranked by."""
    return next((metric for metric in LEADING if any(ranks(row, metric) for row in rows)), LEADING[0])


def distance(row: Row, metric: str) -> float:
    """Without that score, or where it ranks no models: infinite."""
    return row.scores[metric].total.value if ranks(row, metric) else math.inf


def front(rows: Sequence[Row]) -> list[Row]:
    """Those that no other beats in both the leading score and speed, the fastest first."""
    metric = leading(rows)
    known = [row for row in rows if ranks(row, metric) and row.seconds_per_second is not None]
    best, kept = math.inf, []
    for row in sorted(known, key=lambda row: (row.seconds_per_second, distance(row, metric))):
        if distance(row, metric) < best:
            best = distance(row, metric)
            kept.append(row)
    return kept


def verdict(rows: Sequence[Row], differences: Sequence[Difference]) -> str:
    """Which to take for quality and for speed, and whether more minutes would likely help, in words."""
    metric = leading(rows)
    title = SCORES[metric][0]
    scored = [row for row in rows if ranks(row, metric) and row.parts]
    if not scored:
        return "No family has a score that ranks." if any(row.scores for row in rows) else "No family has a score."
    best = min(scored, key=lambda row: distance(row, metric))
    its = {
        (one.b if one.a == best.name else one.a): one for one in differences if one.metric == metric and best.name in (one.a, one.b)
    }
    others = [row.name for row in scored if row is not best]
    unsure = [name for name in others if name not in its or its[name].better != best.name]
    if not others:
        sure = "nothing to compare with"
    elif not unsure:
        sure = "better than every other, beyond chance"
    else:
        sure = f"not surely better than {listed(unsure)}"
    words = [f"For quality take {best.name}: {title} {distance(best, metric):.3g}, {sure}."]
    if fast := front(scored):
        quick = fast[0]
        if quick is best:
            words.append("It is the fastest too.")
        else:
            words.append(
                f"For speed take {quick.name}: {quick.seconds_per_second:.2g} s for a second of sound, "
                f"{title} {distance(quick, metric):.3g}."
            )
    if parts := falling(best):
        promised = listed([f"{-part.slope.value:.0%} lower in {part.stage}" for part in parts])
        words.append(f"More minutes would likely help {best.name}: twice as many promise a held-out loss {promised}.")
    elif flat(best):
        words.append(f"More minutes would hardly help {best.name}: its held-out loss does not fall any more.")
    else:
        words.append(f"Whether more minutes would help {best.name} cannot be told from its held-out loss.")
    helped = [row.name for row in scored if row is not best and falling(row)]
    if helped:
        words.append(f"They would likely help {listed(helped)} too.")
    return " ".join(words)


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def shown(metric: str, score: Score | None) -> str:
    """`10.2 (8.55 … 11.9), codec 6.07, floor 3.6`."""
    if score is None:
        return "–"
    percent = SCORES[metric][2]

    def number(value: float) -> str:
        return f"{100 * value:.0f} %" if percent else f"{value:.3g}"

    total = score.total
    text = number(total.value)
    if total.low is not None and total.high is not None:
        text += f" ({number(total.low)} … {number(total.high)})"
    text += "†" if score.unranked else ""
    return ", ".join([text, *(f"{name} {number(value)}" for name, value in score.lines.items())])


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """As a person reads it: text, a line for each row, those with a score first, the best on top."""
    import pandas as pd

    metrics = [metric for metric in SCORES if any(metric in row.scores for row in rows)]
    lines = []
    for row in sorted(rows, key=lambda row: distance(row, leading(rows))):
        parts = ", ".join(f"{part.stage} {part.steps:,} in {part.minutes:.3g}" for part in row.parts)
        line = {
            "family": row.name,
            "parameters": "–" if row.parameters is None else f"{row.parameters:,}",
            "minutes": "–" if row.minutes is None else f"{row.minutes:.3g}",
        }
        line |= {SCORES[metric][0]: shown(metric, row.scores.get(metric)) for metric in metrics}
        line["s per s of sound"] = "–" if row.seconds_per_second is None else f"{row.seconds_per_second:.2g}"
        line["steps"] = parts or "–"
        line["peak memory"] = "–" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.2f} GiB"
        line["kind"] = row.kind
        if any(other.why_not for other in rows):
            line["why not"] = row.why_not or ""
        lines.append(line)
    return pd.DataFrame(lines)


def unranked(rows: Sequence[Row]) -> list[str]:
    """A note for each reason why scores rank no models."""
    of: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for metric, score in row.scores.items():
            if score.unranked:
                of.setdefault(score.unranked, {}).setdefault(row.name, []).append(SCORES[metric][0])
    return [
        "† ranks no models: " + "; ".join(f"{', '.join(titles)} of {name}" for name, titles in names.items()) + f": {reason}."
        for reason, names in of.items()
    ]


def differences_table(differences: Sequence[Difference]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "score": SCORES[one.metric][0],
            "of": one.a,
            "less that of": one.b,
            "difference": f"{one.value:+.3g} ({one.low:+.3g} … {one.high:+.3g})",
            "p": f"{one.p:.2g}",
            "better": one.better,
        }
        for one in differences
    )


def markdown(title: str, rows: Sequence[Row], differences: Sequence[Difference], notes: Sequence[str]) -> str:
    parts = [f"# {title}", verdict(rows, differences), markdown_table(table(rows)), markdown_table(differences_table(differences))]
    return "\n\n".join([*filter(None, parts), "\n".join(f"- {note}" for note in notes)]) + "\n"


def latex(rows: Sequence[Row]) -> str:
    """With the package booktabs; without the reasons of those that have no score."""
    text = table(rows).drop(columns=["why not", "steps"], errors="ignore")
    style = text.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    return (
        style.to_latex(hrules=True, column_format="l" + "r" * (len(text.columns) - 2) + "l")
        .replace("…", r"\dots{}")
        .replace("–", "--")
        .replace("†", r"$^\dagger$")
    )


def csv_text(rows: Sequence[Row]) -> str:
    """Every number, a line for each row."""
    text = io.StringIO()
    ends = [(metric, end) for metric in SCORES for end in ("", "_low", "_high", *(f"_{name}" for name in LINES))]
    columns = ["family", "kind", "parameters", "minutes", "steps", "peak_memory_bytes", "seconds_per_second"]
    writer = csv.DictWriter(text, [*columns, *(metric + end for metric, end in ends), "unranked", "why_not"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        line: dict[str, Any] = {name: getattr(row, name) for name in columns if name not in ("family", "steps")}
        line |= {"family": row.name, "steps": sum(part.steps for part in row.parts) or None, "why_not": row.why_not}
        line["unranked"] = " ".join(metric for metric, score in row.scores.items() if score.unranked) or None
        for metric, score in row.scores.items():
            line |= {metric: score.total.value, f"{metric}_low": score.total.low, f"{metric}_high": score.total.high}
            line |= {f"{metric}_{name}": value for name, value in score.lines.items()}
        writer.writerow(line)
    return text.getvalue()


def draw(title: str, rows: Sequence[Row]) -> Figure:
    """The leading score against the seconds that a second of sound takes, with the front of those that nothing beats in both."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    from soundmill.drawing import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    metric = leading(rows)
    known = [row for row in rows if ranks(row, metric) and row.seconds_per_second is not None]
    best = front(rows)
    axes.step([row.seconds_per_second for row in best], [distance(row, metric) for row in best], where="post", color="#adb5bd")
    for row in known:
        total = row.scores[metric].total
        colour = "#1c6dd0" if row in best else "#868e96"
        if total.low is not None and total.high is not None:
            axes.plot([row.seconds_per_second] * 2, [total.low, total.high], color=colour, linewidth=1.5)
        axes.plot(row.seconds_per_second, total.value, "o", color=colour)
        axes.annotate(row.name, (row.seconds_per_second, total.value), xytext=(7, 4), textcoords="offset points", fontsize=9)
    if known:
        axes.set_xscale("log")
        floor = next((row.scores[metric].lines["floor"] for row in known if "floor" in row.scores[metric].lines), None)
        values = [floor, *(value for row in known for value in asdict(row.scores[metric].total).values())]
        if all(value > 0 for value in values if value is not None):  # an MMD may be below zero
            axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter(plain)
                axis.set_minor_locator(LogLocator(subs=(2, 3, 5)))  # all between would lie upon each other
                axis.set_minor_formatter(plain)
        if floor is not None:
            axes.axhline(floor, color="#2b8a3e", linewidth=1, linestyle="--")
            axes.annotate(
                "real sounds", (0.01, floor), xycoords=("axes fraction", "data"), fontsize=9, color="#2b8a3e", va="bottom"
            )
    axes.margins(0.2)
    axes.set_xlabel("seconds to make a second of sound (less is faster)")
    axes.set_ylabel(f"{SCORES[metric][0]} (lower is better)")
    axes.set_title(textwrap.fill(title, 60), loc="left", fontsize=11, fontweight="bold")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
