"""A bar chart of all results relative to their targets: `python -m bench.picture` writes data/bench/bench.png."""

import json
import math
from pathlib import Path
from typing import Any

from bench import measure

INK, MUTED, GRID = "#1c2733", "#5b6b7a", "#d9e0e6"
MET, MISSED = "#2a78b0", "#c8553d"
MIN_BAR, MAX_BAR = 0.25, 16.0  # range of the bars, as multiples of the target; longer bars are cut and marked
TICKS = 0.5, 1, 2, 4, 8, 16


def main() -> None:
    args = measure.parser(__doc__).parse_args()
    draw(args.results, args.results / "bench.png")


def draw(results: Path, path: Path) -> None:
    """Draw the targets of every JSON file in `results`, grouped by file; a bar up to 2 is twice as good as the target."""
    from soundmill.drawing import Figure

    entries = [entry for name, rows in groups(results).items() for entry in (name, *rows)]
    figure = Figure(figsize=(11, 1.2 + 0.3 * len(entries)), layout="constrained")
    axes = figure.subplots()
    labels = []
    for place, entry in enumerate(entries):
        if isinstance(entry, str):
            labels.append(entry.replace("_", " "))
            continue
        labels.append(entry["name"])
        better = goodness(entry)
        end = min(max(better, MIN_BAR), MAX_BAR)
        axes.barh(place, end - 1, left=1, height=0.62, color=MET if entry["met"] else MISSED)
        cut = "» " if end != better else ""
        value = f"{entry['value']:,.0f}" if entry["value"] >= 1000 else f"{entry['value']:.3g}"
        text = f"{cut}{value}{entry['unit']}   (target {'≥' if entry['at_least'] else '≤'} {entry['limit']:,g})"
        axes.annotate(text, (max(end, 1), place), (6, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(MIN_BAR, MAX_BAR * 5)
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_yticks(range(len(entries)), labels, fontsize=9)
    axes.set_ylim(len(entries) - 0.4, -0.8)
    axes.tick_params(length=0, colors=MUTED)
    for entry, label in zip(entries, axes.get_yticklabels(), strict=True):
        label.set(color=MUTED if isinstance(entry, str) else INK, fontweight="bold" if isinstance(entry, str) else "normal")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("multiple of the target (1: just met; »: beyond the axis)", color=MUTED)
    axes.set_title("Results relative to targets", loc="left", color=INK, fontsize=13, fontweight="bold")
    figure.savefig(path, dpi=130)
    print(path)


def groups(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The targets of every JSON file, by its name."""
    documents = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    return {name: document["targets"] for name, document in documents.items() if document.get("targets")}


def goodness(row: dict[str, Any]) -> float:
    """Above 1 if the target is exceeded, for upper and lower limits; a limit of zero counts as just met or missed."""
    if row["limit"] == 0 or row["value"] == 0:
        return 1.0 if row["met"] else 0.1
    if row["value"] < 0:  # of which there is no ratio
        return math.inf if row["met"] else 0.0
    return row["value"] / row["limit"] if row["at_least"] else row["limit"] / row["value"]


if __name__ == "__main__":
    main()
