"""One bar for every target: how far what was measured lies above or below it. `python -m bench.picture` → data/bench/bench.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import measure

INK, MUTED, GRID = "#1c2733", "#5b6b7a", "#d9e0e6"
MET, MISSED = "#2a78b0", "#c8553d"


def main() -> None:
    args = measure.parser(__doc__).parse_args()
    draw(args.results, args.results / "bench.png")


def draw(results: Path, path: Path) -> None:
    """Draw the targets of every JSON file in `results`; a bar of length 2 is twice as good as promised."""
    from matplotlib.figure import Figure

    rows = targets(results)
    figure = Figure(figsize=(11, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        better = goodness(row)
        axes.barh(place, better - 1, left=1, height=0.62, color=MET if row["met"] else MISSED)
        sign = "≥" if row["at_least"] else "≤"
        text = f"{row['value']:.3g}{row['unit']}   (target {sign} {row['limit']:g})"
        axes.annotate(text, (max(better, 1), place), (6, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    lowest = min((goodness(row) for row in rows), default=1)
    highest = max((goodness(row) for row in rows), default=1)
    axes.set_xlim(min(0.5, lowest / 1.3), max(2, highest) * 6)
    axes.set_xticks(
        ticks := [tick for tick in (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50) if axes.get_xlim()[0] <= tick <= highest * 1.5]
    )
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [f"{row['name']}" for row in rows], fontsize=9, color=INK)
    axes.invert_yaxis()
    axes.tick_params(length=0, colors=MUTED)
    axes.tick_params(axis="y", colors=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("measured against its target (1: just met; to the right: better)", color=MUTED)
    axes.set_title("The data plane against its targets", loc="left", color=INK, fontsize=13, fontweight="bold")
    figure.savefig(path, dpi=130)
    print(path)


def targets(results: Path) -> list[dict[str, Any]]:
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    return [target for document in documents for target in document.get("targets", [])]


def goodness(row: dict[str, Any]) -> float:
    """Above 1 where the target is met, whichever way it points; a limit of nought that is kept counts as just met."""
    if row["limit"] == 0 or row["value"] == 0:
        return 1.0 if row["met"] else 0.1
    return row["value"] / row["limit"] if row["at_least"] else row["limit"] / row["value"]


if __name__ == "__main__":
    main()
