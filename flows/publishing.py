"""Publishes the results of a sweep or a bake-off: files, a figure, a page, a run in MLflow, artifacts in Prefect, lines on the
terminal."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows import results
from flows.results_table import ResultsTable, shown_total
from flows.scores import shown
from flows.terminal import tell
from soundmill import disk, tracking
from soundmill.errors import report_failure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from soundmill import clips

FIGURE, PAGE = "figure.png", "index.html"
MEGABYTES = 40.0  # of a page at most, for all sounds
LONGEST_NAME, LONGEST_HEADING = 48, 100  # characters: rows may be named after labels
TOTAL_COLOR, SEED_COLOR, PAPER_COLOR, UNRANKED_COLOR = "#1c6dd0", "#8fb8ea", "#e8590c", "#868e96"


def write(directory: Path, table: ResultsTable) -> None:
    """Write the table's files and `figure.png`; if the figure cannot be drawn, a line says so and there is none."""
    for name, content in table.files().items():
        disk.write_text(directory / name, content)
    path = directory / FIGURE
    path.unlink(missing_ok=True)  # of earlier rows
    with report_failure(str(path)):
        figure, options = draw(table.title, table.rows), {"dpi": 130, "facecolor": "white", "metadata": {"Software": None}}
        disk.write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", **options))


def write_page(
    directory: Path, tables: clips.Tables, table: ResultsTable, runs: Mapping[str, Path], extra: Mapping[str, Path]
) -> None:
    """Write `index.html` with the sounds of these runs, by row, and of `extra` folders, beside the real ones of `tables`."""
    from soundmill import page
    from soundmill.listening import material, side_by_side

    models = [material.read_family(name, run / "generated", run / "codec", run / "report") for name, run in runs.items()]
    models += [material.read_folder(name, material.open_folder(folder)) for name, folder in extra.items()]
    real, requests = material.real_clips(tables, {clip_id for model in models for clip_id in model.sounds})
    figure = (directory / FIGURE).read_bytes() if (directory / FIGURE).exists() else None
    above = page.render("flows", "bakeoff.html", results=table, figure=figure)
    side_by_side.write(directory / PAGE, material.gather(models, real, requests), MEGABYTES, title=table.title, above=above)


def record(run: tracking.PipelineRun, directory: Path, table: ResultsTable) -> str | None:
    """Record the table, its files, the figure and the page, if any, in MLflow; returns the run's address there."""
    run.describe(table.markdown())
    run.log_metrics_tree({row.name: {metric: score.total.value for metric, score in row.scores.items()} for row in table.rows})
    for name, folder in {**dict.fromkeys(table.files(), ""), PAGE: "", FIGURE: "figures"}.items():
        if (directory / name).exists():
            run.log_file(directory / name, folder)
    return run.page


def show(home: Path, directory: Path, key: str, table: ResultsTable, run: tracking.PipelineRun, page: str | None) -> None:
    """Show the results in Prefect and on the terminal; `page` is the run's address in MLflow."""
    text, figure = table.markdown(), directory / FIGURE
    with report_failure("the table and the figure in Prefect"):
        create_table_artifact(table=table.table().to_dict("records"), key=key, description=table.title)
        data = b64encode(figure.read_bytes()).decode() if figure.exists() else ""
        picture = f"![{table.title}](data:image/png;base64,{data})" if data else ""
        link = f"\n[The runs in MLflow]({page})\n" if page else ""
        create_markdown_artifact(f"{text}\n{picture}\n{link}", key=f"{key}-figure", description=table.title)
    tell(f"\n{text}")
    also = ", ".join(name for name in table.files() if name != "table.md")
    tell(f"Table    {shown(directory / 'table.md', home)} (also {also})")
    if figure.exists():
        tell(f"Figure   {shown(figure, home)}")
    if (directory / PAGE).exists():
        tell(f"Page     {shown(directory / PAGE, home)} (open it in a web browser: all sounds next to the real ones)")
    tell("Runs     make browse" + (f", then {page}" if page else ""))
    for line in run.not_recorded:
        tell(line)


# The figure: a panel per metric, or of the speed


def draw(title: str, rows: Sequence[results.Row]) -> Figure:
    """A row of panels per embedder, a column per metric, or the score that ranks rows beside their speed where they were timed.

    The paper's numbers have a separate scale unless they are comparable.
    """
    from soundmill.drawing import Figure, shorten

    timed = any(row.trainings for row in rows)
    of_rows = [metric for metric in results.metrics_of(rows) if not metric.startswith(results.COPIES)]  # those are in the table
    metrics = [results.leading(rows)] if timed else of_rows
    kinds = list(dict.fromkeys(results.kind_of(metric) for metric in metrics))
    embedders = sorted({results.embedder_of(metric) for metric in metrics})
    num_columns, num_lines = max(len(kinds), 1) + timed, max(len(embedders), 1)
    figure = Figure(figsize=(2.0 + 3.6 * num_columns, 1.1 + (1.3 + 0.42 * len(rows)) * num_lines), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    figure.suptitle(shorten(title, LONGEST_HEADING), fontsize=13, fontweight="bold", x=0.01, ha="left")
    panels = figure.subplots(num_lines, num_columns, squeeze=False)
    for line, embedder in zip(panels, embedders or [""], strict=True):
        for axes, kind in zip(line, kinds or [""], strict=False):
            metric = f"{kind}_{embedder}" if embedder else kind
            if metric in metrics:
                _draw_panel(axes, rows, metric, names=axes is line[0])
            else:
                axes.set_axis_off()
    if timed:
        _draw_speed(panels[0][-1], rows)
    _legend(figure, rows)
    return figure


def _draw_speed(axes: Axes, rows: Sequence[results.Row]) -> None:
    """The seconds that a second of sound takes; rows of the Pareto front of score and speed in colour."""
    best = results.front(rows)
    for index, row in enumerate(rows):
        if row.seconds_per_second is not None:
            color = TOTAL_COLOR if row in best else UNRANKED_COLOR
            axes.plot([row.seconds_per_second], [index], "D", color=color, markersize=6.5, markeredgecolor="white")
    _frame(axes, [""] * len(rows), "Seconds per second of sound   ← better", TOTAL_COLOR)
    if any(row.seconds_per_second for row in rows):
        axes.set_xscale("log")


def _frame(axes: Axes, names: Sequence[str], label: str, color: str) -> None:
    """A panel with a line for each row."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names, fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(axis="y", color="#e9ecef")
    axes.set_axisbelow(True)
    axes.margins(x=0.12)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlabel(label, fontsize=9.5, color=color)


def _draw_panel(axes: Axes, rows: Sequence[results.Row], metric: str, names: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    from soundmill.drawing import shorten

    kind = results.kind_of(metric)
    share = results.METRICS[kind].is_share
    factor = 100 if share else 1
    several = results.most_seeds(rows) > 1
    for index, row in enumerate(rows):
        score = row.scores.get(metric)
        if score:
            _draw_score(axes, index, score, factor, several)
        elif row.failures:
            middle = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
            axes.text(0.5, index, "failed", color=UNRANKED_COLOR, fontsize=9, **middle)
    unranked = any(score.unranked for row in rows if (score := row.scores.get(metric)))
    better = "not ranked" if unranked else "→ better" if results.METRICS[kind].higher_is_better else "← better"
    label = " · ".join(filter(None, [results.METRICS[kind].title, results.embedder_of(metric)])) + (", %" if share else "")
    shown = [shorten(row.name, LONGEST_NAME) if names else "" for row in rows]
    _frame(axes, shown, f"{label}   {better}", UNRANKED_COLOR if unranked else TOTAL_COLOR)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    from_paper = [(index, row) for index, row in enumerate(rows) if kind in row.paper]
    same = [(index, row.paper[kind]) for index, row in from_paper if _compares(row, metric)]
    _draw_paper(axes, same)
    if other := [(index, row.paper[kind]) for index, row in from_paper if not _compares(row, metric)]:
        above = axes.twiny()
        _draw_paper(above, other)
        above.margins(x=0.12)
        above.xaxis.set_major_locator(MaxNLocator(5))
        above.set_xlabel(f"{results.PAPER[kind]} in the paper ({results.OTHER_DATA})", fontsize=9.5, color=PAPER_COLOR)
        above.tick_params(axis="x", labelsize=8.5, colors=PAPER_COLOR)
        above.spines[["left", "right", "bottom"]].set_visible(False)
        above.spines["top"].set_color(PAPER_COLOR)


def _compares(row: results.Row, metric: str) -> bool:
    return row.compares_with is not None and metric.endswith(row.compares_with)


def _draw_score(axes: Axes, index: int, score: results.MetricResult, factor: float, several: bool) -> None:
    if several:
        step = min(0.12, 0.5 / len(score.by_seed))
        for place, estimate in enumerate(score.by_seed.values()):
            y = index - 0.12 - step * (len(score.by_seed) - 1 - place)
            _draw_estimate(axes, y, estimate, factor, color=SEED_COLOR, marker="o", size=3.5, width=1.2)
    y = index + (0.06 if several else 0)
    _draw_estimate(axes, y, shown_total(score, several), factor, color=TOTAL_COLOR, marker="D", size=6.5, width=3)


def _draw_estimate(
    axes: Axes, y: float, estimate: results.Estimate, factor: float, color: str, marker: str, size: float, width: float
) -> None:
    if estimate.has_interval:
        ends = [factor * estimate.low, factor * estimate.high]
        axes.plot(ends, [y, y], color=color, linewidth=width, alpha=0.55, solid_capstyle="butt", zorder=2)
    axes.plot([factor * estimate.value], [y], marker=marker, markersize=size, color=color, markeredgecolor="white", zorder=3)


def _draw_paper(axes: Axes, points: Sequence[tuple[int, float]]) -> None:
    for index, value in points:
        axes.plot([value], [index + 0.26], marker="s", markersize=6, color=PAPER_COLOR, markerfacecolor="none", zorder=3)


def _legend(figure: Figure, rows: Sequence[results.Row]) -> None:
    from matplotlib.lines import Line2D

    seeds = results.most_seeds(rows)
    meaning = f"mean of {seeds} seeds, 95 % over seeds" if seeds > 1 else "score, bootstrap 95 % over clips"
    entries = [Line2D([], [], color=TOTAL_COLOR, marker="D", linewidth=3, markeredgecolor="white", label=meaning)]
    if seeds > 1:
        entries.append(Line2D([], [], color=SEED_COLOR, marker="o", markersize=4, label="each seed, bootstrap 95 % over clips"))
    from_paper = [row for row in rows if row.paper]
    if from_paper:
        metrics = results.metrics_of(rows)
        same = all(_compares(row, metric) for row in from_paper for metric in metrics if results.kind_of(metric) in row.paper)
        text = "paper, same protocol and files" if same else f"paper ({results.OTHER_DATA}: scale above)"
        square = {"marker": "s", "linestyle": "none", "markerfacecolor": "none"}
        entries.append(Line2D([], [], color=PAPER_COLOR, label=text, **square))
    figure.legend(handles=entries, loc="outside lower left", ncols=len(entries), fontsize=9, frameon=False)
