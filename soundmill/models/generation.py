"""Sounds of a trained checkpoint of any family: for test clips, for prompts, and reconstructions of real sounds."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest
from soundmill.audio import figures
from soundmill.audio.flac import write_wav
from soundmill.audio.pieces import Sound, faded, window_starts, windows
from soundmill.audio.resample import resample_blocks, resampled_length
from soundmill.audio.tempo import BEATS
from soundmill.errors import UserError, report_failure
from soundmill.models import registry
from soundmill.models.catalog import (
    choose_balanced,
    choose_by_hash,
    durations_of,
    read_labels,
    read_left_out,
    track_sounds,
    waves_of,
)
from soundmill.models.family import Model, Request, Run, can, origin, require, use_weights
from soundmill.models.params import FamilyGenerateParams
from soundmill.models.requests import describe, of_clips, of_prompts, tell_labels
from soundmill.params import override
from soundmill.training.device import pick_device, use_threads

SHOWN = 12  # clips in a picture
TRACKED = 6  # clips sent to tracking
LONGEST_PROMPT = 300  # letters in the comment of a sound, of which libsndfile reads none of 2,048 bytes and more
OVERLAP_SECONDS = 0.1  # of the windows that a long sound is cut into
BATCHES_AT_ONCE = 4  # whose sounds are in memory before they are written


def run(
    family: str, params: FamilyGenerateParams, ctx: Any, model: Path, clips: Path, catalog: Path, generated: Path, codec: Path
) -> dict[str, Any]:
    """Write a sound for every chosen test clip, of its length, and the codec's real clips; returns metrics.

    A family that cannot generate is judged by its reconstructions of the test clips, and has no codec line.
    """
    use_threads(params.threads)
    kind = registry.family(family)
    trained = kind.load(model)
    used = ", ".join([use_weights(trained, model, params.use), *remarks_on(trained)])
    print(f"{ctx.name}: {used}", flush=True)
    labels = read_labels(catalog)
    wanted = choose_balanced(labels["test"], params.count)
    if not wanted:
        raise UserError(
            f"{catalog}: no test clip to generate for; raise splits.test_fraction or give the corpus a test split. Of a corpus too "
            "small for one the training is done: `soundmill generate` makes sounds of its checkpoint"
        )
    if params.count is not None and len(wanted) < params.count:
        print(f"{ctx.name}: {params.count} sounds are wanted, but there are {len(wanted)} test clips: one for each of them")

    def run_settings(progress: Callable[[int], Any]) -> Run:
        device = pick_device(params.accelerator)
        return Run(params.sampling, device, params.precision, params.batch_size, ctx.home, ctx.scratch, ctx.digests, progress)

    def write(directory: Path, sounds: Iterable[tuple[str, Tensor]]) -> float:
        """Returns the seconds of sound that were written."""
        directory.mkdir(parents=True)
        seconds = 0.0
        for clip_id, wave in sounds:
            write_wav(directory / f"{manifest.check_clip_id(clip_id)}.wav", wave.numpy(), trained.sample_rate)
            seconds += wave.shape[-1] / trained.sample_rate
        return seconds

    requests: dict[str, Request] = {}
    seconds = durations_of(clips, wanted)
    if can(trained, "generate"):
        _warn_of_cuts(ctx.name, trained, max(seconds.values()))
        requests = of_clips(trained, catalog, wanted, params.seed)
        lengths = {clip_id: round(seconds[clip_id] * trained.sample_rate) for clip_id in wanted}
        begun = time.monotonic()
        with ctx.progress(len(wanted), ctx.name) as tick:
            made = generate_each(trained, list(requests.values()), run_settings(tick))
            written = write(generated, ((clip_id, wave[:, : lengths[clip_id]]) for clip_id, wave in zip(wanted, made, strict=True)))
        ctx.cost["seconds_per_second"] = (time.monotonic() - begun) / written
        through = choose_balanced(labels[params.codec_split], params.codec_count) if can(trained, "reconstruct") else []
        if not through:
            print(f"{ctx.name}: no clip in split {params.codec_split!r}, or no codec: there is no codec line")
        with ctx.progress(len(through), f"{ctx.name}: codec") as tick:
            write(codec, reconstruct_each(trained, waves_of(clips, set(through)), run_settings(tick)))
    else:
        through = []
        with ctx.progress(len(wanted), f"{ctx.name}: reconstruct") as tick:
            write(generated, reconstruct_each(trained, waves_of(clips, set(wanted)), run_settings(tick), whole=True))
        codec.mkdir(parents=True)
    strangers = choose_by_hash(read_left_out(catalog), params.transfers)
    if strangers:
        write(codec / manifest.TRANSFERRED, _transferred(trained, waves_of(clips, set(strangers)), run_settings(lambda n: None)))
    about = {
        **origin(model),
        "made_by": "generate" if requests else "reconstruct",
        "weights": used,
        "trained_against": [*kind.trained_against, *getattr(trained, "trained_against", ())],
        "loops": kind.loops,
    }
    (generated / manifest.ABOUT_SOUNDS).write_text(json.dumps(about, sort_keys=True) + "\n", encoding="utf-8")

    its_labels = {clip_id: labels["test"][clip_id] for clip_id in wanted}

    def show_spectrograms() -> None:
        shown = choose_balanced(its_labels, SHOWN)
        titles = [describe(requests.get(clip_id, Request())) or clip_id for clip_id in shown]
        paths = [generated / f"{clip_id}.wav" for clip_id in shown]
        ctx.tracking.log_figure(figures.draw_files(paths, titles, 4, about["made_by"]), "generated_spectrograms")

    ctx.show("the spectrograms", show_spectrograms)
    ctx.show("the sounds to hear", partial(track_sounds, ctx, clips, choose_balanced(its_labels, TRACKED), generated))
    conditioned = sum(bool(describe(request)) for request in requests.values())
    return {"generated": len(wanted), "conditioned": conditioned, "codec": len(through), "threads": params.threads}


def _transferred(model: Model, sounds: Iterable[tuple[str, tuple[np.ndarray, int]]], run: Run) -> Iterator[tuple[str, Tensor]]:
    """Each sound's beginning as the model takes it (`NAME-input`), and what the model makes of it (`NAME`)."""
    for name, (wave, rate) in sounds:
        given = torch.from_numpy(as_model_takes(wave, rate, model))[:, : model.num_samples]
        yield f"{name}{manifest.INPUT}", given
        yield name, finite(model.transform(given[None], [Request()], run), run)[0]


def remarks_on(model: Model) -> list[str]:
    """What else reports say of a checkpoint."""
    return [model.remark] if hasattr(model, "remark") else []


def _warn_of_cuts(name: str, model: Model, longest: float) -> None:
    if model.num_samples is not None and longest > (makes := model.num_samples / model.sample_rate):
        print(f"{name}: the model makes {makes:g} s, the longest clip has {longest:g} s: longer clips get the model's length")


def generate_each(model: Model, requests: Sequence[Request], run: Run) -> Iterator[Tensor]:
    """A wave [C, T] for each request, a few batches in memory at once; one that is not finite is a UserError."""
    size = run.batch_size * BATCHES_AT_ONCE
    for start in range(0, len(requests), size):
        yield from finite(model.generate(requests[start : start + size], run), run)


def reconstruct_each(
    model: Model, sounds: Iterable[tuple[str, tuple[np.ndarray, int]]], run: Run, whole: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """(name, wave [C, T]) of (name, (wave [C, T] at a rate, that rate)): through the model's representation and back.

    A wave is brought to the model's rate and channels first. One that is longer than the model makes is cut, or goes through
    `whole`, in windows.
    """
    quietly = replace(run, progress=lambda n: None)  # progress is counted here, in sounds
    for name, (wave, rate) in sounds:
        fitted = torch.from_numpy(as_model_takes(wave, rate, model))
        fitted = fitted if whole else fitted[:, : model.num_samples]
        yield name, in_windows(lambda part, start: finite(model.reconstruct(part, quietly), quietly), fitted, model)
        run.progress(1)


def finite(waves: Tensor, run: Run) -> Tensor:
    """The waves; UserError where one is not finite."""
    if not torch.isfinite(waves).all():
        raise UserError(
            f"the model's sounds are not finite with {run.sampling}; choose a gentler sampling, or retrain with `dvc repro`"
        )
    return waves


def as_model_takes(wave: np.ndarray, rate: int, model: Model) -> np.ndarray:
    """A wave [C, T] at the model's rate and with its channels: the mean of all, or one doubled, where their numbers differ."""
    none = np.zeros((model.channels, 0), np.float32)
    return np.concatenate([none, *_fitted([wave.T], rate, model)], 1)


def read_as_model_takes(sound: Sound, model: Model) -> Iterator[Tensor]:
    """The same of a recording, in blocks [C, n]."""
    return map(torch.from_numpy, _fitted(sound.blocks(), sound.sample_rate, model))


def length_as_model_takes(sound: Sound, model: Model) -> int:
    return resampled_length(sound.num_samples, sound.sample_rate, model.sample_rate)


def _fitted(blocks: Iterable[np.ndarray], rate: int, model: Model) -> Iterator[np.ndarray]:
    """Blocks [n, channels] of any channels as float32 [C, n] of the model's rate and channels."""

    def with_channels() -> Iterator[np.ndarray]:
        for block in blocks:
            if block.shape[1] != model.channels:
                block = np.repeat(block.mean(1, keepdims=True), model.channels, axis=1)
            yield block[:, 0] if model.channels == 1 else block

    for block in resample_blocks(with_channels(), rate, model.sample_rate, model.channels):
        yield np.ascontiguousarray(block.reshape(len(block), -1).T, np.float32)


def overlap_of(model: Model) -> int:
    """Samples that windows of what the model makes share."""
    return 0 if model.num_samples is None else min(round(OVERLAP_SECONDS * model.sample_rate), model.num_samples // 4)


def through_windows(work: Callable[[Tensor, int], Tensor], blocks: Iterable[Tensor], length: int, model: Model) -> Iterator[Tensor]:
    """`work` ([1, C, T] from a sample on → [1, C, T]) over blocks [C, n] of a sound, in windows of what the model makes.

    They are crossfaded linearly; what is done comes out in blocks.
    """
    size, overlap = model.num_samples or length, overlap_of(model)
    cut = windows(blocks, window_starts(length, size, overlap), size)
    return faded(((start, work(part[None], start)[0]) for start, part in cut), overlap, length)


def in_windows(work: Callable[[Tensor, int], Tensor], wave: Tensor, model: Model) -> Tensor:
    """The same over a wave [C, T] of any length, at once."""
    return torch.cat(list(through_windows(work, [wave], wave.shape[1], model)), 1)


# Of waves [C, T] at a rate, and the prompt of each ("" without): the places of those that are kept.
Choice = Callable[[list[str], list[np.ndarray], int], list[int]]


@dataclass(frozen=True)
class Looped:
    """How loops of one bar are written: at `bpm` beats a minute (None: as they are), `repeat` times over.

    `stretch` takes a loop [C, T], its rate and the number of samples that it is to have: models know no ffmpeg.
    """

    bpm: float | None
    repeat: int
    stretch: Callable[[np.ndarray, int, int], np.ndarray]

    def write(self, path: Path, wave: np.ndarray, rate: int, facts: dict[str, Any]) -> Path:
        """Write a loop; its tempo is in the name, which is returned, and where samplers and sequencers look for it."""
        bpm = self.bpm or natural_tempo(wave.shape[1], rate)
        if self.bpm is not None:
            wave = self.stretch(wave, rate, round(60 * BEATS * rate / bpm))
        wave = np.tile(wave / max(1.0, float(np.abs(wave).max())), self.repeat)  # stretched, it may be louder than full scale
        path = path.with_name(f"{path.stem}-{bpm:g}bpm{path.suffix}")
        comment = json.dumps({**facts, "bpm": bpm, "bars": self.repeat}, ensure_ascii=False)
        write_wav(path, wave, rate, comment, tempo=(bpm, BEATS * self.repeat))
        return path


def _unstretched(wave: np.ndarray, rate: int, num_samples: int) -> np.ndarray:
    raise ValueError("a loop as it is made has its own tempo")


AS_MADE = Looped(None, 1, _unstretched)


def natural_tempo(num_samples: int, rate: int) -> float:
    """Beats a minute of a loop of one bar, to the thousandth."""
    return round(60 * BEATS * rate / num_samples, 3)


def keep_all(prompts: list[str], waves: list[np.ndarray], sample_rate: int) -> list[int]:
    return list(range(len(prompts)))


def generate_sounds(
    checkpoint_dir: Path,
    prompts: Sequence[str],
    count: int,
    seed: int,
    output_dir: Path,
    home: Path,
    settings: Sequence[str] = (),
    choose: Choice = keep_all,
    looped: Looped | None = None,
) -> list[Path]:
    """Make `count` sounds of `prompts` (requests.of_prompts) with a trained checkpoint of any family that generates.

    Writes WAVs, with the prompt and settings in their comments, and a picture, `spectrograms.png`, into `output_dir`, which is made
    before any sound is; returns the WAVs. `home` is where relative paths of text encoders start. `settings` (`num_steps=50`)
    replace the checkpoint's own sampling. `choose` selects the sounds to write; it changes neither their content nor their names.
    `looped` is for a family of loops alone: another one is a UserError.
    """
    model, whose = load(checkpoint_dir, "generate")
    if registry.family(whose["family"]).loops:
        looped = looped or AS_MADE
    elif looped:
        raise UserError(f"--bpm and --repeat are for loops, and the family {whose['family']!r} makes none; leave them out")
    requests = of_prompts(model, prompts, count, seed)
    tell_labels(model, prompts)
    make_directory(output_dir)
    with running(model, home, settings) as run:
        waves = [wave.numpy() for wave in generate_each(model, requests, run)]
    descriptions = [describe(request) for request in requests]
    kept = choose(descriptions, waves, model.sample_rate)
    sampling = run.sampling.model_dump(mode="json")
    paths = []
    for index in kept:
        prompt = descriptions[index]
        path = output_dir / f"{_stem(prompt)}-{seed}-{index + 1:03d}.wav"
        prompt = prompt if len(prompt) <= LONGEST_PROMPT else prompt[: LONGEST_PROMPT - 1] + "…"
        facts = {**whose, "prompt": prompt, "seed": seed, "number": index + 1, "sampling": sampling}
        if looped:
            path = looped.write(path, waves[index], model.sample_rate, facts)
        else:
            write_wav(path, waves[index], model.sample_rate, json.dumps(facts, ensure_ascii=False))
        paths.append(path)
    titles = [descriptions[index] or path.stem for index, path in zip(kept, paths, strict=True)]
    draw(paths, titles, min(4, len(paths)), whose["family"], output_dir / "spectrograms.png")
    return paths


def draw(paths: Sequence[Path], titles: list[str], columns: int, heading: str, picture: Path) -> None:
    """A picture of the spectrograms of sounds; what goes wrong with it is said, and loses no sound."""
    with report_failure(str(picture)):
        figures.save_png(figures.draw_files(paths, titles, columns, heading), picture)


def load(checkpoint_dir: Path, what: Any) -> tuple[Model, dict[str, str]]:
    """A checkpoint's model, which can do this, with the weights that its training says to use; and what tells it from others."""
    whose = origin(checkpoint_dir)
    model = registry.family(whose["family"]).load(checkpoint_dir)
    require(model, what, whose["family"])
    used = ", ".join([use_weights(model, checkpoint_dir, model.params.use), *remarks_on(model)])
    return model, {**whose, "weights": used}


def make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: no sound can be written there ({error.strerror}); name another directory") from None


@contextmanager
def running(model: Model, home: Path, settings: Sequence[str] = ()) -> Iterator[Run]:
    """A `Run` by the checkpoint's own sampling, with `settings` in place of some of it; its scratch is gone at the end."""
    params = model.params
    sampling = override(params.sampling, settings, "sampling")
    use_threads(params.hardware.threads)
    device, precision = pick_device("auto"), params.hardware.precision
    if precision == "fp16" and device.type == "cpu":
        print("trained in fp16, which wants a GPU: sounds are made in 32 bits here")
        precision = "32"
    with tempfile.TemporaryDirectory(prefix="soundmill-") as folder:
        yield Run(sampling, device, precision, params.items, home, Path(folder))


def _stem(prompt: str) -> str:
    """The prompt as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-") or "sound"
