"""Transform recordings with a checkpoint: reconstruct, restyle, inpaint, upsample, interpolate."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundmill import terminal
from soundmill.audio.flac import write_wav, write_wav_blocks
from soundmill.audio.pieces import Sound, window_starts, windows
from soundmill.audio.tags import CHANGED, GENERATED, MadeBy
from soundmill.audio.tempo import BEATS
from soundmill.errors import UserError
from soundmill.models import live, registry
from soundmill.models.family import Capability, Model, Request, Run, made_by
from soundmill.models.generation import (
    LONGEST_PROMPT,
    Loaded,
    draw,
    load,
    make_directory,
    natural_tempo,
    running,
)
from soundmill.models.requests import of_prompts, print_matched_labels
from soundmill.models.sounds import (
    finite,
    length_in_model_format,
    overlap_of,
    read_in_model_format,
    reconstructed,
    stream_windows,
)
from soundmill.training.seeds import seed_of

SHOWN = 12  # recordings in the figure
COMMENT_SPANS = 20  # in the comment of a WAV

Sounds = Mapping[str, Sound]  # by name
Work = Callable[
    [str, Iterable[Tensor], int], Iterator[Tensor]
]  # sound name, blocks [C, n] as the model takes them, length → blocks
Spans = Sequence[tuple[float, float | None]]  # seconds; None: to the end


@dataclass(frozen=True)
class Prompting:
    """The prompts and the seed of a transformation."""

    prompts: Sequence[str] = ()
    seed: int = 0

    def check(self, model: Model) -> None:
        """UserError if the model cannot follow the prompts; prints the labels that they match."""
        if model.condition == "caption" and len(self.prompts) > 1:
            raise UserError("this model takes a single caption: give one --prompt")
        self.request(model)
        print_matched_labels(model, self.prompts)

    def request(self, model: Model, name: str = "", start: int | None = None) -> Request:
        """The request for the sound `name`, or for its window that starts at sample `start`."""
        request = of_prompts(model, self.prompts, 1, self.seed)[0] if self.prompts else Request()
        return replace(request, seed=seed_of(self.seed, name), start=start)

    @property
    def facts(self) -> dict[str, Any]:
        """For the comment of a WAV, with long prompts shortened (LONGEST_PROMPT)."""
        prompts = ", ".join(self.prompts)
        return {"seed": self.seed, "prompts": prompts if len(prompts) <= LONGEST_PROMPT else prompts[: LONGEST_PROMPT - 1] + "…"}


def reconstruct(checkpoint: Path | Loaded, sounds: Sounds, output: Path, home: Path, settings: Sequence[str] = ()) -> list[Path]:
    """Encode sounds and decode them again."""

    def work(model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        return reconstructed(model, blocks, length, run)

    return _each(checkpoint, "reconstruct", "reconstructed", work, sounds, output, home, settings)


def restyle(
    checkpoint: Path | Loaded, sounds: Sounds, prompting: Prompting, output: Path, home: Path, settings: Sequence[str] = ()
) -> list[Path]:
    """Add noise to sounds and denoise them; `amount` sets how much. UserError for a family without that setting."""

    def work(model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        def window(part: Tensor, start: int) -> Tensor:
            return finite(model.transform(part, [prompting.request(model, name, start)], run), run)

        return stream_windows(window, blocks, length, model)

    def check(model: Model) -> None:
        _must_have(model, "amount", "restyle")
        prompting.check(model)
        if any(setting.partition("=")[0] == "keep" for setting in settings):
            raise UserError("--set keep=…: to keep parts of a recording, use `soundmill inpaint`")

    return _each(checkpoint, "transform", "restyled", work, sounds, output, home, settings, check, **prompting.facts)


def inpaint(
    checkpoint: Path | Loaded,
    sounds: Sounds,
    keep: Spans,
    prompting: Prompting,
    output: Path,
    home: Path,
    settings: Sequence[str] = (),
) -> list[Path]:
    """Regenerate all of each sound except the spans `keep`, whose samples stay unchanged (at the model's rate and channels).

    In a sound longer than the model's length, each window also keeps its overlap with the window before. A span outside a sound is
    a UserError before anything is written.
    """

    def work(model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        spans = [
            (round(start * model.sample_rate), length if stop is None else round(stop * model.sample_rate)) for start, stop in keep
        ]
        size, previous, done_to = model.num_samples or length, torch.zeros(model.channels, 0), 0
        for start, part in windows(blocks, window_starts(length, size, overlap_of(model)), size):
            yield previous[:, : previous.shape[1] - (done_to - start)]
            part, kept = part.clone(), torch.zeros(part.shape[1], dtype=torch.bool)
            for first, stop in spans:
                kept[max(0, first - start) : max(0, stop - start)] = True
            part[:, : done_to - start] = previous[:, previous.shape[1] - (done_to - start) :]
            kept[: done_to - start] = True
            if not kept.all():
                keeping = replace(run, sampling=run.sampling.model_copy(update={"keep": spans_of(kept)}))
                request = replace(prompting.request(model, name), seed=seed_of(prompting.seed, name, start))
                part = finite(model.transform(part[None], [request], keeping), keeping)[0]
            previous, done_to = part, start + part.shape[1]
        yield previous

    def check(model: Model) -> None:
        _must_have(model, "keep", "inpaint")
        prompting.check(model)
        for name, sound in sounds.items():
            for start, stop in keep:
                if not 0 <= start < (sound.seconds if stop is None else stop) <= sound.seconds:
                    span = f"{start:g}:{'end' if stop is None else format(stop, 'g')}"
                    inside = f"is not within the sound's {sound.seconds:g} s; choose a span inside it"
                    raise UserError(f"{name}: the span {span} {inside}")

    about = {**prompting.facts, "kept_seconds": [list(span) for span in keep[:COMMENT_SPANS]]}
    return _each(checkpoint, "transform", "inpainted", work, sounds, output, home, settings, check, **about)


def upsample(checkpoint: Path | Loaded, sounds: Sounds, output: Path, home: Path, settings: Sequence[str] = ()) -> list[Path]:
    """Raise the sample rate of sounds to the model's and generate the missing band; UserError for any other family."""

    def work(model: Model, run: Run, name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        def window(part: Tensor, start: int) -> Tensor:
            return finite(model.transform(part, [Request(seed=seed_of(run.sampling.seed, name), start=start)], run), run)

        return stream_windows(window, blocks, length, model)

    def check(model: Model) -> None:
        if "factor" not in type(model.params).model_fields:
            raise UserError("this family cannot upsample: use a checkpoint of `upsampler`")
        low = model.sample_rate / model.params.factor
        for name, sound in sounds.items():
            if sound.sample_rate > low:
                terminal.say(f"{name}: has {sound.sample_rate} Hz; content above {low / 2:g} Hz is replaced")
            elif sound.sample_rate < low:
                terminal.say(
                    f"{name}: has {sound.sample_rate} Hz, the model expects {low:g} Hz: "
                    f"the band from {sound.sample_rate / 2:g} to {low / 2:g} Hz stays empty"
                )

    return _each(checkpoint, "transform", "upsampled", work, sounds, output, home, settings, check)


def interpolate(
    checkpoint: Path | Loaded,
    seeds: tuple[int, int],
    sounds: Sequence[tuple[str, Sound]],
    steps: int,
    prompts: Sequence[str],
    output: Path,
    home: Path,
    settings: Sequence[str] = (),
) -> list[Path]:
    """Write `steps` sounds that interpolate between two seeds or two named sounds: `00.wav`, `01.wav`, …

    A seed stands for the first sound that `generate_sounds` makes with it. Sounds longer than the model's length are cut.
    """
    model, source_facts = load(checkpoint, "interpolate")
    ends = [of_prompts(model, prompts, 1, seed)[0] for seed in seeds]
    print_matched_labels(model, prompts)
    shares = [step / (steps - 1) for step in range(steps)]
    waves = None
    if sounds:
        _must_have(model, "amount", "interpolate between recordings, only between seeds")
        both = []
        for _, sound in sounds:
            length = model.num_samples or length_in_model_format(sound, model)
            both.append(next(windows(read_in_model_format(sound, model), [0], length))[1])
        waves = torch.zeros(2, model.channels, max(wave.shape[1] for wave in both))
        for row, wave in zip(waves, both, strict=True):
            row[:, : wave.shape[1]] = wave
    paths = []
    with running(model, home, settings) as run:
        make_directory(output)
        between = {"between": [name for name, _ in sounds] or list(seeds), "seeds": list(seeds)}
        about = {**source_facts, "sampling": run.sampling.model_dump(mode="json"), **between, **Prompting(prompts).facts}
        maker = made_by(source_facts, CHANGED if sounds else GENERATED)
        for step, wave in enumerate(finite(model.interpolate((ends[0], ends[1]), waves, shares, run), run)):
            paths.append(output / f"{step:02d}.wav")
            comment = json.dumps({**about, "share": shares[step]}, ensure_ascii=False)
            tempo = (
                (natural_tempo(wave.shape[1], model.sample_rate), BEATS) if registry.family(source_facts["family"]).loops else None
            )
            write_wav(paths[-1], wave.numpy(), model.sample_rate, comment, tempo, maker)
    draw(paths, [f"{share:.0%}" for share in shares], min(4, steps), source_facts["family"], output / "spectrograms.png")
    return paths


def transfer(source: live.Trained | live.Published, sounds: Sounds, output: Path, **facts: Any) -> list[Path]:
    """Timbre transfer: encode and decode sounds with a codec trained on other sounds. `facts` go into the WAV comments."""
    make_directory(output)

    def work(name: str, blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
        for block in source.stream(blocks, length):
            if not torch.isfinite(block).all():
                raise UserError(f"{name}: the model's output is not finite; use smaller latent edits or another model")
            yield block

    return _write_each(source, work, sounds, output, "transferred", "transfer", facts, MadeBy(source.weights, CHANGED))


def spans_of(kept: Tensor) -> list[list[int]]:
    """The spans [start, stop) where a boolean mask [T] is true."""
    edges = torch.cat([torch.zeros(1, dtype=torch.bool), kept, torch.zeros(1, dtype=torch.bool)]).int().diff()
    return [list(span) for span in zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True)]


def _must_have(model: Model, setting: str, what: str) -> None:
    if setting not in type(model.params.sampling).model_fields:
        raise UserError(f"this family cannot {what}: its sampling has no {setting!r}; `soundmill families` lists others")


def _each(
    checkpoint: Path | Loaded,
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
    """Write for each sound the output `<name>.wav` and the input as the model takes it, `<name>-input.wav`, and a figure of both.

    Returns the paths of the outputs. `check` raises before anything is written; `more` are facts for the WAV comments.
    """
    model, source_facts = load(checkpoint, capability)
    check(model)
    with running(model, home, settings) as run:
        make_directory(output)
        facts = {**source_facts, "sampling": run.sampling.model_dump(mode="json"), **more}
        maker = made_by(source_facts, CHANGED)
        return _write_each(model, partial(work, model, run), sounds, output, verb, source_facts["family"], facts, maker)


def _write_each(
    model: Any,
    work: Work,
    sounds: Sounds,
    output: Path,
    verb: str,
    heading: str,
    facts: Mapping[str, Any],
    maker: MadeBy,
) -> list[Path]:
    """Write the files of `_each` block by block, for any `model` with a sample rate and channels."""
    paths, shown, titles = [], [], []
    for name, sound in sounds.items():
        path, input_path = output / f"{name}.wav", output / f"{name}-input.wav"
        comment = json.dumps({**facts, verb: name}, ensure_ascii=False)
        result = work(name, read_in_model_format(sound, model), length_in_model_format(sound, model))
        for file, blocks, *tags in ((path, result, comment, maker), (input_path, read_in_model_format(sound, model))):
            write_wav_blocks(file, (block.numpy() for block in blocks), model.sample_rate, model.channels, *tags)
        paths.append(path)
        shown += [input_path, path]
        titles += [name, verb]
    draw(shown[: 2 * SHOWN], titles[: 2 * SHOWN], 2, heading, output / "spectrograms.png")
    return paths
