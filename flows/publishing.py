"""Publishes the results of a sweep or a bake-off: files, a run in MLflow, artifacts in Prefect, lines on the terminal."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.pipeline import BROWSER_PORT
from flows.results_table import ResultsTable
from flows.scores import shown
from flows.terminal import tell
from soundmill import disk, tracking
from soundmill.errors import report_failure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE, PAGE = "figure.png", "index.html"


def write(directory: Path, results: ResultsTable, draw: Callable[[], Figure]) -> None:
    """Write the table's files and `figure.png`; if the figure cannot be drawn, a line says so and there is none."""
    for name, content in results.files().items():
        disk.write_atomically(directory / name, lambda path, content=content: path.write_text(content, encoding="utf-8"))
    path = directory / FIGURE
    path.unlink(missing_ok=True)  # of earlier rows
    with report_failure(str(path)):
        picture = BytesIO()
        draw().savefig(picture, format="png", dpi=130, facecolor="white", metadata={"Software": None})
        disk.write_atomically(path, lambda temporary: temporary.write_bytes(picture.getvalue()))


def record(run: tracking.PipelineRun, directory: Path, results: ResultsTable) -> str | None:
    """Record the table, its files, the figure and the page, if any, in MLflow; returns the run's address there."""
    run.describe(results.markdown())
    run.log_metrics_tree({row.name: {metric: score.total.value for metric, score in row.scores.items()} for row in results.rows})
    for path in [directory / name for name in (*results.files(), PAGE)]:
        if path.exists():
            run.log_file(path)
    if (directory / FIGURE).exists():
        run.log_figure(directory / FIGURE, FIGURE)
    return run.page(BROWSER_PORT)


def show(home: Path, directory: Path, key: str, results: ResultsTable, run: tracking.PipelineRun, page: str | None) -> None:
    """Show the results in Prefect and on the terminal; `page` is the run's address in MLflow."""
    text, figure = results.markdown(), directory / FIGURE
    with report_failure("the table and the figure in Prefect"):
        create_table_artifact(table=results.table().to_dict("records"), key=key, description=results.title)
        data = b64encode(figure.read_bytes()).decode() if figure.exists() else ""
        picture = f"![{results.title}](data:image/png;base64,{data})" if data else ""
        link = f"\n[The runs in MLflow]({page})\n" if page else ""
        create_markdown_artifact(f"{text}\n{picture}\n{link}", key=f"{key}-figure", description=results.title)
    tell(f"\n{text}")
    also = ", ".join(name for name in results.files() if name != "table.md")
    tell(f"Table    {shown(directory / 'table.md', home)} (also {also})")
    if figure.exists():
        tell(f"Figure   {shown(figure, home)}")
    if (directory / PAGE).exists():
        tell(f"Page     {shown(directory / PAGE, home)} (open it in a web browser: all sounds next to the real ones)")
    tell("Runs     make browse" + (f", then {page}" if page else ""))
    for line in run.not_recorded:
        tell(line)
