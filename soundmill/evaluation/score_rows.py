"""A result's scores as rows: titles and meanings of the metrics, values in words, and where a Fréchet distance comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soundmill.evaluation import scores, waveforms

BASELINES = ("real", "floor", "codec_floor", "codec", "silence", "noise", "chance")
METRICS = (*scores.METRICS, "label_accuracy", *waveforms.METRICS)
TITLES = {
    "fad": "Fréchet distance",
    "fad_inf": "Fréchet distance, n → ∞",
    "fad_per_clip": "Fréchet distance by clip",
    "fd": "Fréchet distance of clips",
    "kl": "KL divergence",
    "is": "Inception score",
    "kid": "Kernel distance (KID)",
    "mmd": "Kernel distance (MMD)",
    "clap_score": "CLAP score",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "label_accuracy": "Label accuracy",
    "lsd": "Log-spectral distance",
    "mrstft": "Multi-resolution STFT distance",
    "real": "real",
    "floor": "floor",
    "codec": "codec",
    "codec_floor": "codec floor",
    "silence": "silence",
    "noise": "noise",
    "chance": "chance",
}
BETTER = {
    **{name: metric.better for name, metric in scores.METRICS.items()},
    "label_accuracy": "higher",
    **dict.fromkeys(waveforms.METRICS, "lower"),
}
MEANINGS = {
    **{name: f"{metric.description}; {metric.better} is better" for name, metric in scores.METRICS.items()},
    "label_accuracy": "share of generated sounds that a linear probe, fitted on real clips, puts into the class wanted",
    **{name: f"{description}; lower is better" for name, description in waveforms.METRICS.items()},
    "real": "the probe's cross-validated accuracy on real clips: what can be reached",
    "floor": "real clips in place of generated ones: what can be reached",
    "codec_floor": "the codec's clips before they went through it",
    "codec": "real clips through the family's representation and back: no model of this family can beat it by much",
    "silence": "digital silence in place of every generated sound",
    "noise": "white noise in place of every generated sound",
    "chance": "always answering the label wanted most often",
}
SHARES = ("label_accuracy", "precision", "recall", "coverage")  # from 0 to 1


@dataclass(frozen=True)
class Row:
    """One score with its interval and its baselines; without a value, or unranked, the note says why."""

    key: str
    metric: str
    judge: str  # an embedder, or the waves themselves
    value: float | None
    low: float | None
    high: float | None
    baselines: Mapping[str, float]
    note: str = ""
    unranked: bool = False
    role: str = "generated"  # the sounds that the value is of


def rows_of(metrics: Mapping[str, Any]) -> list[Row]:
    """The scores in a result, in a fixed order: by embedder, then metric; last those of the waves themselves."""
    rows = []
    for embedder in sorted(name for name, facts in metrics["embedders"].items() if isinstance(facts, Mapping)):
        for metric in (*scores.METRICS, "label_accuracy"):
            key = metric if (metric, embedder) == ("clap_score", "clap") else f"{metric}_{embedder}"
            if key in metrics:
                rows.append(_row(metrics, key, metric, embedder, "generated"))
    for prefix, role in (("", "generated"), ("codec_", "codec")):
        rows += [
            _row(metrics, f"{prefix}{metric}", metric, "waves", role)
            for metric in waveforms.METRICS
            if f"{prefix}{metric}" in metrics
        ]
    return rows


def _row(metrics: Mapping[str, Any], key: str, metric: str, judge: str, role: str) -> Row:
    unranked = metrics.get("unranked", {}).get(key)
    note = unranked or (metrics.get("left_out", {}).get(key, "") if metrics[key] is None else "")
    ends = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    return Row(key, metric, judge, metrics[key], *ends, metrics["baselines"].get(key, {}), note, unranked is not None, role)


def number(row: Row, value: float) -> str:
    return f"{value:.1%}" if row.metric in SHARES else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def shown(row: Row) -> str:
    """The value, † where it ranks no models, – where there is none."""
    return "–" if row.value is None else f"{number(row, row.value)}{'†' if row.unranked else ''}"


def interval(row: Row) -> str:
    return "–" if row.low is None or row.high is None else f"{number(row, row.low)} … {number(row, row.high)}"


def baselines_of(rows: list[Row]) -> list[str]:
    """Names of the baselines that any of the rows has, in their fixed order."""
    return [name for name in BASELINES if any(name in row.baselines for row in rows)]


def verdict(row: Row, counts: Mapping[str, int]) -> str | None:
    """Whether the representation or the model loses more of a Fréchet distance; None where the baselines do not show it."""
    baselines = row.baselines
    if row.metric != "fad" or row.value is None or row.unranked or "codec" not in baselines or "floor" not in baselines:
        return None
    lost = max(baselines["codec"] - baselines.get("codec_floor", baselines["floor"]), 0.0)
    gap = row.value - baselines["floor"]
    if gap <= 0:
        return f"{row.judge}: the generated sounds are as close to the reference as other real clips are."
    if row.value >= min(baselines["silence"], baselines["noise"]):
        return f"{row.judge}: the generated sounds are no closer to real ones than silence or noise."
    if 0 < 2 * counts["codec"] < counts["generated"]:
        return (
            f"{row.judge}: the generated sounds are {gap:.3g} further from the reference than other real clips; "
            f"{counts['codec']} clips through the codec are too few to say how much of it the representation loses."
        )
    share = min(lost / gap, 1.0)
    fault = "the representation" if share > 0.5 else "the model"
    return (
        f"{row.judge}: of the distance {gap:.3g} between the floor and the generated sounds, {share:.0%} is lost by the "
        f"representation itself (real clips lose {lost:.3g} in it) and {1 - share:.0%} by the model: mostly {fault} is at fault."
    )
