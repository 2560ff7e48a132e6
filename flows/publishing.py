"""Publishes the results of a sweep or a bake-off: files, a page, a run in MLflow, artifacts in Prefect, lines on the terminal."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows import results_figure
from flows.pipeline import BROWSER_PORT
from flows.results_rows import Row
from flows.results_table import ResultsTable
from flows.scores import shown
from flows.terminal import tell
from soundmill import disk, tracking
from soundmill.errors import report_failure

FIGURE, PAGE = "figure.png", "index.html"
MEGABYTES = 40.0  # of a page at most, for all sounds


def write(directory: Path, results: ResultsTable) -> None:
    """Write the table's files and `figure.png`; if the figure cannot be drawn, a line says so and there is none."""
    for name, content in results.files().items():
        disk.write_atomically(directory / name, lambda path, content=content: path.write_text(content, encoding="utf-8"))
    path = directory / FIGURE
    path.unlink(missing_ok=True)  # of earlier rows
    with report_failure(str(path)):
        picture = BytesIO()
        results_figure.draw(results.title, results.rows).savefig(
            picture, format="png", dpi=130, facecolor="white", metadata={"Software": None}
        )
        disk.write_atomically(path, lambda temporary: temporary.write_bytes(picture.getvalue()))


def write_page(
    directory: Path,
    workspace: Path,
    variant: str,
    results: ResultsTable,
    rows: Sequence[Row],
    seed: int,
    extra: Mapping[str, Path],
) -> None:
    """Write `index.html` with the sounds of one seed, which are in `runs`; nothing if no family has a score.

    `rows` are those of families; `variant` is the clip variant of the real sounds.
    """
    from soundmill import clips, page
    from soundmill.listening import material, side_by_side

    runs = {row.name: directory / "runs" / f"{row.name}-{seed}" for row in rows if row.scores}
    if not runs:
        return
    models = [material.read_family(name, run / "generated", run / "codec", run / "report") for name, run in runs.items()]
    models += [material.read_folder(name, material.open_folder(folder)) for name, folder in extra.items()]
    tables = clips.Tables(workspace / "data" / "clips" / variant, workspace / "data" / "catalog" / f"{variant}.parquet")
    real, requests = material.real_clips(tables, {clip_id for model in models for clip_id in model.sounds})
    figure = directory / FIGURE
    above = page.render(
        "flows",
        "bakeoff.html",
        verdict=results.verdict,
        scores=results.table(),
        figure=figure.read_bytes() if figure.exists() else None,
        differences=results.differences,
        notes=results.notes,
    )
    side_by_side.write(directory / PAGE, material.gather(models, real, requests), MEGABYTES, title=results.title, above=above)


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
