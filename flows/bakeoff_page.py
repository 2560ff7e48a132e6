"""The page of a bake-off: verdict, table and figure, and below them every sound beside the real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flows import bakeoff_table
from flows.bakeoff_table import Difference, Row
from flows.publishing import FIGURE

NAME = "index.html"
MEGABYTES = 40.0


def write(
    results: Path,
    workspace: Path,
    variant: str,
    title: str,
    rows: Sequence[Row],
    differences: Sequence[Difference],
    notes: Sequence[str],
    seed: int,
    extra: Mapping[str, Path],
) -> None:
    """`results/index.html`, from the sounds of a seed that are kept in `results/runs`; nothing where no family has a score.

    `variant` is that of the real clips beside them.
    """
    from soundmill import clips, page
    from soundmill.listening import material, side_by_side

    runs = {row.name: results / "runs" / f"{row.name}-{seed}" for row in rows if row.parts and not row.why_not}
    models = [material.read_family(name, its / "generated", its / "codec", its / "report") for name, its in runs.items()]
    models += [material.read_folder(name, material.open_folder(directory)) for name, directory in extra.items()]
    if not runs:
        return
    tables = clips.Tables(workspace / "data" / "clips" / variant, workspace / "data" / "catalog" / f"{variant}.parquet")
    real, requests = material.real_clips(tables, {clip_id for model in models for clip_id in model.sounds})
    figure = results / FIGURE
    above = page.render(
        "flows",
        "bakeoff.html",
        verdict=bakeoff_table.verdict(rows, differences),
        scores=bakeoff_table.table(rows),
        figure=figure.read_bytes() if figure.exists() else None,
        differences=bakeoff_table.differences_table(differences),
        notes=notes,
    )
    side_by_side.write(results / NAME, material.gather(models, real, requests), MEGABYTES, title=title, above=above)
