"""What the stages that make a component have in common: training on crops of clips, and their outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from soundmill import hashing, manifest, terminal
from soundmill.models.catalog import read_weights
from soundmill.models.samples import Samples, sampling, show_last, show_losses
from soundmill.training import checkpoint
from soundmill.training.curve import write_curve
from soundmill.training.fitting import Fitted, fit_averaged
from soundmill.training.loader import Order, Source, crop_places
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import HeldOut
from soundmill.training.trained_on import write_trained_on


@dataclass(frozen=True)
class MadeComponent:
    """A component that was trained or loaded, for its stage to publish."""

    save: Callable[[Path], dict[str, Any] | None]  # writes it into a new directory; returns more metrics, such as its digest
    metrics: dict[str, Any]
    draw: Callable[[int], Samples]  # what it makes of held-out clips, after the given number of steps
    fitted: Fitted | None = None  # its training; None if it was loaded


def size(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(weight.numel() for weight in net.parameters())


def starting(where: Path, params: Any, ctx: Any) -> str:
    """Print that a training starts from the component in `where`; returns the digest of its weights."""
    terminal.say(f"{ctx.name}: starts from {params.weights.start_from}")
    return hashing.file_digest(where / checkpoint.WEIGHTS)


def fit_crops(
    module: TrainingModule,
    source: Source,
    held_out: HeldOut | None,
    clip_weights: Mapping[str, float],
    params: Any,
    ctx: Any,
    draw: Callable[[int], Samples],
    *,
    item_seconds: float,
    started_from: str | None,
    draw_items: Callable[[int, int, int], Tensor] = crop_places,
) -> Fitted:
    """Train `module` by the section `params.weights`, and load the weights that its `use` names into the net.

    `clip_weights` as for `Order`; `draw_items(seed, batch_size, step)` draws what `source` crops; others as for `fit_averaged`.
    """
    weights = params.weights
    fitted = fit_averaged(
        module,
        source,
        Order(weights.seed, clip_weights, weights.batch_size),
        partial(draw_items, weights.seed, weights.batch_size),
        params.hardware,
        ctx,
        item_seconds=item_seconds,
        held_out=held_out,
        started_from=started_from,
        sampling=sampling(weights.samples_every_steps, ctx, draw),
    )
    fitted.load_into(module, weights.use)
    return fitted


def publish(
    component: MadeComponent, params: Any, ctx: Any, catalog: Path, directory: Path, curves: Path, grid: Path
) -> dict[str, Any]:
    """Write a component, its training clips (if trained), its loss curve (CSV) and figure (PNG); returns metrics."""
    save_metrics, weights, fitted = component.save(directory) or {}, params.weights, component.fitted
    name, start = getattr(weights, "name", None), getattr(weights, "start_from", None)
    if name and (ctx.home / name / manifest.TRAINED_ON_FILE).is_file():
        start = name  # loaded weights of this project
    if fitted or start:  # taken as it is, it still comes from clips
        clip_ids = read_weights(catalog)["train"] if fitted else []
        write_trained_on(directory, catalog, clip_ids, start=start and ctx.home / start)
    points, steps = (fitted.points, weights.steps) if fitted else ([], 0)
    write_curve(points, curves)
    ctx.show("the curves", partial(show_losses, ctx, points))
    ctx.show(f"the picture ({grid.name})", partial(show_last, ctx, component.draw, steps, grid))
    trained = {"steps": steps, **fitted.metrics} if fitted else {}
    return {**component.metrics, **trained, **save_metrics}
