"""Generate sounds with a checkpoint of any family, for test clips or prompts, and reconstruct real sounds."""

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from soundmill import disk, manifest, shards, terminal
from soundmill.audio import figures
from soundmill.audio.flac import write_wav
from soundmill.audio.tags import CHANGED, GENERATED, MadeBy, SourceType
from soundmill.audio.tempo import BEATS
from soundmill.errors import UserError, report_failure
from soundmill.models import adapted, family, registry
from soundmill.models import catalog as catalogs
from soundmill.models.family import Command, Model, Request, Run, can, chosen_by, made_by, origin, use_weights
from soundmill.models.params import FamilyGenerateParams
from soundmill.models.sounds import (
    as_long_as_clip,
    describe,
    finite,
    generate_each,
    in_model_format,
    of_clips,
    of_prompts,
    print_matched_labels,
    reconstruct_each,
)
from soundmill.params import changed, override, refuse
from soundmill.training import checkpoint
from soundmill.training.device import pick_device, use_threads
from soundmill.training.params import Use
from soundmill.training.seeds import seed_of

SHOWN = 12  # clips in the figure
TRACKED = 6  # clips sent to tracking
OWN_SOUNDS = 24  # for the base's own prompts, of each model
EVERYDAY = (  # prompts for a base that was imported, whose own are unknown
    "a dog barks",
    "a cat meows",
    "birds sing in a forest",
    "rain falls on a roof",
    "waves break on a beach",
    "a door is knocked on",
    "a car engine starts",
    "a clock ticks",
    "people talk in a room",
    "a baby cries",
    "a piano plays a slow melody",
    "a drum beat",
)
LONGEST_PROMPT = 300  # characters stored in a WAV comment: libsndfile ignores comments of 2,048 bytes or more


@dataclass(frozen=True)
class Settings:
    """How the stage calls a model; plain values that other processes can unpickle."""

    params: FamilyGenerateParams
    sampling: Any  # the checkpoint's, changed by the params
    home: Path
    scratch: Path
    digests: Path
    origin: dict[str, str]  # of the checkpoint

    def maker(self, kind: SourceType) -> MadeBy:
        return made_by(self.origin, kind)

    def run(self, progress: Callable[[int], Any] = lambda n: None) -> Run:
        params = self.params
        device = pick_device(params.accelerator)
        return Run(self.sampling, device, params.precision, params.batch_size, self.home, self.scratch, self.digests, progress)


def run(
    params: FamilyGenerateParams, ctx: Any, model: Path, clips: Path, catalog: Path, generated: Path, codec: Path
) -> dict[str, Any]:
    """Write a sound as long as each chosen test clip, and the codec's reconstructions of real clips; returns metrics.

    A family that cannot generate reconstructs the test clips instead, and has no codec line.
    """
    use_threads(params.threads)
    loaded = read(model, params.use)
    kind, trained, facts = registry.family(ctx.family), loaded.model, loaded.facts
    terminal.say(f"{ctx.name}: {facts['weights']}")
    settings = Settings(params, params.sampling_of(trained.params, ctx.family), ctx.home, ctx.scratch, ctx.digests, facts)
    labels = catalogs.read_labels(catalog)
    judged = _judged(params, ctx, labels)
    requests: dict[str, Request] = {}
    codec_ids: list[str] = []
    if can(trained, "generate"):
        seconds = catalogs.durations_of(clips, judged)
        longest, limit = max(seconds.values()), (trained.num_samples or math.inf) / trained.sample_rate
        if longest > limit and not kind.longer:
            cut = f"the longest clip has {longest:g} s, but the model's limit is {limit:g} s: sounds for longer clips are cut"
            terminal.say(f"{ctx.name}: {cut}")
        requests = of_clips(trained, catalog, list(judged), params.seed)
        lengths = {clip_id: round(seconds[clip_id] * trained.sample_rate) for clip_id in judged}
        _generate(ctx, trained, model, requests, lengths, settings, generated)
        codec_ids = _write_codec_line(ctx, trained, clips, labels, settings, codec)
        _write_base(ctx, trained, model, catalog, lengths, settings, codec)
    else:
        with ctx.progress(len(judged), f"{ctx.name}: reconstruct") as tick:
            sounds = reconstruct_each(trained, catalogs.waves_of(clips, set(judged)), settings.run(tick), whole=True)
            _write(generated, sounds, trained.sample_rate, settings.maker(CHANGED))
        codec.mkdir(parents=True)
    if left_out := catalogs.choose_by_hash(catalogs.read_left_out(catalog), params.transfers):
        sounds = _transferred(trained, catalogs.waves_of(clips, set(left_out)), settings.run())
        _write(codec / manifest.TRANSFERRED, sounds, trained.sample_rate, settings.maker(CHANGED))
    about = {
        **facts,
        "made_by": "generate" if requests else "reconstruct",
        "trained_against": list(getattr(trained, "trained_against", ())),
        "chosen_by": chosen_by(model, params.use),
        "loops": kind.loops,
    }
    (generated / manifest.ABOUT_SOUNDS).write_text(json.dumps(about, sort_keys=True) + "\n", encoding="utf-8")
    ctx.show("the spectrograms", partial(_show_spectrograms, ctx, judged, requests, generated, about["made_by"]))
    ctx.show("the sounds to hear", partial(catalogs.track_sounds, ctx, clips, catalogs.choose_balanced(judged, TRACKED), generated))
    conditioned = sum(bool(describe(request)) for request in requests.values())
    return {"generated": len(judged), "conditioned": conditioned, "codec": len(codec_ids), "threads": params.threads}


def _judged(params: FamilyGenerateParams, ctx: Any, labels: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    """The clips to make sounds for, with their labels: `count` of the test split, or of another if it is too small."""
    split = manifest.judged_split(split for split, found in labels.items() for _ in found)
    clip_ids = catalogs.choose_balanced(labels[split], params.count)
    if split != "test":
        terminal.say(f"{ctx.name}: {len(labels['test'])} test clips, so sounds are for {split} clips; stage splits says what helps")
    if params.count is not None and len(clip_ids) < params.count:
        terminal.say(f"{ctx.name}: only {len(clip_ids)} {split} clips, so {len(clip_ids)} sounds instead of {params.count}")
    return {clip_id: labels[split][clip_id] for clip_id in clip_ids}


def _generate(
    ctx: Any,
    trained: Model,
    model: Path,
    requests: Mapping[str, Request],
    lengths: Mapping[str, int],
    settings: Settings,
    generated: Path,
) -> None:
    """Write the sound of each request, in as many processes as have a batch to make, and measure the speed."""
    start, clip_ids, size = time.monotonic(), list(requests), settings.params.batch_size
    processes = min(ctx.devices or _processes(settings.params, ctx.workers), math.ceil(len(clip_ids) / size))
    if processes == 1:
        with ctx.progress(len(requests), ctx.name) as tick:
            samples = _write_generated(trained, requests, lengths, settings.run(tick), generated, settings.maker(GENERATED))
        seconds = time.monotonic() - start
    else:
        jobs = []  # each makes a whole batch, as one process would: same bytes
        for batch in (clip_ids[first : first + size] for first in range(0, len(clip_ids), size)):
            wanted, cut = ({clip_id: one[clip_id] for clip_id in batch} for one in (requests, lengths))
            jobs.append(shards.Job(f"{len(jobs):06d}", (model, wanted, cut, settings), len(batch)))
        shared = replace(ctx, workers=processes, cluster=None)
        report, directory = shared.make_shards(_generate_batch, jobs, "generated")
        generated.mkdir(parents=True)
        for path in sorted(directory.glob("*/*.wav")):
            os.link(path, generated / path.name)  # not moved: after a kill here, the rerun still finds every finished batch
        samples, seconds = report.counts["samples"], report.counts["milliseconds"] / 1000
    ctx.cost["seconds_per_second"] = seconds * trained.sample_rate / samples


def _processes(params: FamilyGenerateParams, cores: int) -> int:
    """As many as a CPU has cores and memory for: each may need twice what this one does, which has loaded the model."""
    if pick_device(params.accelerator).type != "cpu":
        return 1
    return max(1, min(cores // params.threads, psutil.virtual_memory().available // (2 * psutil.Process().memory_info().rss)))


def _write_codec_line(
    ctx: Any, trained: Model, clips: Path, labels: dict[str, dict[str, list[str]]], settings: Settings, codec: Path
) -> list[str]:
    """Write real clips through the model's codec; returns their ids, none if it has no codec."""
    params = settings.params
    clip_ids = catalogs.choose_balanced(labels[params.codec_split], params.codec_count) if can(trained, "reconstruct") else []
    if len(clip_ids) < 2:
        terminal.say(f"{ctx.name}: fewer than two clips in split {params.codec_split!r}, or no codec: no codec line")
    with ctx.progress(len(clip_ids), f"{ctx.name}: codec") as tick:
        coded = reconstruct_each(trained, catalogs.waves_of(clips, set(clip_ids)), settings.run(tick))
        _write(codec, coded, trained.sample_rate, settings.maker(CHANGED))
    return clip_ids


def _write_base(
    ctx: Any, trained: Model, model: Path, catalog: Path, lengths: Mapping[str, int], settings: Settings, codec: Path
) -> None:
    """Write the sounds of the model that a fine-tuned one started from; nothing for another model.

    They are `base/<clip id>.wav` for each clip of `lengths` (in samples) and, for the base's own prompts, `<number>.wav` in
    `own/base`, `own/again` (the base with other seeds) and `own/tuned`. A base whose checkpoint names no prompts gets others, as
    long as the longest clip (EVERYDAY, or its labels), which are listed in `own/prompts.json`.
    """
    if (where := base_of(ctx.name, model, ctx.home)) is None:
        return
    loaded, seed, own = read(where), settings.params.seed, codec / manifest.OWN
    base, base_made = loaded.model, made_by(loaded.facts, GENERATED)
    with ctx.progress(len(lengths) + 3 * OWN_SOUNDS, f"{ctx.name}: base") as tick:
        run = settings.run(tick)
        _write_generated(base, of_clips(base, catalog, list(lengths), seed), lengths, run, codec / manifest.BASE, base_made)
        prompts, seconds = checkpoint.read(where).get("prompts"), None
        if not prompts:
            captions, labels = (EVERYDAY, []) if base.condition == "caption" else ([""], [[label] for label in base.labels])
            prompts = [{"labels": one, "caption": caption} for caption in captions for one in labels or [[]]]
            seconds = max(lengths.values()) / trained.sample_rate
            listed = [text for prompt in prompts if (text := describe(Request(tuple(prompt["labels"]), prompt["caption"])))]
            own.mkdir()
            (own / manifest.OWN_PROMPTS).write_text(json.dumps({"prompts": listed}) + "\n", encoding="utf-8")
        for name, maker in (("base", base), ("again", base), ("tuned", trained)):
            requests = [
                Request(tuple(prompt["labels"]), prompt["caption"], seed_of(seed, "own", name == "again", number), seconds=seconds)
                for number in range(OWN_SOUNDS)
                for prompt in [prompts[number % len(prompts)]]
            ]
            waves = zip((f"{number:03d}" for number in range(OWN_SOUNDS)), generate_each(maker, requests, run), strict=True)
            _write(own / name, waves, maker.sample_rate, settings.maker(GENERATED) if maker is trained else base_made)


def base_of(name: str, directory: Path, home: Path) -> Path | None:
    """The checkpoint that a model was fine-tuned from; None if it was not, or, with a message, if that one is gone."""
    started = checkpoint.read(directory).get("started_from")
    if started is None:
        return None
    if adapted.are_in(directory):
        return adapted.base_of(directory)
    where = home / checkpoint.read(directory)["params"]["start_from"]
    if (where / checkpoint.CONFIG).is_file() and origin(where)["checkpoint"] == started["checkpoint"]:
        return where
    terminal.say(f"{name}: {where} is missing or another model than this one started from, so the two are not compared")
    return None


def _show_spectrograms(
    ctx: Any, judged: dict[str, list[str]], requests: Mapping[str, Request], generated: Path, heading: str
) -> None:
    shown = catalogs.choose_balanced(judged, SHOWN)
    titles = [describe(requests.get(clip_id, Request())) or clip_id for clip_id in shown]
    paths = [generated / f"{clip_id}.wav" for clip_id in shown]
    ctx.tracking.log_figure(figures.draw_files(paths, titles, 4, heading), "generated_spectrograms")


def _generate_batch(
    model: Path, requests: Mapping[str, Request], lengths: Mapping[str, int], settings: Settings, output: Path
) -> shards.Report:
    trained = _loaded(model, settings.params.use, settings.params.threads)
    own = replace(settings, scratch=settings.scratch / f"process-{os.getpid()}")
    report, start = shards.Report(), time.monotonic()
    report.count("samples", _write_generated(trained, requests, lengths, own.run(), output, settings.maker(GENERATED)))
    report.count("milliseconds", round(1000 * (time.monotonic() - start)))
    return report


@lru_cache(maxsize=1)
def _loaded(directory: Path, use: Use, threads: int) -> Model:
    """Load a checkpoint, once per process."""
    use_threads(threads)
    return read(directory, use).model


def _write_generated(
    model: Model, requests: Mapping[str, Request], lengths: Mapping[str, int], run: Run, directory: Path, made_by: MadeBy
) -> int:
    """Write the sound of each request (clip id → request), cut to its length in samples; returns the number of samples.

    A sound that is shorter because the request's was is padded with silence, up to the model's length.
    """
    waves = zip(requests, generate_each(model, list(requests.values()), run), strict=True)
    cut = ((clip_id, as_long_as_clip(wave, lengths[clip_id], model)) for clip_id, wave in waves)
    return _write(directory, cut, model.sample_rate, made_by)


def _write(directory: Path, sounds: Iterable[tuple[str, Tensor]], sample_rate: int, made_by: MadeBy) -> int:
    directory.mkdir(parents=True)
    samples = 0
    for name, wave in sounds:
        maker = None if name.endswith(manifest.INPUT) else made_by
        write_wav(directory / f"{manifest.check_clip_id(name)}.wav", wave.numpy(), sample_rate, made_by=maker)
        samples += wave.shape[-1]
    return samples


def _transferred(model: Model, sounds: Iterable[tuple[str, tuple[np.ndarray, int]]], run: Run) -> Iterator[tuple[str, Tensor]]:
    """The start of each sound at the model's rate and channels (`NAME-input`), and the transformed sound (`NAME`)."""
    for name, (wave, rate) in sounds:
        source = torch.from_numpy(in_model_format(wave, rate, model))[:, : model.num_samples]
        yield f"{name}{manifest.INPUT}", source
        yield name, finite(model.transform(source[None], [Request()], run), run)[0]


# (prompts ("" if none), waves [C, T], rate) → indices of the sounds to keep.
Choice = Callable[[list[str], list[np.ndarray], int], list[int]]


@dataclass(frozen=True)
class Looped:
    """How loops of one bar are written: at `bpm` beats per minute (None: unstretched), repeated `repeat` times.

    `stretch` takes a loop [C, T], its rate and the desired number of samples; it is passed in because models may not use ffmpeg.
    """

    bpm: float | None = None
    repeat: int = 1
    stretch: Callable[[np.ndarray, int, int], np.ndarray] | None = None

    def write(self, path: Path, wave: np.ndarray, rate: int, facts: dict[str, Any], made_by: MadeBy) -> Path:
        """Write a loop; its tempo goes into the file name and the chunk that samplers read. Returns the path."""
        bpm = self.bpm or natural_tempo(wave.shape[1], rate)
        if self.bpm is not None:
            wave = self.stretch(wave, rate, round(60 * BEATS * rate / bpm))
        wave = np.tile(wave / max(1.0, float(np.abs(wave).max())), self.repeat)  # stretching may exceed full scale
        path = path.with_name(f"{path.stem}-{bpm:g}bpm{path.suffix}")
        comment = json.dumps({**facts, "bpm": bpm, "bars": self.repeat}, ensure_ascii=False)
        write_wav(path, wave, rate, comment, (bpm, BEATS * self.repeat), made_by)
        return path


def natural_tempo(num_samples: int, rate: int) -> float:
    """Beats per minute of a loop of one bar, rounded to 0.001."""
    return round(60 * BEATS * rate / num_samples, 3)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory, taken instead of its directory; `facts` are its origin and its weights."""

    model: Model
    facts: dict[str, str]


def generate_sounds(
    checkpoint: Path | Loaded,
    prompts: Sequence[str],
    count: int,
    seed: int,
    output_dir: Path,
    home: Path,
    settings: Sequence[str] = (),
    choose: Choice | None = None,
    looped: Looped | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    labels: Sequence[str] = (),
) -> list[Path]:
    """Generate `count` sounds from `prompts` and `labels` (see requests.of_prompts) with a checkpoint of any family that generates.

    Writes WAVs, with prompt and settings in their comments, and `spectrograms.png` into `output_dir`, which is created before
    sampling starts; returns the paths of the WAVs. Relative paths of text encoders start at `home`. `settings` (`num_steps=50`)
    override the checkpoint's sampling. `choose` selects the sounds to write (None: all); their content and names stay the same.
    `looped` is for loop families only: UserError for any other. `loras` are directories of adapters of this checkpoint, and shares.
    """
    model, source_facts = load(checkpoint, "generate")
    added = {"lora": family.add_adapters(model, source_facts["checkpoint"], loras)} if loras else {}
    if registry.family(source_facts["family"]).loops:
        looped = looped or Looped()
    elif looped:
        raise UserError(f"--bpm and --repeat are for loop families, which {source_facts['family']!r} is not; leave them out")
    if any(setting.startswith("psi=") for setting in settings) and not hasattr(model.params.sampling, "psi"):
        raise UserError(f"psi is for GANs, which {source_facts['family']!r} is not; leave it out")
    refuse(settings, *({"amount", "keep", "resamples"} & type(model.params.sampling).model_fields.keys()))
    requests = of_prompts(model, prompts, count, seed, labels)
    print_matched_labels(model, prompts, labels)
    with running(model, home, settings) as run:
        disk.make_directory(output_dir)
        waves = [wave.numpy() for wave in generate_each(model, requests, run)]
    descriptions = [describe(request) for request in requests]
    kept = choose(descriptions, waves, model.sample_rate) if choose else range(len(waves))
    sampling, maker = run.sampling.model_dump(mode="json"), made_by(source_facts, GENERATED)
    paths = []
    for index in kept:
        prompt = descriptions[index]
        stem = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-") or "sound"
        path = output_dir / f"{stem}-{seed}-{index + 1:03d}.wav"
        prompt = prompt if len(prompt) <= LONGEST_PROMPT else prompt[: LONGEST_PROMPT - 1] + "…"
        facts = {**source_facts, **added, "prompt": prompt, "seed": seed, "number": index + 1, "sampling": sampling}
        if looped:
            path = looped.write(path, waves[index], model.sample_rate, facts, maker)
        else:
            write_wav(path, waves[index], model.sample_rate, json.dumps(facts, ensure_ascii=False), made_by=maker)
        paths.append(path)
    titles = [descriptions[index] or path.stem for index, path in zip(kept, paths, strict=True)]
    draw(paths, titles, min(4, len(paths)), source_facts["family"], output_dir / "spectrograms.png")
    return paths


def draw(paths: Sequence[Path], titles: list[str], columns: int, heading: str, picture: Path) -> None:
    """Draw the spectrograms of sound files into `picture`; a failure is reported but not raised."""
    with report_failure(str(picture)):
        figures.save_png(figures.draw_files(paths, titles, columns, heading), picture)


def load(checkpoint: Path | Loaded, command: Command) -> tuple[Model, dict[str, str]]:
    """The model of a checkpoint, and its origin; UserError if it cannot do what the command asks."""
    loaded = checkpoint if isinstance(checkpoint, Loaded) else read(checkpoint)
    family.require(loaded.model, command, loaded.facts["family"])
    return loaded.model, loaded.facts


def read(checkpoint_dir: Path, use: Use | None = None) -> Loaded:
    """A checkpoint with the weights `use`, or those that its params select."""
    source_facts = origin(checkpoint_dir)
    model = registry.family(source_facts["family"]).load(checkpoint_dir)
    used = use_weights(model, checkpoint_dir, use or model.params.use)
    remark = f", {model.remark}" if hasattr(model, "remark") else ""
    return Loaded(model, {**source_facts, "weights": used + remark})


@contextmanager
def running(model: Model, home: Path, settings: Sequence[str] = ()) -> Iterator[Run]:
    """A `Run` with the checkpoint's sampling, overridden by `settings`; its scratch directory is deleted on exit."""
    params = model.params
    chosen = override(params.sampling, settings, "sampling").model_dump(mode="json")
    sampling = changed(params, {"sampling": chosen}, "--set").sampling
    use_threads(params.hardware.threads)
    device, precision = pick_device("auto"), params.hardware.precision
    if precision == "fp16" and device.type == "cpu":
        terminal.say("trained in fp16, which needs a GPU; using 32 bits")
        precision = "32"
    with tempfile.TemporaryDirectory(prefix="soundmill-") as folder:
        yield Run(sampling, device, precision, params.items, home, Path(folder))
