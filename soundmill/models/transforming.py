"""Recordings through a trained checkpoint of any family that can: reconstructed, restyled, inpainted, upsampled, interpolated."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill.audio.flac import write_wav
from soundmill.errors import UserError
from soundmill.models.family import Capability, Model, Request, Run
from soundmill.models.generation import as_model_takes, draw, finite, in_windows, load, make_directory, running
from soundmill.models.requests import of_prompts
from soundmill.training.seeds import seed_of

SHOWN = 12  # of many recordings, in the picture

Sounds = Mapping[str, tuple[np.ndarray, int]]  # by name: wave [C, T], its rate
Spans = Sequence[tuple[float, float | None]]  # seconds; None: to the end


@dataclass(frozen=True)
class Asked:
    """How recordings are to sound, and the seed."""

    prompts: Sequence[str] = ()
    seed: int = 0

    def request(self, model: Model, *key: Any) -> Request:
        """What is asked for, with a seed of its own for `key`."""
        wanted = of_prompts(model, self.prompts, 1, self.seed)[0] if self.prompts else Request()
        return replace(wanted, seed=seed_of(self.seed, *key))


def reconstruct(checkpoint: Path, sounds: Sounds, output: Path, home: Path, settings: Sequence[str] = ()) -> list[Path]:
    """Send sounds through a checkpoint's representation and back."""

    def work(model: Model, run: Run, name: str, wave: Tensor) -> Tensor:
        return in_windows(lambda part, start: finite(model.reconstruct(part, run), run), wave, model)

    return _each(checkpoint, "reconstruct", "reconstructed", work, sounds, output, home, settings)


def restyle(checkpoint: Path, sounds: Sounds, asked: Asked, output: Path, home: Path, settings: Sequence[str] = ()) -> list[Path]:
    """Noise sounds and sample them from there, by the setting `amount`; a family that has none is a UserError."""

    def work(model: Model, run: Run, name: str, wave: Tensor) -> Tensor:
        def window(part: Tensor, start: int) -> Tensor:
            return finite(model.transform(part, [asked.request(model, name, start)], run), run)

        return in_windows(window, wave, model)

    def check(model: Model) -> None:
        _must_have(model, "amount", "restyle")
        asked.request(model)

    about = {"seed": asked.seed, "prompts": list(asked.prompts)}
    return _each(checkpoint, "transform", "restyled", work, sounds, output, home, settings, check, **about)


def inpaint(
    checkpoint: Path, sounds: Sounds, keep: Spans, asked: Asked, output: Path, home: Path, settings: Sequence[str] = ()
) -> list[Path]:
    """Make all but the spans `keep` of each sound anew; what is kept is the sound as the model takes it, sample by sample.

    A span that lies outside one of them is a UserError before anything is written.
    """

    def work(model: Model, run: Run, name: str, wave: Tensor) -> Tensor:
        spans = in_samples(keep, model.sample_rate, wave.shape[1], name)
        kept = torch.zeros(wave.shape[1], dtype=torch.bool)
        for begin, end in spans:
            kept[begin:end] = True

        def window(part: Tensor, start: int) -> Tensor:
            length = part.shape[2]
            within = [[max(begin - start, 0), min(end - start, length)] for begin, end in spans]
            sampling = run.sampling.model_copy(update={"keep": [[begin, end] for begin, end in within if begin < end]})
            its = replace(run, sampling=sampling)
            return finite(model.transform(part, [asked.request(model, name, start)], its), its)

        return torch.where(kept, wave, in_windows(window, wave, model))

    def check(model: Model) -> None:
        _must_have(model, "keep", "inpaint")
        asked.request(model)
        for name, (wave, rate) in sounds.items():
            in_samples(keep, rate, wave.shape[1], name)

    about = {"seed": asked.seed, "prompts": list(asked.prompts), "kept_seconds": [list(span) for span in keep]}
    return _each(checkpoint, "transform", "inpainted", work, sounds, output, home, settings, check, **about)


def upsample(checkpoint: Path, sounds: Sounds, output: Path, home: Path, settings: Sequence[str] = ()) -> list[Path]:
    """Bring sounds of a low rate to the model's, with the band that they lack; a family that does not is a UserError."""

    def work(model: Model, run: Run, name: str, wave: Tensor) -> Tensor:
        def window(part: Tensor, start: int) -> Tensor:
            return finite(model.transform(part, [Request(seed=seed_of(run.sampling.seed, name, start))], run), run)

        return in_windows(window, wave, model)

    def check(model: Model) -> None:
        if "factor" not in type(model.params).model_fields:
            raise UserError("this family cannot upsample: take a checkpoint of `upsampler`")
        low = model.sample_rate / model.params.factor
        for name, (_, rate) in sounds.items():
            if rate > low:
                print(f"{name}: has {rate} Hz; what is above {low / 2:g} Hz in it is made anew")

    return _each(checkpoint, "transform", "upsampled", work, sounds, output, home, settings, check)


def interpolate(
    checkpoint: Path,
    seeds: tuple[int, int],
    sounds: Sounds,
    steps: int,
    asked: Asked,
    output: Path,
    home: Path,
    settings: Sequence[str] = (),
) -> list[Path]:
    """Write `steps` sounds on the way between two seeds, or between two sounds, `00.wav` to the last; returns them.

    Of sounds that are longer than the model makes it takes the beginning.
    """
    model, whose = load(checkpoint, "interpolate")
    wanted = asked.request(model)
    make_directory(output)
    shares = [step / (steps - 1) for step in range(steps)]
    ends = replace(wanted, seed=seed_of(seeds[0])), replace(wanted, seed=seed_of(seeds[1]))
    waves = None
    if sounds:
        both = [as_model_takes(wave, rate, model)[:, : model.num_samples] for wave, rate in sounds.values()]
        waves = torch.zeros(2, model.channels, max(wave.shape[1] for wave in both))
        for row, wave in zip(waves, both, strict=True):
            row[:, : wave.shape[1]] = torch.from_numpy(wave)
    paths = []
    with running(model, home, settings) as run:
        about = {**whose, "sampling": run.sampling.model_dump(mode="json"), "between": list(sounds) or list(seeds)}
        for step, wave in enumerate(finite(model.interpolate(ends, waves, shares, run), run)):
            paths.append(output / f"{step:02d}.wav")
            write_wav(paths[-1], wave.numpy(), model.sample_rate, json.dumps({**about, "share": shares[step]}, ensure_ascii=False))
    draw(paths, [f"{share:.0%}" for share in shares], min(4, steps), whose["family"], output / "spectrograms.png")
    return paths


def in_samples(keep: Spans, rate: int, length: int, name: str) -> list[tuple[int, int]]:
    """Spans of seconds as samples of a sound; one that is none, or lies outside it, is a UserError."""
    spans = []
    for start, stop in keep:
        begin, end = round(start * rate), length if stop is None else round(stop * rate)
        if not 0 <= begin < end <= length:
            wanted = f"{start:g}:{'end' if stop is None else format(stop, 'g')}"
            raise UserError(f"{name}: it has {length / rate:g} s, and {wanted} is no part of that; name a span within it")
        spans.append((begin, end))
    return spans


def _must_have(model: Model, setting: str, what: str) -> None:
    if setting not in type(model.params.sampling).model_fields:
        raise UserError(f"this family cannot {what}: its sampling has no {setting!r}; `soundmill families` lists others")


def _each(
    checkpoint: Path,
    capability: Capability,
    verb: str,
    work: Callable[[Model, Run, str, Tensor], Tensor],
    sounds: Sounds,
    output: Path,
    home: Path,
    settings: Sequence[str],
    check: Callable[[Model], None] = lambda model: None,
    **more: Any,
) -> list[Path]:
    """Write `<name>.wav` of each sound, beside it what went in as the model takes it, `<name>-input.wav`, and a picture of both.

    Returns the former. `check` refuses what cannot be done before anything is written; `more` are facts for the comments.
    """
    model, whose = load(checkpoint, capability)
    check(model)
    paths, shown, titles = [], [], []
    with running(model, home, settings) as run:
        make_directory(output)
        facts = {**whose, "sampling": run.sampling.model_dump(mode="json"), **more}
        for name, (wave, rate) in sounds.items():
            given = torch.from_numpy(as_model_takes(wave, rate, model))
            made = work(model, run, name, given)
            path, before = output / f"{name}.wav", output / f"{name}-input.wav"
            write_wav(before, given.numpy(), model.sample_rate)
            write_wav(path, made.numpy(), model.sample_rate, json.dumps({**facts, verb: name}, ensure_ascii=False))
            paths.append(path)
            shown += [before, path]
            titles += [name, verb]
    draw(shown[: 2 * SHOWN], titles[: 2 * SHOWN], 2, whose["family"], output / "spectrograms.png")
    return paths
