"""Outputs of the stages that make a component: its directory, its curve and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundmill.audio import figures
from soundmill.models.components.contracts import Made
from soundmill.training.callbacks import write_curve


def publish(made: Made, ctx: Any, what: str, directory: Path, curves: Path, grid: Path) -> dict[str, Any]:
    """Write a component (`what`: autoencoder, vocoder), its curve (CSV) and its picture (PNG); returns metrics."""
    more = made.save(directory)
    write_curve(made.points, curves)

    def show() -> None:
        figure = made.draw()
        figures.save_png(figure, grid)
        ctx.tracking.log_figure(figure, what)

    ctx.show(f"the picture ({grid.name})", show)
    return {**made.metrics, **more}
