"""Write the outputs of the stages that make a component: its directory, loss curve and figure."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from soundmill.models.catalog import read_weights
from soundmill.models.components.contracts import Made
from soundmill.models.samples import show_last, show_losses
from soundmill.training.curve import write_curve
from soundmill.training.trained_on import write_trained_on


def publish(made: Made, params: Any, ctx: Any, catalog: Path, directory: Path, curves: Path, grid: Path) -> dict[str, Any]:
    """Write a component, its training clips (if trained), its loss curve (CSV) and figure (PNG); returns metrics."""
    save_metrics = made.save(directory)
    if made.steps:
        start = params.weights.start_from
        write_trained_on(directory, catalog, read_weights(catalog)["train"], start=start and ctx.home / start)
    write_curve(made.points, curves)

    ctx.show("the curves", partial(show_losses, ctx, made.points))
    ctx.show(f"the picture ({grid.name})", partial(show_last, ctx, made.draw, made.steps, grid))
    return {**made.metrics, **save_metrics}
