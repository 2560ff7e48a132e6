"""Write the outputs of the stages that make a component: its directory, loss curve and figure."""

from functools import partial
from pathlib import Path
from typing import Any

from soundmill import manifest
from soundmill.models.catalog import read_weights
from soundmill.models.components.contracts import MadeComponent
from soundmill.models.samples import show_last, show_losses
from soundmill.training.curve import write_curve
from soundmill.training.trained_on import write_trained_on


def publish(
    component: MadeComponent, params: Any, ctx: Any, catalog: Path, directory: Path, curves: Path, grid: Path
) -> dict[str, Any]:
    """Write a component, its training clips (if trained), its loss curve (CSV) and figure (PNG); returns metrics."""
    save_metrics = component.save(directory) or {}
    start = getattr(params.weights, "start_from", None) or _of_this_project(params.weights, ctx.home)
    if component.steps or start:  # taken as it is, it still comes from clips
        clip_ids = read_weights(catalog)["train"] if component.steps else []
        write_trained_on(directory, catalog, clip_ids, start=start and ctx.home / start)
    write_curve(component.points, curves)

    ctx.show("the curves", partial(show_losses, ctx, component.points))
    ctx.show(f"the picture ({grid.name})", partial(show_last, ctx, component.draw, component.steps, grid))
    return {**component.metrics, **save_metrics}


def _of_this_project(weights: Any, home: Path) -> str | None:
    """The directory that loaded weights were named by, if it says what they were trained on."""
    name = getattr(weights, "name", None)
    return name if name and (home / name / manifest.TRAINED_ON_FILE).is_file() else None
