"""The output of an evaluation of folders: a table in the terminal and a page with sounds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from soundmill import terminal
from soundmill.audio import tags
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.evaluation import folders, report
from soundmill.evaluation.evaluator import Evaluation
from soundmill.evaluation.features import MAX_SECONDS
from soundmill.evaluation.ladder import climbed
from soundmill.evaluation.score_rows import BETTER, METRICS, TITLES, rows_of
from soundmill.evaluation.scorer import PER_CLIP
from soundmill.page.sounds import LONGEST_SECONDS, Card, Chip, Section, Sound

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 120  # of tables that are written to a file


def show(metrics: Mapping[str, Any]) -> None:
    from rich.markup import escape

    console = open_console()
    rows = rows_of(metrics)
    counts, seconds = metrics["counts"], metrics["seconds"]
    label = escape(metrics["protocol"])
    console.print(
        f"[bold]{label}[/bold]  {counts['generated']} generated sounds ({seconds['generated']:.0f} s) against "
        f"{counts['reference']} real ones ({seconds['reference']:.0f} s)"
    )
    cells = report.texts(rows, named="key")
    table = table_of("score", *cells.columns[1:], bold="value")
    for line in cells.to_numpy().tolist():
        table.add_row(*line)
    console.print(table)
    if any(row.unranked for row in rows):
        console.print(report.DAGGER)
    for sentence in metrics["comparable"]:
        console.print(f"= {sentence}", soft_wrap=True, markup=False)
    for one in climbed(metrics):
        console.print(f"{one.sentence()} ({metrics['ladder']['clips']} sounds each)", soft_wrap=True, markup=False)
    for key in sorted(key for key in metrics if key.startswith("memorised_") and not key.endswith("_real")):
        real = metrics.get(f"{key}_real")
        console.print(f"{key}: {metrics[key]:.1%} of generated sounds" + ("" if real is None else f", {real:.1%} of real ones"))
    show_warnings(console, metrics["warnings"])


def show_comparison(document: Mapping[str, Any], a: Path, b: Path) -> None:
    from rich.markup import escape

    console = open_console()
    sides = escape(f"A {a}, B {b}: {document['counts']['a']} sounds each")
    console.print(f"[bold]{escape(document['protocol'])}[/bold]  {sides}")
    table = table_of("score", "A", "B", "A − B", "95 %", "p", "better")
    for key, result in document["comparison"].items():
        interval = f"{result['low']:.3g} … {result['high']:.3g}" if "low" in result else "–"
        better = {"a": "A", "b": "B", "neither": "neither", "unranked": "ranks none"}.get(result.get("better"), "–")
        values = [f"{result[name]:.3g}" for name in ("a", "b", "difference")]
        table.add_row(key, *values, interval, f"{result['p']:.3g}" if "p" in result else "–", better)
    console.print(table)
    show_warnings(console, document["warnings"])


def show_warnings(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        console.print(f"· {warning}", style="yellow", soft_wrap=True, markup=False)  # markup off: warnings may contain file names


def table_of(first: str, *others: str, bold: str | None = None) -> Table:
    """An empty table for the console: a column of names, others to the right."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(escape(first), box=box.SIMPLE, pad_edge=False)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == bold else "")
    return table


def open_console() -> Console:
    """A console for tables: as wide as the terminal, or WIDTH in a file."""
    console = terminal.console(highlight=False)
    return console if console.is_terminal else terminal.console(highlight=False, width=WIDTH)


def prepare(directory: Path) -> None:
    """Create the directory of a page before scoring starts; raise UserError if that fails."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: the directory for the page cannot be created ({error.strerror}); use another") from None


def write(evaluation: Evaluation, directory: Path) -> None:
    """Write the page, and beside it the numbers as JSON, CSV, LaTeX and Markdown."""
    sections = _best_and_worst(evaluation)
    if evaluation.memorised:
        of = {"generated": evaluation.generated, "training": evaluation.training}
        sections.append(report.copies(evaluation.memorised, lambda role, clip_id: _beginning(role, of[role], clip_id)))
    report.write_report(
        directory, title(evaluation), evaluation.metrics, sections, evaluation.of, evaluation.metrics.get("classes")
    )


def title(evaluation: Evaluation) -> str:
    return f"{evaluation.generated.root.resolve().name} against {evaluation.reference.root.resolve().name}"


def _best_and_worst(evaluation: Evaluation) -> list[Section]:
    """By KL if sounds are paired, else by the Fréchet distance per clip, which may rate silence well."""
    kl = ("kl_", "reverse_kl_", "exact_kl_")
    ranking = min(evaluation.of, key=lambda key: (not key.startswith(kl), not key.startswith(PER_CLIP)), default=None)
    if ranking is None:
        return []
    metric = max((name for name in METRICS if ranking.startswith(name)), key=len)
    note = f"sounds by {TITLES[metric]} ({ranking.removeprefix(metric).strip('_') or 'clap'})"
    parts = report.best_and_worst(evaluation.of[ranking], BETTER[metric])
    return [Section(name, note, tuple(_card(evaluation, clip_id) for clip_id in ids)) for name, ids in parts.items()]


def _card(evaluation: Evaluation, clip_id: str) -> Card:
    sounds = [_beginning("generated", evaluation.generated, clip_id)]
    if evaluation.paired:
        sounds.append(_beginning("real", evaluation.reference, clip_id))
    scored = {key: of for key, of in sorted(evaluation.of.items()) if evaluation.metrics.get(key) is not None}
    chips = [Chip(f"{key} {of[clip_id]:.3g}") for key, of in scored.items() if clip_id in of]
    return Card(clip_id, clip_id.rpartition("/")[2], clip_id.rpartition("/")[0], tuple(sounds), tuple(chips))


def _beginning(role: str, folder: folders.Folder, clip_id: str) -> Sound:
    """The beginning of a sound at its own sample rate."""
    sound = next(sound for sound in folder.sounds if sound.clip_id == clip_id)
    parts = [np.zeros(0, np.float32)]
    try:
        rate, blocks = decode.decode_blocks(sound.path, MAX_SECONDS)
        with closing(blocks):
            while sum(map(len, parts)) <= LONGEST_SECONDS * rate and (block := next(blocks, None)) is not None:
                parts.append(block)
    except decode.DecodeError as error:
        return Sound(role, parts[0], 1, f"{sound.shown}: {error.reason} {error.detail}; it could be decoded when it was scored")
    return Sound(role, np.concatenate(parts), rate, made_by=tags.read(Path(os.fsdecode(sound.path))))
