"""The report of a result: scores with baselines, generated sounds next to real ones, provenance; and its card for a paper.

The scores of a result and of its single sounds are also tables: CSV with full numbers, Markdown, LaTeX.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundmill import csv_files, disk, page, terminal
from soundmill.evaluation import figures, score_rows
from soundmill.evaluation.ladder import RUNGS, Climbed, climbed
from soundmill.evaluation.library import rounded
from soundmill.evaluation.score_rows import TITLES, ScoreRow, baselines_of, number, rows_of
from soundmill.page.sounds import LONGEST_TITLE, Card, Chip, Section, Sound, draw_section

if TYPE_CHECKING:
    import pandas as pd

    from soundmill.evaluation.memorisation import Memorisation

SYMBOLS = str.maketrans({"…": "--", "–": "--", "→": r"$\to$", "∞": r"$\infty$", "‖": r"$\|$", "−": "$-$", "†": r"$^\dagger$"})
DAGGER = "† ranks no models"
SHOWN = 3  # sounds of each: best, middling, worst
GALLERY = 6  # pairs of a generated sound and its nearest training clip
CARD = "card.md"  # what a paper says about a result, and what is needed to make it again
PROVENANCE = (
    *("protocol", "version", "soundmill", "resampler", "sample_rate", "level", "seed", "replicates", "counts", "seconds"),
    *("embedders", "trained_against", "chosen_by", "weights", "files"),
)


def copies(memorised: Memorisation, sound_of: Callable[[str, str], Sound]) -> Section:
    """The generated sounds nearest to a training clip, each beside it; `sound_of` takes a role and an id."""
    cards = []
    for near in memorised.worst(GALLERY):
        neighbour = near.copy_of or near.neighbour
        chips = []
        if near.similarity is not None:
            good = False if memorised.is_near(near) else None
            chips.append(Chip(f"similarity {near.similarity:.3f} ({memorised.embedder})", good))
        if near.copy_of:
            chips.append(Chip(f"shares {near.shared:.0%} (fingerprint)", False))
        sounds = sound_of("generated", near.clip_id), sound_of("training", neighbour)
        title = near.clip_id.rpartition("/")[2]
        cards.append(Card(near.clip_id, title, f"nearest: {neighbour}", sounds, tuple(chips)))
    rates = memorised.metrics()
    note = [
        f"{rates[f'memorised_{name}']:.1%} near-copies by {name}"
        + (f" (real sounds: {rates[f'memorised_{name}_real']:.1%})" if f"memorised_{name}_real" in rates else "")
        for name in (memorised.embedder, "fingerprint")
        if f"memorised_{name}" in rates
    ]
    return Section(f"Nearest of {memorised.training} training clips", "; ".join(note), tuple(cards))


def best_and_worst(of: Mapping[str, float], better: str) -> dict[str, list[str]]:
    """Ids of the best, middling and worst sounds by their values; `better` is "lower" or "higher"."""
    order = sorted(of, key=lambda clip_id: (of[clip_id] if better == "lower" else -of[clip_id], clip_id))
    count = min(SHOWN, len(order) // 3)
    middle = (len(order) - count) // 2
    return {"Best": order[:count], "Middling": order[middle : middle + count], "Worst": order[len(order) - count :]}


def write_report(
    directory: Path,
    title: str,
    metrics: Mapping[str, Any],
    sections: Sequence[Section],
    of: Mapping[str, Mapping[str, float]],
    classes: Mapping[str, Mapping[str, float]] | None = None,
    note: str = "",
    command: str = "",
    candidates: int | None = None,
    terms: Mapping[str, Any] | None = None,
) -> None:
    """Write scores.png, sounds.csv, scores.csv, .tex, .md, .json, ladder.png and .tex (if there is a ladder), card.md (with the
    `command` that makes the result again), and index.html (one self-contained page) into a directory.

    Nothing is written before all is made; each file is written atomically, the page last. If a picture or player cannot be made,
    the page and standard error name it, and the rest is written. `of`: values of single sounds by score and id. `classes`:
    number of sounds (`generated`) and mean scores, by class. `terms`: of the training material, `hours` by name by kind of term
    and `marks`, names of what is not as it should be.
    """
    from soundmill.drawing import shorten

    document = {**metrics, "title": title} | ({"classes": dict(classes)} if classes else {})
    pictures, svgs, faults = figures.draw(metrics)
    texts = {
        **({CARD: card_text(title, metrics, command, candidates, pictures, faults)} if command else {}),
        **latex_files(metrics),
        "sounds.csv": csv_of_sounds({key: values for key, values in of.items() if metrics.get(key) is not None}),
        "scores.csv": csv_of_scores(metrics),
        "scores.md": markdown(metrics),
        "scores.json": json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n",
    }
    rows, counts = rows_of(metrics), metrics["counts"]
    used = {row.metric for row in rows}.union(*(row.baselines for row in rows))
    texts["index.html"] = page.render(
        "soundmill.evaluation",
        "report.html",
        title=title,
        metrics=metrics,
        note=note,
        verdicts=[text for text in (score_rows.verdict(row, counts) for row in rows) if text],
        shares=" · ".join(f"{metrics[f'{key}_share']:.0%} {key}" for key in ("silent", "clipped", "duplicate")),
        svgs={"scores": None, "ladder": None, **svgs},
        ladder={"missing_class": "", **metrics["ladder"]} if "ladder" in metrics else None,
        climbs=climbed(metrics),
        shorten=shorten,
        scores=_scores(rows),
        terms=[(TITLES[key], meaning) for key, meaning in score_rows.MEANINGS.items() if key in used],
        classes=_classes(classes, rows) if classes else None,
        training=terms,
        sections=[draw_section(section, faults) for section in sections],
        remarks=[*metrics["warnings"], *faults],
        provenance=json.dumps({key: metrics[key] for key in PROVENANCE if key in metrics}, indent=2, ensure_ascii=False),
    )
    _write(directory, pictures, texts)
    for fault in faults:
        terminal.say(f"{directory.name}/index.html: {fault}", error=True)


def _scores(rows: list[ScoreRow]) -> dict[str, Any]:
    """Head and rows of the table of scores; below it, why scores rank no models or are missing, each reason once."""
    table = texts(rows, named="title")
    lines = table.to_numpy().tolist()
    reasons: dict[tuple[str, str], list[str]] = {}
    for row, (metric, embedder, *_) in zip(rows, lines, strict=True):
        if row.note:
            mark = "– not measured" if row.value is None else DAGGER
            reasons.setdefault((mark, row.note), []).append(f"{metric} {embedder}")
    notes = [f"{mark}: {', '.join(names)}: {why}" for (mark, why), names in reasons.items()]
    return {"head": table.columns[2:], "rows": lines, "notes": notes}


def _classes(classes: Mapping[str, Mapping[str, float]], rows: Sequence[ScoreRow]) -> dict[str, Any]:
    from soundmill.drawing import shorten

    keys = list(dict.fromkeys(key for values in classes.values() for key in values if key != "generated"))
    named = {row.key: f"{TITLES[row.metric]} · {row.embedder}" for row in rows}
    lines = []
    for name, values in classes.items():
        scores = [f"{values[key]:.3g}" if key in values else "–" for key in keys]
        lines.append([shorten(name, LONGEST_TITLE) or "(no folder)", str(values["generated"]), *scores])
    return {"head": ["class", "sounds", *(named.get(key, key) for key in keys)], "rows": lines}


def write_card(directory: Path, title: str, metrics: Mapping[str, Any], command: str, candidates: int | None) -> None:
    """Write the card into a directory, and beside it its tables as LaTeX and its figures; each file atomically.

    All bytes depend only on the arguments, except those of the card's last section, which names the hardware.
    """
    pictures, _, faults = figures.draw(metrics)
    text = card_text(title, metrics, command, candidates, pictures, faults, hardware())
    _write(directory, pictures, {**latex_files(metrics), CARD: text})


def _write(directory: Path, pictures: Mapping[str, bytes], texts: Mapping[str, str]) -> None:
    """Write these files by name, the last text last."""
    for name, content in [*pictures.items(), *((name, text.encode()) for name, text in texts.items())]:
        disk.write_atomically(directory / name, lambda temporary, content=content: temporary.write_bytes(content))


def card_text(
    title: str,
    metrics: Mapping[str, Any],
    command: str,
    candidates: int | None,
    pictures: Iterable[str],
    faults: Sequence[str],
    hardware: str = "",
) -> str:
    """The card in Markdown. `candidates`: sounds made per prompt, of which one was kept; None if unknown."""
    climbs = climbed(metrics)
    return page.render(
        "soundmill.evaluation",
        "card.md",
        title=title,
        metrics=metrics,
        command=command,
        candidates=candidates,
        pictures=pictures,
        scores=markdown(metrics),
        reasons={row.key: row.note for row in rows_of(metrics) if row.note} | metrics["left_out"],
        climbs=climbs,
        ladder=_markdown(ladder(metrics)) if climbs else "",
        warnings=[*metrics["warnings"], *faults],
        hardware=hardware,
    )


def hardware() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores, {platform.system()}"


def csv_of_scores(metrics: Mapping[str, Any]) -> str:
    """One row per score, one column per baseline."""
    rows = rows_of(metrics)
    names = baselines_of(rows)
    columns = ["score", "metric", "embedder", "value", "low", "high", *names, "ranks", "note", "protocol", "generated", "reference"]
    counts, others = metrics["counts"], metrics.get("protocols", {})
    labels = {row.key: others.get(row.key.partition("@")[2], metrics)["protocol"] for row in rows}
    lines = []
    for row in rows:
        measured = row.key, row.metric, row.embedder, row.value, row.low, row.high
        baselines = [row.baselines.get(name) for name in names]
        ranks = row.value is not None and not row.unranked
        lines.append([*measured, *baselines, ranks, row.note, labels[row.key], counts["generated"], counts["reference"]])
    return csv_files.text(columns, lines)


def csv_of_sounds(of: Mapping[str, Mapping[str, float]]) -> str:
    """CSV with one row per sound (`id`) and one column per score that single sounds have."""
    values = {
        key: {clip_id: rounded(value) for clip_id, value in by_id.items() if value == value} for key, by_id in sorted(of.items())
    }
    ids = sorted(set().union(*of.values()))
    return csv_files.text(["id", *values], ([clip_id, *(by_id.get(clip_id) for by_id in values.values())] for clip_id in ids))


def markdown(metrics: Mapping[str, Any]) -> str:
    """Markdown table; – is a missing value, † a score that ranks no models, for the reason in `note`."""
    rows = rows_of(metrics)
    table = texts(rows, named="key")
    if any(row.note for row in rows):
        table["note"] = [row.note.replace("|", "\\|") for row in rows]
    return _markdown(table)


def latex(metrics: Mapping[str, Any]) -> str:
    rows = rows_of(metrics)
    table, counts = texts(rows, named="title"), metrics["counts"]
    width, text = len(table.columns), _latex(table, named=2)
    foot = f"protocol {metrics['protocol']}, $n={counts['generated']}$ against {counts['reference']}".replace("_", r"\_")
    feet = [foot, *([DAGGER] if any(row.unranked for row in rows) else [])]
    lines = "".join(rf"\multicolumn{{{width}}}{{l}}{{\footnotesize {line}}} \\" + "\n" for line in feet)
    return text.replace(r"\end{tabular}", lines + r"\end{tabular}").translate(SYMBOLS)


def ladder(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Rungs by scores, with formatted values; (…) is a rung that the metric is deaf to, – one that was not measured."""
    import pandas as pd

    climbs = climbed(metrics)
    rungs = [rung for rung in RUNGS if any(rung in one.rungs for one in climbs)]

    def cell(one: Climbed, rung: str) -> str:
        if rung not in one.rungs:
            return "–"
        text = number(one.metric, one.rungs[rung])
        return f"({text})" if rung in one.deaf_to else text

    columns = {one.title: [*(cell(one, rung) for rung in rungs), number(one.metric, one.value)] for one in climbs}
    return pd.DataFrame({"sounds": [*(RUNGS[rung] for rung in rungs), "generated"], **columns})


def latex_files(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The tables of scores and, if there is one, of the ladder as LaTeX, by file name; they need the package booktabs."""
    of_ladder = {"ladder.tex": _latex(ladder(metrics), named=1).translate(SYMBOLS)} if climbed(metrics) else {}
    return {"scores.tex": latex(metrics), **of_ladder}


def _markdown(table: pd.DataFrame) -> str:
    """The first column and notes to the left, numbers to the right."""
    align = ["left", *("left" if name == "note" else "right" for name in table.columns[1:])]
    return table.to_markdown(index=False, disable_numparse=True, colalign=align) + "\n"


def _latex(table: pd.DataFrame, named: int) -> str:
    """The first `named` columns to the left, numbers to the right."""
    text = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    return text.to_latex(hrules=True, column_format="l" * named + "r" * (len(table.columns) - named))


def texts(rows: list[ScoreRow], named: str) -> pd.DataFrame:
    """The table with formatted values; rows are named by their `key`, or by `title` and embedder."""
    import pandas as pd

    columns = {"score": [row.key for row in rows]}
    if named == "title":
        embedders = [row.embedder if row.role == "generated" else f"{row.embedder}, {row.role}" for row in rows]
        columns = {"metric": [TITLES[row.metric] for row in rows], "embedder": embedders}
    columns |= {"value": [score_rows.shown(row) for row in rows], "95 %": [score_rows.interval(row) for row in rows]}
    for name in baselines_of(rows):
        columns[TITLES[name]] = [number(row.metric, row.baselines[name]) if name in row.baselines else "–" for row in rows]
    return pd.DataFrame(columns)
