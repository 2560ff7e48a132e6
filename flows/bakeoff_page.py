"""The page of a bake-off: verdict, table and figure, then every sound next to the real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.bakeoff_rows import ModelRow
from flows.publishing import FIGURE, PAGE
from flows.results_table import ResultsTable

MEGABYTES = 40.0  # at most, for all sounds


def write(
    directory: Path,
    workspace: Path,
    variant: str,
    results: ResultsTable,
    rows: Sequence[ModelRow],
    seed: int,
    extra: Mapping[str, Path],
) -> None:
    """Write `index.html` with the sounds of one seed, which are in `runs`; nothing if no family has a score.

    `rows` are those of families; `variant` is the clip variant of the real sounds.
    """
    from soundmill import clips, page
    from soundmill.listening import material, side_by_side

    runs = {row.name: directory / "runs" / f"{row.name}-{seed}" for row in rows if row.trainings and not row.why_not}
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
