"""A result's scores as rows: titles and descriptions of the metrics, formatted values, and a verdict on the Fréchet distance."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soundmill import params
from soundmill.evaluation import waveforms
from soundmill.evaluation.protocols import key_of
from soundmill.metrics import scores

_TEXTS = params.read_yaml(Path(__file__).with_suffix(".yaml"))
BASELINES = tuple(_TEXTS["baselines"])
METRICS = tuple(_TEXTS["metrics"])
TITLES = {name: text["title"] for name, text in _TEXTS["metrics"].items()} | {name: name.replace("_", " ") for name in BASELINES}
SHORT_TITLES = {name: text.get("short", name.upper()) for name, text in _TEXTS["metrics"].items()}
BETTER = {
    **{name: metric.better for name, metric in scores.METRICS.items()},
    "label_accuracy": "higher",
    **dict.fromkeys(waveforms.METRICS, "lower"),
}
MEANINGS = {name: f"{text['meaning']}; {BETTER[name]} is better" for name, text in _TEXTS["metrics"].items()}
MEANINGS |= {name: text["meaning"] for name, text in _TEXTS["baselines"].items()}
BASELINE_COLOURS = {name: text["colour"] for name, text in _TEXTS["baselines"].items()}
SHARES = ("label_accuracy", "precision", "recall", "coverage")  # from 0 to 1


@dataclass(frozen=True)
class ScoreRow:
    """One score with its interval and its baselines; `note` says why it has no value or ranks no models."""

    key: str
    metric: str
    embedder: str  # or "waves": measured on the waves themselves
    value: float | None
    low: float | None
    high: float | None
    baselines: Mapping[str, float]
    note: str = ""
    unranked: bool = False
    role: str = "generated"  # or "codec": the sounds that were measured


def rows_of(metrics: Mapping[str, Any]) -> list[ScoreRow]:
    """The scores of a result in a fixed order: by embedder, then metric; those measured on waves; those of other protocols."""
    rows = []
    for embedder in sorted(name for name, facts in metrics["embedders"].items() if isinstance(facts, Mapping)):
        for metric in (*scores.METRICS, "label_accuracy"):
            key = key_of(metric, embedder)
            if key in metrics:
                rows.append(_row(metrics, key, metric, embedder, "generated"))
    for prefix, role in (("", "generated"), ("codec_", "codec")):
        measured = [metric for metric in waveforms.METRICS if f"{prefix}{metric}" in metrics]
        rows += [_row(metrics, f"{prefix}{metric}", metric, "waves", role) for metric in measured]
    for name, block in metrics.get("protocols", {}).items():
        of_embedders = [row for row in rows_of(block) if row.embedder != "waves"]
        rows += [replace(row, key=f"{row.key}@{name}", embedder=f"{row.embedder} ({block['protocol']})") for row in of_embedders]
    return rows


def _row(metrics: Mapping[str, Any], key: str, metric: str, embedder: str, role: str) -> ScoreRow:
    unranked = metrics.get("unranked", {}).get(key)
    note = unranked or (metrics.get("left_out", {}).get(key, "") if metrics[key] is None else "")
    ends = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    return ScoreRow(key, metric, embedder, metrics[key], *ends, metrics["baselines"].get(key, {}), note, unranked is not None, role)


def number(metric: str, value: float) -> str:
    return f"{value:.1%}" if metric in SHARES else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def shown(row: ScoreRow) -> str:
    """The value, with † if it ranks no models; – if there is none."""
    return "–" if row.value is None else f"{number(row.metric, row.value)}{'†' if row.unranked else ''}"


def interval(row: ScoreRow) -> str:
    return "–" if row.low is None or row.high is None else f"{number(row.metric, row.low)} … {number(row.metric, row.high)}"


def baselines_of(rows: list[ScoreRow]) -> list[str]:
    return [name for name in BASELINES if any(name in row.baselines for row in rows)]


def verdict(row: ScoreRow, counts: Mapping[str, int]) -> str | None:
    """A sentence on whether codec or model contributes more to a Fréchet distance; None if the baselines do not show it."""
    baselines = row.baselines
    if row.metric != "fad" or row.value is None or row.unranked or "codec" not in baselines or "floor" not in baselines:
        return None
    lost = max(baselines["codec"] - baselines.get("codec_floor", baselines["floor"]), 0.0)
    gap = row.value - baselines["floor"]
    if gap <= 0:
        return f"{row.embedder}: the generated sounds are as close to the reference as other real clips."
    if row.value >= min(baselines["silence"], baselines["noise"]):
        return f"{row.embedder}: the generated sounds are no closer to real ones than silence or noise."
    if 0 < 2 * counts["codec"] < counts["generated"]:
        return (
            f"{row.embedder}: the generated sounds are {gap:.3g} further from the reference than other real clips; "
            f"{counts['codec']} clips through the codec are too few to tell how much of this the codec loses."
        )
    share = min(lost / gap, 1.0)
    larger = "the codec" if share > 0.5 else "the model"
    return (
        f"{row.embedder}: of the distance of {gap:.3g} between the floor and the generated sounds, {share:.0%} is due to the codec "
        f"(real clips lose {lost:.3g} in it) and {1 - share:.0%} to the model: {larger} loses more."
    )
