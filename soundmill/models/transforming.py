"""Recordings through a trained checkpoint of any family that can: reconstructed, restyled, inpainted, upsampled, interpolated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundmill.audio.flac import write_wav, write_wav_blocks
from soundmill.audio.pieces import Sound, window_starts, windows
from soundmill.audio.tempo import BEATS
from soundmill.errors import UserError
from soundmill.models import live, registry
from soundmill.models.family import Capability, Model, Request, Run
from soundmill.models.generation import (
    LONGEST_PROMPT,
    draw,
    finite,
    length_as_model_takes,
    load,
    make_directory,
    natural_tempo,
    overlap_of,
    read_as_model_takes,
    running,
    through_windows,
)
from soundmill.models.requests import of_prompts, tell_labels
from soundmill.training.seeds import seed_of

SHOWN = 12  # of many recordings, in the picture
TOLD_SPANS = 20  # in a sound's comment

Sounds = Mapping[str, Sound]  # by name
Work = Callable[[str, Iterable[Tensor], int], Iterator[Tensor]]  # of a sound's name, blocks [C, n] for the model, length
Spans = Sequence[tuple[float, float | None]]  # seconds; None: to the end


@dataclass(frozen=True)
class Asked:
    """How recordings are to sound, and the seed."""

    prompts: Sequence[str] = ()
    seed: int = 0

    def check(self, model: Model) -> None:
        """UserError where the model does not know what is asked for; says which labels prompts are taken for."""
        if model.condition == "caption" and len(self.prompts) > 1:
            raise UserError("this model reads one caption: give one --prompt")
        self.request(model)
        tell_labels(model, self.prompts)

    def request(self, model: Model, name: str = "", start: int | None = None) -> Request:
        """What is asked for, for a sound of that name from a sample on."""
        wanted = of_prompts(model, self.prompts, 1, self.seed)[0] if self.prompts else Request()
        return replace(wanted, seed=seed_of(self.seed, name), start=start)

    @property
    def facts(self) -> dict[str, Any]:
        """For a sound's comment, of which libsndfile reads none of 2,048 bytes and more."""
        prompts = ", ".join(self.prompts)
        return {"seed": self.seed, "prompts": prompts if len(prompts) <= LONGEST_PROMPT else prompts[: LONGEST_PROMPT - 1] + "…"}


def reconstruct(checkpoint: Path, sounds: Sounds, output: Path, home: Path, settings: Sequence[str] = ()) -> list[Path]:
    """Send sounds through a checkpoint's representation and back."""

    def work(model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        return through_windows(lambda part, start: finite(model.reconstruct(part, run), run), blocks, length, model)

    return _each(checkpoint, "reconstruct", "reconstructed", work, sounds, output, home, settings)


def restyle(checkpoint: Path, sounds: Sounds, asked: Asked, output: Path, home: Path, settings: Sequence[str] = ()) -> list[Path]:
    """Noise sounds and sample them from there, by the setting `amount`; a family that has none is a UserError."""

    def work(model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        def window(part: Tensor, start: int) -> Tensor:
            return finite(model.transform(part, [asked.request(model, name, start)], run), run)

        return through_windows(window, blocks, length, model)

    def check(model: Model) -> None:
        _must_have(model, "amount", "restyle")
        asked.check(model)
        if any(setting.partition("=")[0] == "keep" for setting in settings):
            raise UserError("--set keep=…: `soundmill inpaint` keeps parts of a recording")

    return _each(checkpoint, "transform", "restyled", work, sounds, output, home, settings, check, **asked.facts)


def inpaint(
    checkpoint: Path, sounds: Sounds, keep: Spans, asked: Asked, output: Path, home: Path, settings: Sequence[str] = ()
) -> list[Path]:
    """Make all but the spans `keep` of each sound anew; what is kept is the sound as the model takes it, sample by sample.

    Of a longer sound every window keeps also what the one before made of it. A span that lies outside a sound is a UserError before
    anything is written.
    """

    def work(model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        spans = [
            (round(start * model.sample_rate), length if stop is None else round(stop * model.sample_rate)) for start, stop in keep
        ]
        size, before, made_to = model.num_samples or length, torch.zeros(model.channels, 0), 0
        for start, part in windows(blocks, window_starts(length, size, overlap_of(model)), size):
            yield before[:, : before.shape[1] - (made_to - start)]
            part, done = part.clone(), torch.zeros(part.shape[1], dtype=torch.bool)
            for first, stop in spans:
                done[max(0, first - start) : max(0, stop - start)] = True
            part[:, : made_to - start] = before[:, before.shape[1] - (made_to - start) :]
            done[: made_to - start] = True
            if not done.all():
                its = replace(run, sampling=run.sampling.model_copy(update={"keep": spans_of(done)}))
                request = replace(asked.request(model, name), seed=seed_of(asked.seed, name, start))
                part = finite(model.transform(part[None], [request], its), its)[0]
            before, made_to = part, start + part.shape[1]
        yield before

    def check(model: Model) -> None:
        _must_have(model, "keep", "inpaint")
        asked.check(model)
        for name, sound in sounds.items():
            check_spans(keep, sound.seconds, name)

    about = {**asked.facts, "kept_seconds": [list(span) for span in keep[:TOLD_SPANS]]}
    return _each(checkpoint, "transform", "inpainted", work, sounds, output, home, settings, check, **about)


def upsample(checkpoint: Path, sounds: Sounds, output: Path, home: Path, settings: Sequence[str] = ()) -> list[Path]:
    """Bring sounds of a low rate to the model's, with the band that they lack; a family that does not is a UserError."""

    def work(model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        def window(part: Tensor, start: int) -> Tensor:
            return finite(model.transform(part, [Request(seed=seed_of(run.sampling.seed, name), start=start)], run), run)

        return through_windows(window, blocks, length, model)

    def check(model: Model) -> None:
        if "factor" not in type(model.params).model_fields:
            raise UserError("this family cannot upsample: take a checkpoint of `upsampler`")
        low = model.sample_rate / model.params.factor
        for name, sound in sounds.items():
            if sound.sample_rate > low:
                print(f"{name}: has {sound.sample_rate} Hz; what is above {low / 2:g} Hz in it is made anew")
            elif sound.sample_rate < low:
                print(f"{name}: has {sound.sample_rate} Hz, and the model begins at {low:g}: what lies between is not made")

    return _each(checkpoint, "transform", "upsampled", work, sounds, output, home, settings, check)


def interpolate(
    checkpoint: Path,
    seeds: tuple[int, int],
    sounds: Sequence[tuple[str, Sound]],
    steps: int,
    prompts: Sequence[str],
    output: Path,
    home: Path,
    settings: Sequence[str] = (),
) -> list[Path]:
    """Write `steps` sounds on the way between two seeds, or between two sounds with their names: `00.wav` to the last.

    A seed stands for the first sound that `generate_sounds` makes of it. Of sounds that are longer than the model makes it takes
    the beginning.
    """
    model, whose = load(checkpoint, "interpolate")
    ends = [of_prompts(model, prompts, 1, seed)[0] for seed in seeds]
    tell_labels(model, prompts)
    shares = [step / (steps - 1) for step in range(steps)]
    waves = None
    if sounds:
        _must_have(model, "amount", "go from a recording to another, but from seed to seed")
        both = [_beginning(sound, model) for _, sound in sounds]
        waves = torch.zeros(2, model.channels, max(wave.shape[1] for wave in both))
        for row, wave in zip(waves, both, strict=True):
            row[:, : wave.shape[1]] = wave
    paths = []
    with running(model, home, settings) as run:
        make_directory(output)
        between = {"between": [name for name, _ in sounds] or list(seeds), "seeds": list(seeds)}
        about = {**whose, "sampling": run.sampling.model_dump(mode="json"), **between, **Asked(prompts).facts}
        for step, wave in enumerate(finite(model.interpolate((ends[0], ends[1]), waves, shares, run), run)):
            paths.append(output / f"{step:02d}.wav")
            comment = json.dumps({**about, "share": shares[step]}, ensure_ascii=False)
            tempo = (natural_tempo(wave.shape[1], model.sample_rate), BEATS) if registry.family(whose["family"]).loops else None
            write_wav(paths[-1], wave.numpy(), model.sample_rate, comment, tempo=tempo)
    draw(paths, [f"{share:.0%}" for share in shares], min(4, steps), whose["family"], output / "spectrograms.png")
    return paths


def transfer(source: live.Trained | live.Published, sounds: Sounds, output: Path, **facts: Any) -> list[Path]:
    """Send sounds through a codec that was trained on others: they take on its timbre. `facts` are for the comments."""
    make_directory(output)

    def work(name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        for made in source.stream(blocks, length):
            if not torch.isfinite(made).all():
                raise UserError(f"{name}: what the model makes of it is not finite; move latents less far, or take another model")
            yield made

    return _write_each(source, work, sounds, output, "transferred", "transfer", facts)


def _beginning(sound: Sound, model: Model) -> Tensor:
    """As much of a sound [C, T] as the model makes."""
    return next(windows(read_as_model_takes(sound, model), [0], model.num_samples or length_as_model_takes(sound, model)))[1]


def check_spans(keep: Spans, seconds: float, name: str) -> None:
    """UserError where a span is none, or lies outside a sound of so many seconds."""
    for start, stop in keep:
        if not 0 <= start < (seconds if stop is None else stop) <= seconds:
            wanted = f"{start:g}:{'end' if stop is None else format(stop, 'g')}"
            raise UserError(f"{name}: it has {seconds:g} s, and {wanted} is no part of that; name a span within it")


def spans_of(kept: Tensor) -> list[list[int]]:
    """Where a boolean mask [T] is true, as [start, stop)."""
    edges = torch.cat([torch.zeros(1, dtype=torch.bool), kept, torch.zeros(1, dtype=torch.bool)]).int().diff()
    return [list(span) for span in zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True)]


def _must_have(model: Model, setting: str, what: str) -> None:
    if setting not in type(model.params.sampling).model_fields:
        raise UserError(f"this family cannot {what}: its sampling has no {setting!r}; `soundmill families` lists others")


def _each(
    checkpoint: Path,
    capability: Capability,
    verb: str,
    work: Callable[[Model, Run, str, Iterable[Tensor], int], Iterator[Tensor]],
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
    with running(model, home, settings) as run:
        make_directory(output)
        facts = {**whose, "sampling": run.sampling.model_dump(mode="json"), **more}
        return _write_each(model, partial(work, model, run), sounds, output, verb, whose["family"], facts)


def _write_each(
    model: Any,
    work: Work,
    sounds: Sounds,
    output: Path,
    verb: str,
    heading: str,
    facts: Mapping[str, Any],
) -> list[Path]:
    """The files of `_each`, of anything that has a rate and channels, block by block."""
    paths, shown, titles = [], [], []
    for name, sound in sounds.items():
        path, before = output / f"{name}.wav", output / f"{name}-input.wav"
        comment = json.dumps({**facts, verb: name}, ensure_ascii=False)
        made = work(name, read_as_model_takes(sound, model), length_as_model_takes(sound, model))
        for file, blocks, about in ((path, made, comment), (before, read_as_model_takes(sound, model), None)):
            write_wav_blocks(file, (block.numpy() for block in blocks), model.sample_rate, model.channels, about)
        paths.append(path)
        shown += [before, path]
        titles += [name, verb]
    draw(shown[: 2 * SHOWN], titles[: 2 * SHOWN], 2, heading, output / "spectrograms.png")
    return paths
