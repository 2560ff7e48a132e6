"""The scores of all families as text: a table with baselines, the paths of sounds and reports, the address of the run."""

import json
from pathlib import Path
from typing import Any

from flows.results_scores import metrics_in
from flows.terminal import tell
from soundmill import tracking
from soundmill.params import read_yaml


def read_scores(root: Path) -> dict[str, dict[str, Any]]:
    """`data/metrics/evaluate/<family>.json` of every family of params.yaml that has one."""
    scores = {}
    for name in sorted(_families(root)):
        path = root / "data" / "metrics" / "evaluate" / f"{name}.json"
        if not path.exists():
            continue
        try:
            scores[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            tell(f"{path}: not readable as JSON ({error}); `dvc repro` rebuilds it")
    return scores


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def by_baseline(name: str) -> tuple[int, str]:
    """Sort key of baselines: real sounds first."""
    order = ["floor", "real", "codec_floor", "codec", "silence", "noise", "chance"]
    return order.index(name) if name in order else len(order), name


def rows(scores: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A header, then a row per family and score: the value and its baselines."""
    names: list[str] = []
    for metrics in scores.values():
        for key in metrics_in([metrics]):
            names += [name for name in metrics["baselines"][key] if name not in names]
    names.sort(key=by_baseline)
    table = [["family", "score", "value", *(name.replace("_", " ") for name in names)]]
    for family, metrics in scores.items():
        for key in metrics_in([metrics]):
            baselines, unranked = metrics["baselines"][key], "†" if key in metrics.get("unranked", {}) else ""
            cells = (f"{baselines[name]:.3g}" if name in baselines else "" for name in names)
            table.append([family, key, f"{metrics[key]:.3g}{unranked}", *cells])
    return table


def _places(scores: dict[str, dict[str, Any]]) -> list[str]:
    """A line per family and Fréchet distance: between which spoiled real sounds its sounds are."""
    places = [
        f"{family}: {text}" if len(scores) > 1 else text
        for family, metrics in scores.items()
        for key, text in metrics.get("ladder", {}).get("sentences", {}).items()
        if key.startswith("fad_")
    ]
    return (
        ["", "  Compared with real sounds spoiled in known ways, as many of each:", *(f"  {text}" for text in places)]
        if places
        else []
    )


def _protocol_warning(scores: dict[str, dict[str, Any]]) -> list[str]:
    """A line if families were scored by different protocols."""
    protocols = {family: metrics.get("protocol") for family, metrics in scores.items()}
    if len(set(protocols.values())) < 2:
        return []
    listed = ", ".join(f"{family} by {protocol}" for family, protocol in protocols.items())
    return [f"  These scores are not comparable: {listed}; `dvc repro` scores all by the newest protocol"]


def markdown(scores: dict[str, dict[str, Any]]) -> str:
    table = rows(scores)
    if len(table) == 1:
        return "No scores with baselines in data/metrics/evaluate."
    return markdown_table(table)


def markdown_table(rows: list[list[str]], gap: str = " ") -> str:
    """A Markdown table; the first row is its head, and `gap` ends each cell but the last."""
    head, *body = [f"| {f'{gap}| '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def closing_lines(root: Path, scores: dict[str, dict[str, Any]], page: str | None = None) -> list[str]:
    """The last lines on the terminal: scores, paths of sounds and reports, the run's `page` in MLflow, other families to train."""
    lines = [""]
    table = rows(scores)
    if len(table) > 1:
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        for row in table:
            cells = [
                cell.ljust(width) if index < 2 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines += [
            "  fad, mmd, kl: lower is better; label_accuracy: higher. Next to it: the same of real clips, the codec, silence",
            *(["  † not ranked; the report says why"] if any("†" in row[2] for row in table) else []),
            *_protocol_warning(scores),
            *_places(scores),
            "",
        ]
    for family in scores:
        sounds = sorted((root / "data" / "generated" / family).glob("*.wav"))
        if sounds:
            lines.append(f"Sounds   {shown(sounds[0].parent, root)} (WAV files: {len(sounds)})")
        report = root / "data" / "report" / family / "index.html"
        if report.exists():
            lines.append(f"Report   {shown(report, root)} (open it in a web browser: the sounds next to real ones)")
    lines.append(f"Runs     make browse, then {page}" if page else "Runs     make browse")
    others = sorted({path.stem for path in (root / "conf" / "model").glob("*.yaml")} - _families(root))
    if others and root.parent.name != tracking.WORKSPACES:  # a sweep or bake-off chooses its families
        lines.append(f"More     make run MODEL=NAME, one of {', '.join(others)}")
    return lines


def _families(root: Path) -> set[str]:
    """The families of params.yaml."""
    return set(read_yaml(root / "params.yaml").get("families") or {})


def shown(path: Path, root: Path) -> Path:
    """The path relative to the project, also if `root` is one of its workspaces."""
    home = root.parents[1] if root.parent.name == tracking.WORKSPACES else root
    return path.relative_to(home)
