"""What the stages that make a component have in common: training on crops of clips, pretrained weights, and their outputs.

Pretrained are published weights, as in the directories `vae` and `vocoder` of AudioLDM, and codecs of this project; they are read
from safetensors only.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from soundmill import hashing, hub, manifest, terminal
from soundmill.audio import figures
from soundmill.audio.flac import write_wav
from soundmill.audio.mel import MelSpec
from soundmill.audio.tags import MadeBy, SourceType
from soundmill.errors import UserError, report_failure
from soundmill.models.catalog import choose_by_hash, read_weights
from soundmill.models.components.contracts import CodecConfig, LoadedParams
from soundmill.params import StageParams
from soundmill.training import checkpoint
from soundmill.training.checkpoint import write_trained_on
from soundmill.training.curve import TRAIN, VALID, write_curve
from soundmill.training.fitting import Fitted, fit_averaged, in_steps
from soundmill.training.loader import Order, Source, crop_places
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import HeldOut, Sampling


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


S = TypeVar("S", bound=Source)
Splits = Mapping[str, Mapping[str, float]]  # split → clip id → weight, as in `Order`


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


def started(params: Any, ctx: Any, load: Callable[[Path], Any], **data: Any) -> tuple[Any, str | None]:
    """The component `weights.start_from`, which is printed, and the digest of its weights; (None, None) if none is named.

    UserError and `data` as for `params.check_start`.
    """
    if params.weights.start_from is None:
        return None, None
    where = params.check_start(ctx.home, **data)
    start = load(where)
    terminal.say(f"{ctx.name}: starts from {params.weights.start_from}")
    return start, hashing.file_digest(where / checkpoint.WEIGHTS)


def held_out(splits: Splits, weights: Any) -> list[str]:
    """The validation clips whose loss is measured, by the section `weights`."""
    return choose_by_hash(list(splits["valid"]), weights.validate_batches * weights.batch_size)


def fit_crops(
    module: TrainingModule,
    source: S,
    unseen_of: Callable[[list[str]], S],
    splits: Splits,
    params: Any,
    ctx: Any,
    draw_of: Callable[[S], Callable[[int], Samples]],
    *,
    item_seconds: float,
    started_from: str | None,
    draw_items: Callable[[int, int, int], Tensor] = crop_places,
) -> Fitted:
    """Train `module` by the section `params.weights`, and load the weights that its `use` names into the net.

    `unseen_of` gives the source of held-out clips, and `draw_of` draws samples of that or, without any, of `source`.
    `draw_items(seed, batch_size, step)` draws what `source` crops; others as for `fit_averaged`.
    """
    weights, valid = params.weights, held_out(splits, params.weights)
    unseen, order = unseen_of(valid) if valid else None, Order(weights.seed, splits["train"], weights.batch_size)
    fitted = fit_averaged(
        module,
        source,
        order,
        partial(draw_items, weights.seed, weights.batch_size),
        params.hardware,
        ctx,
        item_seconds=item_seconds,
        held_out=unseen and HeldOut(unseen, len(valid)),
        started_from=started_from,
        sampling=sampling(in_steps(weights.samples_every_steps, order, module.accumulate), ctx, draw_of(unseen or source)),
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


LICENCE = (
    "these weights have their own licence, which also applies to what is generated with them (AudioLDM's: CC BY-NC-SA 4.0, no "
    "commercial use)"
)


def find(
    weights: LoadedParams, files: tuple[str, ...], section: str, home: Path, digests: Path | None
) -> tuple[Path, dict[str, Any]]:
    """The directory that `weights` names (see hub.find), and the identity of its `files`."""
    directory, commit = locate(weights, files, section, home)
    return directory, {"name": weights.name, "revision": commit, "digest": hub.digest(directory, files, digests)}


def locate(weights: LoadedParams, files: tuple[str, ...], section: str, home: Path) -> tuple[Path, str | None]:
    """The directory that `weights` names, and its commit; of files that are named as `A or B`, it has one."""
    remedies = f"put {', '.join(files)} into a directory and set {section}.weights.name to that, or train one (`kind: train`)"
    patterns = [name for file in files for name in file.split(" or ")]
    return hub.find(weights.name, weights.revision, home, patterns, partial(_missing, files), remedies)


def _missing(files: tuple[str, ...], directory: Path) -> str | None:
    absent = [file for file in files if not any((directory / name).is_file() for name in file.split(" or "))]
    return f"{', '.join(absent)} (weights in other formats can run code and are not read)" if absent else None


def find_saved(
    weights: LoadedParams, config: type[CodecConfig], network: StageParams, home: Path
) -> tuple[Path, dict[str, Any]] | None:
    """The directory that `weights` names, and its identity, if it is a codec of this project, such as a checkpoint's `autoencoder`.

    UserError if it is of another kind than `config`, or another architecture than `network`.
    """
    directory = hub.directory_of(weights.name, home)
    try:
        if "kind" not in checkpoint.read(directory, "autoencoder"):
            return None
    except UserError:  # no codec of this project: what reads published weights explains it
        return None
    saved = checkpoint.load_config(directory, config, "autoencoder")
    theirs = saved.network.model_dump()
    compare(directory, {key: (theirs[key], value) for key, value in network.model_dump().items()}, "autoencoder.network")
    return directory, {"name": weights.name, "revision": None, "digest": saved.digest}


def check_published(
    section: str, files: tuple[str, ...], check_config: Callable, saved: type | None, params: Any, spec: MelSpec, home: Path
) -> None:
    """UserError as a component's `load_published`, from the configuration alone; `saved`: that of codecs of this project."""
    if not (saved and find_saved(params.weights, saved, params.network, home)):
        check_config((locate(params.weights, files, section, home)[0] / files[0]).parent, params.network, spec)


def compare(directory: Path, values: dict[str, tuple[Any, Any]], other: str) -> None:
    """UserError if `values` differ: key → (value in the configuration, expected value)."""
    differing = [f"{key} is {value}, {other} has {expected}" for key, (value, expected) in values.items() if value != expected]
    if differing:
        raise UserError(f"{directory / 'config.json'}: {'; '.join(differing)}; make them agree")


def configured(kind: Any, directory: Path) -> dict[str, Any]:
    """The configuration that a class of diffusers takes from a directory, with its defaults."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    return {key: plain(value) for key, value in {**defaults, **hub.read_config(directory / "config.json")}.items()}


def plain(value: Any) -> Any:
    """A value of a library's configuration as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def pretrained(kind: Any, directory: Path) -> Any:
    """A network of a library's class in evaluation mode and float32, from a directory in the library's layout.

    UserError for missing or unknown tensors: the libraries would initialise the former at random and ignore the latter.
    """
    with hub.loading(directory, kind.__name__):  # without `dtype`, transformers rounds to that of config.json
        net, loading = kind.from_pretrained(
            directory, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    missing, unknown = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    if missing or unknown or loading["mismatched_keys"]:
        problem, names = ("lack", missing) if missing else ("have other shapes or more than", unknown or ["a matrix"])
        raise UserError(
            f"{directory}: its weights {problem} what config.json says ({max(len(names), 1)} tensors, the first {names[0]!r}); "
            f"{hub.REMEDY}"
        )
    hub.check_finite(net, directory)
    return net.eval()
