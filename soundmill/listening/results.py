"""Printing the result of a listening test, and its values as scores of the models."""

from collections.abc import Mapping
from typing import Any

from soundmill.evaluation.folder_report import open_console
from soundmill.listening.answers import Key


def show(result: Mapping[str, Any]) -> None:
    """Print means, differences, agreement, correlations and warnings."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    def table(*names: str) -> Table:
        empty = Table(escape(names[0]), box=box.SIMPLE, pad_edge=False)
        for name in names[1:]:
            empty.add_column(name, justify="right", no_wrap=True)
        return empty

    console = open_console()
    passed, failed = result["raters"]["passed"], result["raters"]["failed"]
    console.print(
        f"[bold]listening test {escape(str(result['test']))}[/bold]  {result['requests']} requests, {result['scale']}; "
        f"{len(passed)} raters passed the checks, {len(failed)} failed"
    )
    for question, part in result["questions"].items():
        means = table(question, "mean", "95 %", *(["failed raters"] if failed else []))
        for name, one in part["means"].items():
            others = [f"{result['failed_means'][question][name]:.3g}"] if failed else []
            means.add_row(escape(name), f"{one['mean']:.3g}", f"{one['low']:.3g} … {one['high']:.3g}", *others)
        console.print(means)
        differences = table(f"{question}: difference", "", "95 %", "p", "p corrected", "better")
        for line in part["differences"]:
            cells = [f"{line['difference']:+.3g}", f"{line['low']:.3g} … {line['high']:.3g}"]
            cells += [f"{line['p']:.3g}", f"{line['p_corrected']:.3g}", escape(line["better"])]
            differences.add_row(escape(f"{line['a']} − {line['b']}"), *cells)
        console.print(differences)
        if part["agreement"] is not None:
            console.print(f"agreement of raters (Krippendorff's alpha): {part['agreement']:.3g}")
        for over, found in part["correlation"].items():
            correlations = table(f"{question}: score, over {over}", "count", "Spearman", "95 %", "Kendall", "95 %", "verdict")
            for score, one in found.items():
                cells = [cell for key in ("rho", "tau") for cell in (f"{one[key]:+.3g}", _interval(one, key))]
                correlations.add_row(escape(score), str(one["count"]), *cells, one["verdict"])
            if found:
                console.print(correlations)
    for rater, reasons in failed.items():
        for reason in reasons:
            console.print(f"· rater {rater} failed: {reason}", style="yellow", soft_wrap=True, markup=False)
    for warning in result["warnings"]:
        console.print(f"· {warning}", style="yellow", soft_wrap=True, markup=False)


def _interval(values: Mapping[str, Any], key: str) -> str:
    return f"{values[f'{key}_low']:+.3g} … {values[f'{key}_high']:+.3g}" if f"{key}_low" in values else "–"


def scores_of(key: Key, result: Mapping[str, Any], model: str) -> dict[str, float]:
    """A model's ratings by the names of metrics: `mos_quality`, `mos_quality_low` …; of a comparison `preference_quality`, the mean
    share of answers that prefer it to another model."""
    scores = {}
    for question, part in result["questions"].items():
        if not key.compare:
            mean = part["means"][model]
            scores |= {f"mos_{question}": mean["mean"], f"mos_{question}_low": mean["low"], f"mos_{question}_high": mean["high"]}
            continue
        shares = [
            0.5 + line["difference"] * (1 if line["a"] == model else -1)
            for line in part["differences"]
            if model in (line["a"], line["b"])
        ]
        scores[f"preference_{question}"] = sum(shares) / len(shares)
    return scores
