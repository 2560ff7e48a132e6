"""Figures and sounds that a training logs to tracking: samples at intervals, samples and loss curves at the end."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from soundmill.audio import figures
from soundmill.audio.flac import write_wav
from soundmill.audio.tags import MadeBy, SourceType
from soundmill.errors import report_failure
from soundmill.training.curve import TRAIN, VALID
from soundmill.training.monitoring import Sampling


@dataclass(frozen=True)
class Samples:
    """A figure, and sounds (wave [C, T], its rate) with titles; `made`: what the weights did for each sound, None if nothing."""

    figure: Any
    titles: Sequence[str]
    sounds: Sequence[tuple[np.ndarray, int]]
    made: Sequence[SourceType | None]


def sampling(every: int | None, ctx: Any, draw: Callable[[int], Samples]) -> Sampling | None:
    """A callback that logs `draw(step)` with averaged weights every `every` steps; None if `every` is None."""
    return Sampling(every, partial(_send_now, ctx, draw)) if every else None


def show_last(ctx: Any, draw: Callable[[int], Samples], steps: int, picture: Path) -> None:
    """Save the figure of the final samples and log it with its sounds."""
    samples = draw(steps)
    figures.save_png(samples.figure, picture)
    _send(ctx, samples, "final", steps)


def show_losses(ctx: Any, points: Sequence[dict[str, float]]) -> None:
    """Log the loss curves in one chart, if there are at least two points."""
    curves = {name: [(point["step"], point[name]) for point in points] for name in (TRAIN, VALID) if points and name in points[0]}
    if len(points) > 1:
        ctx.tracking.log_figure(figures.draw_curves(curves, ctx.name), "loss")


def _send_now(ctx: Any, draw: Callable[[int], Samples], module: Any, step: int) -> None:
    with report_failure(f"samples after {step} steps"):
        with module.ema.applied(module.net):
            samples = draw(step)
        _send(ctx, samples, f"step-{step:07d}", step)
    module.to(module.device)


def _send(ctx: Any, samples: Samples, name: str, step: int) -> None:
    """Log the figure and the sounds, which name the weights of this step."""
    ctx.tracking.log_figure(samples.figure, f"samples/{name}")
    directory = ctx.scratch / "samples" / name
    directory.mkdir(parents=True, exist_ok=True)
    sounds = zip(samples.titles, samples.sounds, samples.made, strict=True)
    for number, (title, (wave, rate), kind) in enumerate(sounds, 1):
        words = re.sub(r"[^a-z0-9]+", "-", title.lower())[:40].strip("-")
        path = directory / (f"{number:02d}-{words}.wav" if words else f"{number:02d}.wav")
        write_wav(path, wave, rate, made_by=kind and MadeBy(f"{ctx.name} after {step} steps", kind))
        ctx.tracking.log_file(path, f"samples/{name}")
