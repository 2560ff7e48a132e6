"""The page a person reads a score from: numbers on their ruler, sounds to hear next to real ones, and what it was all made from."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from soundmill.errors import UserError, reason
from soundmill.evaluation import scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from soundmill.evaluation.memorisation import Memorisation

Part = TypeVar("Part")
MARKS = ("real", "floor", "codec_floor", "codec", "silence", "noise", "chance")
METRICS = (*scores.METRICS, "label_accuracy")
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
    "real": "real",
    "floor": "floor",
    "codec": "codec",
    "codec_floor": "codec floor",
    "silence": "silence",
    "noise": "noise",
    "chance": "chance",
}
MEANINGS = {
    **{name: f"{metric.description}; {metric.better} is better" for name, metric in scores.METRICS.items()},
    "label_accuracy": "share of generated sounds that a linear probe, fitted on real clips, puts into the class asked for",
    "real": "the probe's cross-validated accuracy on real clips: what can be reached",
    "floor": "real clips in place of generated ones: what can be reached",
    "codec_floor": "the codec's clips before they went through it",
    "codec": "real clips through the family's representation and back: no model of this family can beat it by much",
    "silence": "digital silence in place of every generated sound",
    "noise": "white noise in place of every generated sound",
    "chance": "always answering the label asked for most often",
}
SHARES = ("label_accuracy", "precision", "recall", "coverage")  # from 0 to 1
COLOURS = {
    "generated": "#d6336c",
    "real": "#2b8a3e",
    "floor": "#2b8a3e",
    "codec_floor": "#5c940d",
    "codec": "#1c6dd0",
    "silence": "#868e96",
    "noise": "#b45309",
    "chance": "#868e96",
}
SHOWN = 3  # sounds each of the best, the middle and the worst
GALLERY = 6  # pairs of a generated sound and the training clip that it is most like
WIDEST_RATIO = 200.0
PICTURE_FRAMES = 320
PICTURE_MELS = 96
PICTURE_RANGE_DB = 80.0
LONGEST_SECONDS = 30.0  # of a sound on the page
LONGEST_TITLE, LONGEST_TEXT = 100, 400  # letters of labels and captions on the page
PLAYED = (8_000, 96_000)  # Hz that every browser plays (Web Audio API, BaseAudioContext); FLAC itself ends at 655,350
SMALLEST = 0.5 / 32768  # what is below has no sample in 16 bits
WINDOW_SECONDS = 0.128  # of a picture, at rates below 8 kHz
MISSING = '<p class="note">not here; why is told under “Read with care”</p>'
MARGIN = 0.4  # inches beside a scale
ONE_COLUMN = 4  # scores under each other; more stand in two columns


@dataclass(frozen=True)
class Heard:
    """One sound to hear and see: a mono wave [T] at its rate, or why there is none."""

    what: str
    wave: np.ndarray
    sample_rate: int
    fault: str = ""

    @property
    def longest(self) -> int:
        """Samples that are on the page at most."""
        return int(LONGEST_SECONDS * self.sample_rate)

    @property
    def played_rate(self) -> int:
        return min(max(self.sample_rate, PLAYED[0]), PLAYED[1])

    def beginning(self) -> np.ndarray:
        """What is on the page; a UserError where it can be neither seen nor heard."""
        if self.fault:
            raise UserError(self.fault)
        wave = self.wave[: self.longest]
        if not np.isfinite(wave).all():
            raise UserError("samples that are no numbers")
        return wave

    def peak(self) -> float:
        return float(np.abs(self.beginning()).max(initial=0.0))


@dataclass(frozen=True)
class Chip:
    """A word on a sound; `good` tells right from wrong where there is such."""

    text: str
    good: bool | None = None


@dataclass(frozen=True)
class Card:
    """Sounds that belong together, the one that it is about first."""

    clip_id: str
    title: str
    text: str
    sounds: tuple[Heard, ...]
    chips: tuple[Chip, ...] = ()


@dataclass(frozen=True)
class Section:
    """Cards under a heading."""

    title: str
    note: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Row:
    """One score with its interval and its ruler."""

    key: str
    metric: str
    embedder: str
    value: float
    low: float | None
    high: float | None
    ruler: Mapping[str, float]


def copies(memorised: Memorisation, hear: Callable[[str, str], Heard]) -> Section:
    """The generated sounds that are most like a training clip, each beside it; `hear` takes `generated` or `training` and an id."""
    cards = []
    for near in memorised.worst(GALLERY):
        neighbour = near.copy_of or near.neighbour
        chips = [Chip(f"similarity {near.similarity:.3f} ({memorised.embedder})", False if memorised.is_near(near) else None)]
        if near.copy_of:
            chips.append(Chip(f"shares {near.shared:.0%} (fingerprint)", False))
        sounds = hear("generated", near.clip_id), hear("training", neighbour)
        title = near.clip_id.rpartition("/")[2]
        cards.append(Card(near.clip_id, title, f"nearest: {neighbour}", sounds, tuple(chips)))
    rates = memorised.metrics()
    said = [
        f"{rates[f'memorised_{name}']:.1%} near-copies by {name}"
        + (f" (real sounds: {rates[f'memorised_{name}_real']:.1%})" if f"memorised_{name}_real" in rates else "")
        for name in (memorised.embedder, "fingerprint")
        if f"memorised_{name}" in rates
    ]
    return Section(f"Nearest of {memorised.training} training clips", "; ".join(said), tuple(cards))


def best_and_worst(of: Mapping[str, float], better: str) -> dict[str, list[str]]:
    """Ids of the best sounds, of those in the middle and of the worst, by a value of each; `better` is lower or higher."""
    order = sorted(of, key=lambda clip_id: (of[clip_id] if better == "lower" else -of[clip_id], clip_id))
    count = min(SHOWN, len(order) // 3)
    middle = (len(order) - count) // 2
    return {"Best": order[:count], "Middling": order[middle : middle + count], "Worst": order[len(order) - count :]}


def rows_of(metrics: Mapping[str, Any]) -> list[Row]:
    """The scores in the metrics, in a fixed order: by embedder, then metric."""
    rows = []
    for embedder in sorted(name for name, said in metrics["embedders"].items() if isinstance(said, Mapping)):
        for metric in METRICS:
            key = "clap_score" if (metric, embedder) == ("clap_score", "clap") else f"{metric}_{embedder}"
            if key in metrics:
                value, low, high = metrics[key], metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
                rows.append(Row(key, metric, embedder, value, low, high, metrics["ruler"].get(key, {})))
    return rows


def verdict(row: Row, counts: Mapping[str, int]) -> str | None:
    """Where the distance of a Fréchet score comes from: the representation or the model; None where the ruler has no such marks."""
    marks = row.ruler
    if row.metric != "fad" or "codec" not in marks or "floor" not in marks:
        return None
    lost = max(marks["codec"] - marks.get("codec_floor", marks["floor"]), 0.0)
    gap = row.value - marks["floor"]
    if gap <= 0:
        return f"{row.embedder}: the generated sounds are as close to the reference as other real clips are."
    if row.value >= min(marks["silence"], marks["noise"]):
        return f"{row.embedder}: the generated sounds are no closer to real ones than silence or noise."
    if 0 < 2 * counts["codec"] < counts["generated"]:
        return (
            f"{row.embedder}: the generated sounds are {gap:.3g} further from the reference than other real clips; "
            f"{counts['codec']} clips through the codec are too few to say how much of it the representation loses."
        )
    share = min(lost / gap, 1.0)
    fault = "the representation" if share > 0.5 else "the model"
    return (
        f"{row.embedder}: of the distance {gap:.3g} between the floor and the generated sounds, {share:.0%} is lost by the "
        f"representation itself (real clips lose {lost:.3g} in it) and {1 - share:.0%} by the model: mostly {fault} is at fault."
    )


def table(metrics: Mapping[str, Any]) -> str:
    """The scores as a Markdown table, with a dash where something cannot be measured."""
    rows = rows_of(metrics)
    marks = [mark for mark in MARKS if any(mark in row.ruler for row in rows)]
    lines = [
        "| score | generated | 95 % | " + " | ".join(TITLES[mark] for mark in marks) + " |",
        "|---|--:|:-:|" + "--:|" * len(marks),
    ]
    for row in rows:
        cells = [row.key, number(row, row.value), interval(row)]
        cells += [number(row, row.ruler[mark]) if mark in row.ruler else "–" for mark in marks]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def csv_table(metrics: Mapping[str, Any]) -> str:
    """The scores as CSV, numbers in full: a row for each score, a column for each mark of the ruler."""
    rows = rows_of(metrics)
    marks = [mark for mark in MARKS if any(mark in row.ruler for row in rows)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["score", "metric", "embedder", "value", "low", "high", *marks, "protocol", "generated", "reference"])
    counts = metrics["counts"]
    for row in rows:
        known = [row.value, row.low, row.high, *(row.ruler.get(mark) for mark in marks)]
        writer.writerow([row.key, row.metric, row.embedder, *known, metrics["protocol"], counts["generated"], counts["reference"]])
    return buffer.getvalue()


def latex_table(metrics: Mapping[str, Any]) -> str:
    """The scores as a LaTeX table (package booktabs), to be put into a paper as it is."""
    rows = rows_of(metrics)
    marks = [mark for mark in MARKS if any(mark in row.ruler for row in rows)]
    counts, protocol = metrics["counts"], _latex(metrics["protocol"])
    lines = [
        f"% protocol {metrics['protocol']}: {counts['generated']} generated against {counts['reference']} reference sounds",
        r"\begin{tabular}{ll" + "r" * (2 + len(marks)) + "}",
        r"\toprule",
        " & ".join(["metric", "embedder", "value", r"95\,\%", *(TITLES[mark] for mark in marks)]) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        cells = [_latex(TITLES[row.metric]), _latex(row.embedder), _latex(number(row, row.value)), _latex(interval(row))]
        cells += [_latex(number(row, row.ruler[mark])) if mark in row.ruler else "--" for mark in marks]
        lines.append(" & ".join(cells) + r" \\")
    lines += [
        r"\bottomrule",
        rf"\multicolumn{{{4 + len(marks)}}}{{l}}{{\footnotesize protocol {protocol}, "
        rf"$n={counts['generated']}$ against {counts['reference']}}} \\",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


LATEX = {
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "…": "--",
    "–": "--",
    "→": r"$\to$",
    "∞": r"$\infty$",
    "‖": r"$\|$",
    "−": "$-$",
}


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def number(row: Row, value: float) -> str:
    return f"{value:.1%}" if row.metric in SHARES else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def interval(row: Row) -> str:
    return "–" if row.low is None or row.high is None else f"{number(row, row.low)} … {number(row, row.high)}"


def draw_ruler(metrics: Mapping[str, Any]) -> Figure:
    """Every score as a point with its interval on a horizontal scale between its ruler's marks."""
    from soundmill.drawing import Figure

    rows = rows_of(metrics)
    columns = 1 if len(rows) <= ONE_COLUMN else 2
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(10 if columns == 1 else 11.5, 1.4 * lines), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
    places = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).T.ravel()  # down the columns
    for axes in places[len(rows) :]:
        axes.set_axis_off()
    for axes, row in zip(places, rows, strict=False):
        _draw_row(axes, row, figure.get_size_inches()[0] / columns)
    return figure


def _draw_row(axes: Axes, row: Row, width: float) -> None:
    """One scale: the ruler's marks below the line, the generated sounds above it."""
    values = [*row.ruler.values(), row.value, *(edge for edge in (row.low, row.high) if edge is not None)]
    scale = _scale(row.metric, values)
    if scale == "logarithmic":
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.2, max(values) * 1.2)
    elif scale == "square-root":
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axes.set_xlim(0, max(*values, 1e-6) * 1.1)
    elif row.metric in SHARES:
        axes.set_xlim(-0.02, 1.02)
    else:
        room = 0.05 * (max(values) - min(values)) or 0.5
        axes.set_xlim(min(values) - room, max(values) + room)
    axes.set_ylim(-1.0, 1.0)
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xticks([])
    axes.minorticks_off()
    axes.set_yticks([])
    axes.axhline(0, color="#ced4da", linewidth=3, solid_capstyle="round", zorder=1)

    place = axes.transData.transform
    axes.set_title(f"{TITLES[row.metric]} · {row.embedder}", loc="left", fontsize=11, fontweight="bold", color="#343a40")
    more = row.metric == "label_accuracy" or scores.METRICS[row.metric].better == "higher"
    better = "more is better →" if more else "← less is better"
    axes.set_title(f"{better}, {scale} scale", loc="right", fontsize=8.5, color="#868e96")
    last_end = [-np.inf, -np.inf, -np.inf]
    width_of_letter = 7.3 / (width - MARGIN) / 96  # share of the axis, at this font size
    for mark, value in sorted(row.ruler.items(), key=lambda item: item[1]):
        x = axes.transAxes.inverted().transform(place((value, 0)))[0]
        text = f"{TITLES[mark]} {number(row, value)}"
        half = len(text) * width_of_letter / 2 * 1.1
        level = next((index for index, end in enumerate(last_end) if x - half > end), 0)
        last_end[level] = x + half
        y = -0.34 - 0.3 * level
        axes.plot([value, value], [0, y + 0.1], color=COLOURS[mark], linewidth=1.0, alpha=0.6, zorder=1)
        axes.plot([value], [0], marker="o", markersize=8, color=COLOURS[mark], zorder=2, clip_on=False)
        axes.text(value, y, text, ha=_side(x), va="center", fontsize=8.5, color=COLOURS[mark])
    if row.low is not None and row.high is not None:
        low = max(row.low, axes.get_xlim()[0])
        axes.plot([low, row.high], [0, 0], color=COLOURS["generated"], linewidth=6, alpha=0.35, solid_capstyle="butt", zorder=3)
    axes.plot(
        [row.value], [0], marker="D", markersize=10, color=COLOURS["generated"], markeredgecolor="white", zorder=4, clip_on=False
    )
    x = axes.transAxes.inverted().transform(place((row.value, 0)))[0]
    axes.text(
        row.value, 0.5, f"generated {number(row, row.value)}", ha=_side(x), va="center", fontsize=10, fontweight="bold",
        color=COLOURS["generated"],
    )  # fmt: skip


def _scale(metric: str, values: Sequence[float]) -> str:
    """Ratios are what counts in a distance, unless one is nearly zero and would take all the room, or below it."""
    if metric in (*SHARES, "density", "clap_score", "is") or min(values) < 0:
        return "linear"
    return "logarithmic" if min(values) > 0 and max(values) / min(values) <= WIDEST_RATIO else "square-root"


def _side(x: float) -> str:
    return "left" if x < 0.06 else "right" if x > 0.94 else "center"


def write_report(
    directory: Path,
    title: str,
    metrics: Mapping[str, Any],
    warnings: Sequence[str],
    sections: Sequence[Section],
    classes: Mapping[str, Mapping[str, float]] | None = None,
    note: str = "",
) -> None:
    """Write scores.json, .csv, .tex, .md, then ruler.png and index.html (one self-contained page) into a directory.

    A picture or player that cannot be made is told in its place, in a line and by the sound's name; all others are there.
    `classes`: by class its number of sounds (`generated`) and means of scores by their keys.
    """
    directory.mkdir(parents=True, exist_ok=True)
    document = {**metrics, "title": title, "warnings": list(warnings)} | ({"classes": dict(classes)} if classes else {})
    texts = {
        "scores.json": json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
        "scores.csv": csv_table(metrics),
        "scores.tex": latex_table(metrics),
        "scores.md": table(metrics),
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    faults: list[str] = []
    ruler = _attempt("no ruler", partial(_draw, metrics, directory / "ruler.png"), faults)
    page = _page(title, metrics, warnings, sections, classes or {}, note, ruler or MISSING, faults)
    (directory / "index.html").write_text(page, encoding="utf-8")
    for fault in faults:
        print(f"{directory.name}/index.html: {fault}", file=sys.stderr, flush=True)


def _draw(metrics: Mapping[str, Any], path: Path) -> str:
    """The ruler as a file, and as SVG text."""
    from soundmill.drawing import svg

    figure = draw_ruler(metrics)
    text = svg(figure, "ruler")
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
    return text


def _page(
    title: str,
    metrics: Mapping[str, Any],
    warnings: Sequence[str],
    sections: Sequence[Section],
    classes: Mapping[str, Mapping[str, float]],
    note: str,
    ruler: str,
    faults: list[str],
) -> str:
    """The page; what of it could not be made joins the faults, and is told on it."""
    rows = rows_of(metrics)
    shown = "".join(_html_section(section, faults) for section in sections)
    counts = metrics["counts"]
    said = [text for text in (verdict(row, counts) for row in rows) if text]
    known = ("protocol", "version", "soundmill", "resampler", "sample_rate", "seed", "replicates", "counts", "seconds", "embedders")
    provenance = {key: metrics[key] for key in (*known, "files") if key in metrics}
    return PAGE.substitute(
        title=html.escape(title),
        summary=(
            f"{counts['generated']} generated sounds against {counts['reference']} real ones{html.escape(note)}, "
            f"protocol {html.escape(metrics['protocol'])}"
        ),
        verdict=f'<section class="panel verdict">{"".join(f"<p>{html.escape(text)}</p>" for text in said)}</section>'
        if said
        else "",
        ruler=ruler,
        table=_html_table(rows),
        legend="".join(
            f"<dt>{html.escape(TITLES[key])}</dt><dd>{html.escape(MEANINGS[key])}</dd>"
            for key in (*METRICS, *MARKS)
            if any(key == row.metric or key in row.ruler for row in rows)
        ),
        classes=_html_classes(classes, rows),
        sections=shown,
        quality=" · ".join(f"{metrics[f'{key}_share']:.0%} {key}" for key in ("silent", "clipped", "duplicate")),
        warnings="".join(f"<li>{html.escape(warning)}</li>" for warning in [*warnings, *faults]) or "<li>none</li>",
        provenance=html.escape(json.dumps(provenance, indent=2, ensure_ascii=False)),
    )


def _html_section(section: Section, faults: list[str]) -> str:
    cards = "".join(_html_card(card, faults) for card in section.cards) or "<p>none</p>"
    alone = " alone" if all(len(card.sounds) == 1 for card in section.cards) else ""
    return (
        f"<h2>{html.escape(section.title)} <small>{html.escape(section.note)}</small></h2>"
        f'<section class="grid{alone}">{cards}</section>'
    )


def _html_classes(classes: Mapping[str, Mapping[str, float]], rows: Sequence[Row]) -> str:
    """A table of the classes."""
    if not classes:
        return ""
    from soundmill.drawing import shorten

    keys = list(dict.fromkeys(key for found in classes.values() for key in found if key != "generated"))
    named = {row.key: f"{TITLES[row.metric]} · {row.embedder}" for row in rows}
    head = "".join(f"<th>{html.escape(named.get(key, key))}</th>" for key in keys)
    body = ""
    for name, found in classes.items():
        cells = "".join(f"<td>{found[key]:.3g}</td>" if key in found else "<td>–</td>" for key in keys)
        shown = html.escape(shorten(name, LONGEST_TITLE) or "(no folder)")
        body += f"<tr><th>{shown}</th><td>{found['generated']}</td>{cells}</tr>"
    return (
        "<h2>Class by class <small>means of the sounds' own values</small></h2>"
        '<section class="panel"><div class="scroll"><table><thead><tr><th>class</th><th>sounds</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _html_table(rows: Sequence[Row]) -> str:
    marks = [mark for mark in MARKS if any(mark in row.ruler for row in rows)]
    head = "".join(f'<th style="color:{COLOURS[mark]}">{html.escape(TITLES[mark])}</th>' for mark in marks)
    body = ""
    for row in rows:
        cells = "".join(f"<td>{number(row, row.ruler[mark]) if mark in row.ruler else '–'}</td>" for mark in marks)
        name = f"{html.escape(TITLES[row.metric])} <small>{html.escape(row.embedder)}</small>"
        body += f'<tr><th>{name}</th><td class="score">{number(row, row.value)}</td><td class="ci">{interval(row)}</td>{cells}</tr>'
    return (
        '<table><thead><tr><th>score</th><th class="score">generated</th><th>95 % interval</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _html_card(card: Card, faults: list[str]) -> str:
    from soundmill.drawing import shorten

    levels = [_attempt(f"{card.clip_id}, {heard.what}: no picture", partial(_level, heard), faults) for heard in card.sounds]
    top = max((float(level.max()) for level in levels if level is not None), default=0.0)
    sides = "".join(_html_side(card, heard, level, top, faults) for heard, level in zip(card.sounds, levels, strict=True))
    kinds = {None: "", True: " right", False: " wrong"}
    chips = "".join(f'<span class="chip{kinds[chip.good]}">{html.escape(chip.text)}</span>' for chip in card.chips)
    text = f"<p>{html.escape(shorten(card.text, LONGEST_TEXT))}</p>" if card.text and card.text != card.title else ""
    return (
        f"<article><h3>{html.escape(shorten(card.title, LONGEST_TITLE))}</h3>{text}"
        f'<div class="pair">{sides}</div><div class="chips">{chips}<code>{html.escape(card.clip_id)}</code></div></article>'
    )


def _html_side(card: Card, heard: Heard, level: np.ndarray | None, top: float, faults: list[str]) -> str:
    """One sound to see and hear, and what either does not show of it."""
    what = html.escape(heard.what)
    cut = ", its beginning" if len(heard.wave) > heard.longest else ""
    seen = None
    if level is not None:
        seen = _attempt(f"{card.clip_id}, {heard.what}: no picture", partial(_picture, level, top), faults)
    picture = f'<img alt="spectrogram, {what}" src="{seen}">' if seen else MISSING
    sound = _attempt(f"{card.clip_id}, {heard.what}: no player", partial(_sound, heard), faults)
    player = f'<audio controls preload="none" src="{sound}"></audio>' if sound else MISSING
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in _notes(heard)) if sound else ""
    return f"<figure><figcaption>{what}{cut}</figcaption>{picture}{player}{notes}</figure>"


def _attempt(what: str, make: Callable[[], Part], faults: list[str]) -> Part | None:
    """A part of the page; None where it fails, and why is among the faults: the others do not depend on it."""
    try:
        return make()
    except Exception as error:
        faults.append(f"{what}: {reason(error)}")
        return None


def _sound(heard: Heard) -> str:
    """What the player plays, at a rate that browsers play."""
    from soundmill.audio.flac import encode_flac
    from soundmill.audio.resample import resample

    flac = encode_flac(resample(heard.beginning(), heard.sample_rate, heard.played_rate), heard.played_rate)
    return "data:audio/flac;base64," + base64.b64encode(flac).decode()


def _notes(heard: Heard) -> list[str]:
    """In what the player differs from the sound."""
    peak = heard.peak()
    said = []
    if heard.played_rate != heard.sample_rate:
        said.append(f"played at {heard.played_rate} Hz, of {heard.sample_rate}")
    if peak > 1:
        said.append(f"peak {peak:.3g} of full scale: clipped in the player")
    if 0 < peak < SMALLEST:
        said.append(f"peak {peak:.3g} of full scale: below 16 bits, silent in the player")
    return said


def _level(heard: Heard) -> np.ndarray:
    """Mel spectrogram for the eye [mels, about 320 frames], in dB; -inf of digital silence."""
    from soundmill.audio.mel import MelSpec, log_mel

    wave, rate, peak = heard.beginning(), heard.sample_rate, heard.peak()
    if peak == 0:
        return np.full((PICTURE_MELS, 1), -np.inf)
    # At 8 to 48 kHz 2048 and 1024; else so long in time that every band holds a bin, and so short that something moves.
    size = 2048 * 2 ** max(0, math.ceil(math.log2(rate / 48_000)))
    window = min(size // 2, max(16, 2 ** round(math.log2(rate * WINDOW_SECONDS))))
    spec = MelSpec(
        sample_rate=rate,
        n_fft=size,
        win_length=window,
        hop_length=max(len(wave) // PICTURE_FRAMES, window // 32, 1),
        n_mels=PICTURE_MELS,
        f_min=min(40.0, rate / 200),
        f_max=rate / 2,
        mel_scale="slaney",
        norm="none",
        power=2.0,
        floor=1e-10,
        peak=None,
    )
    # Its power may be more than a float32 holds, or less.
    return log_mel(wave / np.float32(peak), spec) * (10 / np.log(10)) + 20 * math.log10(peak)


def _picture(level: np.ndarray, top: float) -> str:
    """Spectrogram picture, low frequencies at the bottom; both of a pair share the loudest level, so their levels compare."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    level = np.clip((level - (top if np.isfinite(top) else 0.0)) / PICTURE_RANGE_DB + 1, 0, 1)
    buffer = io.BytesIO()
    imsave(buffer, colormaps["magma"](level, bytes=True), origin="lower", format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title — Soundmill scores</title>
<style>
:root { color-scheme: light; --ink: #212529; --soft: #6c757d; --line: #e3e7eb; --card: #fff; --ground: #f4f6f8; --hot: #d6336c; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; } h3::first-letter { text-transform: uppercase; }
small, .soft { color: var(--soft); font-weight: 400; }
.panel, article { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.3rem; }
.panel svg { width: 100%; height: auto; display: block; }
.verdict p { margin: .25rem 0; }
.verdict { border-left: 5px solid var(--hot); margin-top: 1.25rem; }
.scroll { overflow-x: auto; }
table { font-size: .92rem; border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .55rem; white-space: nowrap; text-align: right; border-bottom: 1px solid var(--line); }
tr > :first-child { text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
.score { color: var(--hot); font-weight: 700; }
.ci { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .88rem; margin: 1rem 0 0; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(500px, 1fr)); gap: 1rem; }
.alone { grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
@media (max-width: 560px) { .grid { grid-template-columns: 1fr; } }
article p { margin: .15rem 0 0; color: var(--soft); font-size: .92rem; }
.pair { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: .9rem; margin-top: .7rem; }
figure { margin: 0; min-width: 0; }
.note { font-size: .78rem; color: var(--soft); margin: .2rem 0 0; }
figcaption { font-size: .8rem; color: var(--soft); margin-bottom: .2rem; }
figure:first-child figcaption { color: var(--hot); font-weight: 600; }
figure img { width: 100%; height: 110px; border-radius: 6px; display: block; }
audio { width: 100%; height: 34px; margin-top: .4rem; }
.chips { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin-top: .7rem; font-size: .78rem; }
.chip { background: var(--ground); border: 1px solid var(--line); border-radius: 99px; padding: .05rem .6rem; }
.right { background: #e6f7ea; border-color: #b2e2bf; } .wrong { background: #fdecef; border-color: #f5c2cd; }
.chips code { color: var(--soft); margin-left: auto; overflow-wrap: anywhere; }
pre { font-size: .78rem; overflow-x: auto; margin: .8rem 0 0; }
li { margin: .2rem 0; }
</style>
</head>
<body><main>
<h1>$title</h1>
<p class="soft">$summary</p>
$verdict
<h2>Scores on their ruler <small>$quality among the generated sounds</small></h2>
<section class="panel">$ruler</section>
<h2>Scores</h2>
<section class="panel"><div class="scroll">$table</div>
<dl>$legend</dl></section>
$classes
$sections
<h2>Read with care</h2>
<section class="panel"><ul>$warnings</ul></section>
<h2>What this was made from</h2>
<section class="panel"><details><summary>weights, file lists and counts</summary><pre>$provenance</pre></details></section>
</main></body>
</html>
""")
