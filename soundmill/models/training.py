"""Train any family: initial weights, checkpoint, loss curve and samples; the family supplies network, batches and loss.

While it trains, the project's tagger scores its sounds for validation clips.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from soundmill import hashing, manifest, terminal
from soundmill.audio import figures
from soundmill.audio.resample import resample
from soundmill.audio.tags import CHANGED, GENERATED, SourceType
from soundmill.errors import UserError
from soundmill.metrics import scores
from soundmill.metrics.scores import EmbeddingSet
from soundmill.models import adapted, registry
from soundmill.models.catalog import choose_balanced, choose_by_hash, read_labels, read_mixes, waves_of
from soundmill.models.components.making import Samples, sampling, show_last, show_losses
from soundmill.models.family import JUDGE, Model, Prepared, Run, can, chosen_by, origin, stored_weights, use_weights
from soundmill.models.params import FamilyTrainParams
from soundmill.models.sounds import as_long_as_clip, describe, generate_each, of_clips, reconstruct_each
from soundmill.training import adapters, checkpoint
from soundmill.training.checkpoint import compare, write_trained_on
from soundmill.training.curve import write_curve
from soundmill.training.device import pick_device, use_threads
from soundmill.training.fitting import fit_averaged, in_steps
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import Operations, Scoring
from soundmill.training.seeds import seed_of
from soundmill.training.tagger import TaggerModel, load_tagger

LABELS = "labels.weight"  # label embeddings of a label-conditioned network, one row per label
REFERENCE = 200  # real clips, at most
REPLICATES = 200  # bootstrap resamples of an interval
MEASURED = "score/{}_" + JUDGE  # names of the curves
Wave = tuple[np.ndarray, int]  # [C, T], its rate


@dataclass(frozen=True)
class Material:
    """What a training reads."""

    inputs: Path  # of the family: clips, log-mels, latents
    parts: Path  # directory of the vocoder and the encoded text
    tagger: Path
    clips: Path
    catalog: Path


def run(params: FamilyTrainParams, ctx: Any, material: Material, model: Path, curves: Path, grid: Path) -> dict[str, Any]:
    """Train a family; write the checkpoint directory, the loss curve (CSV) and the grid of samples (PNG). Returns metrics."""
    use_threads(params.hardware.threads)
    family, catalog = registry.family(ctx.family), material.catalog
    start = read_start(ctx.family, params, ctx.home)
    prepared = family.prepare(params, ctx, material.inputs, material.parts, material.tagger, catalog, start and start.model)
    start_facts = start_weights(prepared, start, ctx.name) if start else {}
    if params.lora:
        prepared.module.adapt(params.lora, params.hardware)
    module, steps = prepared.module, prepared.module.steps
    mixes = len(read_mixes(catalog) & set(prepared.clip_ids))
    counts = {"clips": len(prepared.clip_ids) - mixes, **({"mixes": mixes} if mixes else {}), **prepared.counts}
    sizes = _announce(ctx, prepared, counts, catalog)
    hardware, device = params.hardware, pick_device(params.hardware.accelerator)
    run = Run(params.sampling, device, hardware.precision, params.items, ctx.home, ctx.scratch, ctx.digests)
    draw = partial(draw_samples, ctx.family, prepared, run)
    scored = scoring(params, ctx, prepared, run, material)
    if scored and JUDGE in getattr(prepared.model, "trained_against", ()):
        terminal.say(f"{ctx.name}: the model is trained against the tagger, so the tagger's scores flatter it")
    fitted = fit_averaged(
        module,
        prepared.source,
        prepared.order,
        prepared.draw,
        params.hardware,
        ctx,
        item_seconds=prepared.item_seconds,
        held_out=prepared.held_out,
        started_from=start and start.digest,
        sampling=sampling(in_steps(params.samples_every_steps, prepared.order, module.accumulate), ctx, draw),
        scoring=scored,
        patience=params.patience,
    )
    if module.steps < steps:
        terminal.say(f"{ctx.name}: ended at step {module.steps}: {params.patience} held-out losses in a row were not the lowest")
    steps = module.steps
    write_curve(fitted.points, curves)
    items = {f"training_{what}": count for what, count in counts.items() if what in ("clips", "mixes")}
    shown = [] if isinstance(prepared.samples, Tensor) else prepared.samples  # prompts that the model knows
    prompts = {"prompts": [{"labels": list(one.labels), "caption": one.caption} for one in shown]} if shown else {}
    facts = {"steps": steps, **items, **sizes, **prompts, **start_facts, **fitted.facts}
    prepared.model.save(model, facts, prepared.parts, prepared.own_parts)
    fitted.save(model)
    write_trained_on(model, catalog, prepared.clip_ids, prepared.mixes, start and Path(start.where))
    fitted.load_into(module, params.use)
    if can(prepared.model, "generate"):
        _register(ctx, prepared, model)
    ctx.show("the curves", partial(show_losses, ctx, fitted.points))
    ctx.show(f"the samples ({grid.name})", partial(show_last, ctx, draw, steps, grid))
    return {**fitted.metrics, "steps": steps, **counts, **sizes, "threads": params.hardware.threads}


def _announce(ctx: Any, prepared: Prepared, counts: dict[str, int], catalog: Path) -> dict[str, int]:
    """Say what is trained on what, and log the training clips; returns the number of parameters, and of trained ones if fewer."""
    module = prepared.module
    parameters = sum(weight.numel() for weight in module.net.parameters())
    trained = sum(weight.numel() for weight in adapters.trained(module.net).values())
    contents = ", ".join(f"{count or 'no'} {what}" for what, count in counts.items())
    batch = prepared.order.batch_size * module.accumulate
    share = f" ({trained:,} of them trained, {trained / parameters:.2%})" if trained < parameters else ""
    terminal.say(f"{ctx.name}: {contents}, {parameters:,} parameters{share}, {module.steps} steps of {batch}")
    told = [*(["captions"] if prepared.model.condition == "caption" else []), *(["labels"] if prepared.model.labels else [])]
    columns = {"clip_id": "string", **dict.fromkeys(told, "string")}
    ctx.tracking.log_dataset(
        "training clips", hashing.digest(prepared.clip_ids), len(prepared.clip_ids), catalog, "training", columns
    )
    return {"parameters": parameters, **({"trained_parameters": trained} if prepared.model.params.lora else {})}


def _register(ctx: Any, prepared: Prepared, directory: Path) -> None:
    """Log a model that generates for the registry; adapters merged with their base."""
    example = {"label": [describe(prepared.samples[0])], "seed": [0]}
    shape = 1, prepared.model.channels, prepared.model.num_samples or prepared.model.sample_rate
    if prepared.model.params.lora:
        merged = ctx.scratch / "merged"
        shutil.rmtree(merged, ignore_errors=True)
        write_whole(directory, merged)
        directory = merged
    ctx.tracking.log_model(directory, ctx.family, example, np.zeros(shape, np.float32))


@dataclass(frozen=True)
class Start:
    """The checkpoint that a training starts from."""

    where: str
    model: Model
    digest: str
    weights: str  # description of the weights used
    chosen_by: list[str]  # embedders whose scores chose them


def read_start(family: str, params: FamilyTrainParams, home: Path) -> Start | None:
    """The checkpoint named by `start_from`, if any; UserError if its family or a `fixed` parameter differs."""
    if params.start_from is None:
        return None
    kind = registry.family(family)
    where = registry.start_of(family, params, home)
    if params.lora and not kind.adapted:
        raise UserError("lora: adapters cannot be trained in this family; set it to null")
    source_facts = origin(where)
    model = kind.load(where)
    compare(str(where), model.params.model_dump(), params.model_dump(), kind.fixed)
    use = model.params.use
    return Start(str(where), model, source_facts["checkpoint"], use_weights(model, where, use), chosen_by(where, use))


def start_weights(prepared: Prepared, start: Start, name: str) -> dict[str, Any]:
    """Initialise the network with the weights of `start`; new labels keep their random embeddings. Returns facts."""
    net, weights = prepared.module.net, dict(start.model.net.state_dict())
    old_labels, labels = start.model.labels, prepared.model.labels
    new = [label for label in labels if label not in old_labels]
    if new and prepared.model.params.lora:
        raise UserError(f"lora: {start.where} lacks the labels {', '.join(new)}, and adapters learn none; set it to null")
    if new:
        rows = net.state_dict()[LABELS].clone()
        if old_labels:
            rows[[labels.index(label) for label in old_labels]] = weights[LABELS]
        weights[LABELS] = rows
    terminal.say(f"{name}: starts from {start.weights} of {start.where}" + (f"; new labels: {', '.join(new)}" if new else ""))
    prepared.module.start_from(weights, start.where)
    chosen = {"chosen_by": start.chosen_by} if start.chosen_by else {}
    config = checkpoint.read(Path(start.where))
    imported = {"imported": config["imported"]} if "imported" in config else {}
    return {"started_from": {"checkpoint": start.digest, "weights": start.weights, "new_labels": new, **chosen}, **imported}


def draw_samples(family: str, prepared: Prepared, run: Run, step: int) -> Samples:
    """Samples with the current weights after `step` steps; the seeds are the same every time."""
    model, samples = prepared.model, prepared.samples
    if can(model, "generate"):
        waves = model.generate(samples, run)
        titles = [describe(request) or f"sample {cell + 1}" for cell, request in enumerate(samples)]
        made: list[SourceType | None] = [GENERATED] * len(waves)
    else:
        pairs = zip(samples, model.reconstruct(samples, run), strict=True)
        waves = [wave for pair in pairs for wave in pair]
        titles, made = ["real", "reconstructed"] * len(samples), [None, CHANGED] * len(samples)
    sounds = [(wave.numpy(), model.sample_rate) for wave in waves]
    figure = figures.draw_waves(sounds, titles, prepared.columns, f"{family}: samples after {step} steps")
    return Samples(figure, titles, sounds, made)


def scoring(params: FamilyTrainParams, ctx: Any, prepared: Prepared, run: Run, material: Material) -> Scoring | None:
    """What scores the family while it trains; None without `score_every_steps`.

    Each of `score_requests` sounds is for a validation clip; if there are fewer clips, they are taken in turn with other seeds.
    A family that cannot generate reconstructs the clips, each once.
    """
    if params.score_every_steps is None:
        return None
    if not (material.tagger / checkpoint.CONFIG).is_file():
        raise UserError(
            f"{ctx.name}: score_every_steps needs the tagger, but {material.tagger} is none: set families.{ctx.family}.tagger to "
            "data/tagger"
        )
    labels = read_labels(material.catalog)
    if not labels["valid"]:
        raise UserError(
            f"{ctx.name}: score_every_steps: the validation split has no clip; raise splits.valid_fraction, or set it to null"
        )
    judge, model = load_tagger(material.tagger), prepared.model
    generates = can(model, "generate")
    if not generates and len(labels["valid"]) < 2:
        raise UserError(
            f"{ctx.name}: score_every_steps: the validation split has only one clip to reconstruct, and a FAD needs two; raise "
            "splits.valid_fraction, or set it to null"
        )
    asked = choose_balanced(labels["valid"], params.score_requests)
    held_out = choose_by_hash([*labels["valid"]], REFERENCE)
    trained = choose_by_hash(sorted(labels["train"].keys() - read_mixes(material.catalog)), REFERENCE - len(held_out))
    mono, real = {}, {}
    for clip_id, (wave, rate) in waves_of(material.clips, {*asked, *held_out, *trained}):
        mono[clip_id] = _mono(wave, rate, judge)
        if clip_id in asked:
            real[clip_id] = wave, rate
    embedded = _embed(judge, mono)
    count = params.score_requests if generates else len(asked)
    clip_of = {f"{number:04d}": asked[number % len(asked)] for number in range(count)}
    pairs = EmbeddingSet.of(
        {name: embedded[clip_id][0] for name, clip_id in clip_of.items()},
        {name: embedded[clip_id][1] for name, clip_id in clip_of.items()},
    )
    reference = EmbeddingSet.of({clip_id: embedded[clip_id][0] for clip_id in (*held_out, *trained)})
    of_clip = of_clips(model, material.catalog, asked, params.seed) if generates else {}
    requests = [replace(of_clip[clip], seed=seed_of(params.seed, "score", name)) for name, clip in clip_of.items() if generates]
    terminal.say(
        f"{ctx.name}: every {params.score_every_steps} steps the tagger scores {len(clip_of)} sounds for {len(asked)} validation "
        f"clips, against {len(held_out)} validation and {len(trained)} training clips"
    )

    def make() -> Iterator[tuple[str, Tensor]]:
        """A sound for each request, as long as its real clip; or each real clip, reconstructed."""
        if not generates:
            yield from reconstruct_each(model, ((name, real[clip_id]) for name, clip_id in clip_of.items()), run, whole=True)
            return
        for name, sound in zip(clip_of, generate_each(model, requests, run), strict=True):
            wave, rate = real[clip_of[name]]
            yield name, as_long_as_clip(sound, round(wave.shape[1] / rate * model.sample_rate), model)

    def measure(module: TrainingModule, step: int) -> tuple[dict[str, float], int]:
        try:
            with module.ema.applied(module.net), Operations() as counted:
                sounds = {name: _mono(wave.numpy(), model.sample_rate, judge) for name, wave in make()}
        finally:
            module.to(module.device)
        return _scores(_embed(judge, sounds), pairs, reference, params.seed), counted.total

    return Scoring(params.score_every_steps, measure, params.score_share)


def _mono(wave: np.ndarray, rate: int, judge: TaggerModel) -> np.ndarray:
    """A wave [C, T] as the judge takes it: the mean of its channels [T] at the judge's rate."""
    return resample(wave.mean(axis=0), rate, judge.spec.sample_rate)


def _embed(judge: TaggerModel, waves: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Embeddings [P, D] of patches and logits [K] of each wave [T], by id."""
    frames, logits = judge.embed(list(waves.values()))
    return dict(zip(waves, zip(frames, logits, strict=True), strict=True))


def _scores(
    sounds: Mapping[str, tuple[np.ndarray, np.ndarray]], pairs: EmbeddingSet, reference: EmbeddingSet, seed: int
) -> dict[str, float]:
    """FAD from the reference, KL from each sound's real clip, and the share of sounds with the class of that clip; intervals."""
    generated = EmbeddingSet.of(
        {name: frames for name, (frames, _) in sounds.items()}, {name: logits for name, (_, logits) in sounds.items()}
    )
    same = {name: float(logits.argmax() == pairs.logits[name].argmax()) for name, (_, logits) in sounds.items()}
    found = {
        "fad": scores.compute("fad", generated, reference, seed=seed, replicates=REPLICATES),
        "kl": scores.compute("kl", generated, pairs, seed=seed, replicates=REPLICATES),
        "class": scores.mean_with_interval(same, seed, REPLICATES),
    }
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {MEASURED.format(name) + end: result[key] for name, result in found.items() for end, key in ends.items()}


def write_whole(directory: Path, output: Path) -> None:
    """Copy a checkpoint into a new directory; if it has only adapters, merge the ones that its `use` selects into their base."""
    if not adapted.are_in(directory):
        shutil.copytree(directory, output, ignore=shutil.ignore_patterns(".gitignore"), copy_function=shutil.copyfile)
        return
    source = origin(directory)
    family = registry.family(source["family"])
    model = family.load(directory)
    used = use_weights(model, directory, model.params.use)
    adapters.merge(model.net)
    config = checkpoint.read(directory)
    config |= {
        "weights": {"last": stored_weights(directory, model.params.use)[1]},
        "started_from": {**config["started_from"], "chosen_by": chosen_by(directory, model.params.use)},
        "merged": {"adapters": source["checkpoint"], "weights": used},
    }
    config["params"] |= {"use": "last", "lora": None}
    base = adapted.base_of(directory)
    parts = {**_components(base), **_components(directory)}
    checkpoint.save(output, config, model.net.state_dict(), weights=family.weights, parts=list(parts.values()))
    checkpoint.copy_terms(base, output)
    for name in (manifest.TRAINED_ON_FILE, manifest.EARLIER_ATTRIBUTION):
        if (directory / name).is_file():
            shutil.copyfile(directory / name, output / name)


def _components(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(directory.iterdir()) if (path / checkpoint.CONFIG).is_file()}
