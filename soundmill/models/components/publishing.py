"""Outputs of the stages that make a component: its directory, its curve and its picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from soundmill.models.components.contracts import Made
from soundmill.models.samples import show_last, show_losses
from soundmill.training.callbacks import write_curve


def publish(made: Made, ctx: Any, directory: Path, curves: Path, grid: Path) -> dict[str, Any]:
    """Write a component, its curve (CSV) and its picture (PNG); returns metrics."""
    more = made.save(directory)
    write_curve(made.points, curves)

    ctx.show("the curves", partial(show_losses, ctx, made.points))
    ctx.show(f"the picture ({grid.name})", partial(show_last, ctx, made.draw, made.steps, grid))
    return {**made.metrics, **more}
