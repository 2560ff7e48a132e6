"""Sounds through a model: requests in batches, recordings in the model's format, long ones in windows."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundmill import hashing, manifest, shards, terminal
from soundmill.audio.mel import MelSpec, gain_of
from soundmill.audio.pieces import Sound, equal_power, faded, window_starts, windows
from soundmill.audio.resample import resample_blocks, resampled_length
from soundmill.diffusion.paths import Net
from soundmill.errors import UserError
from soundmill.models.family import Model, Request, Run
from soundmill.params import did_you_mean
from soundmill.training.device import autocast, evaluating
from soundmill.training.seeds import noise_at, seed_of


class NoLabel(UserError):
    """A prompt that matches no label of the model, or several; `example` is a valid label, "" if the model has none."""

    def __init__(self, message: str, example: str) -> None:
        super().__init__(message)
        self.example = example


def of_clips(model: Model, catalog: Path, clip_ids: Sequence[str], seed: int) -> dict[str, Request]:
    """Request by clip id: labels, one caption of several or both, as the model is told, the length, and a seed from the id."""
    rows = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "labels", "captions", "seconds"]).to_pylist()
    by_id = {row["clip_id"]: row for row in rows}
    requests = {}
    unknown: set[str] = set()
    for clip_id in clip_ids:
        labels, caption = (), ""
        if model.labels:
            clip_labels = sorted(set(by_id[clip_id]["labels"] or []))
            unknown.update(set(clip_labels) - set(model.labels))
            labels = tuple(label for label in clip_labels if label in model.labels)
        if model.condition == "caption":
            caption = hashing.prompt_of(clip_id, by_id[clip_id]["captions"] or [])
        requests[clip_id] = Request(labels, caption, seed_of(seed, clip_id), seconds=by_id[clip_id]["seconds"])
    if unknown:
        terminal.say(f"ignoring labels that the model was not trained on: {', '.join(sorted(unknown))}")
    return requests


def of_prompts(model: Model, prompts: Sequence[str], count: int, seed: int, labels: Sequence[str] = ()) -> list[Request]:
    """Requests for `count` sounds: of each prompt if the model is conditioned on captions; of all prompts together if on labels.

    A model conditioned on both gives `labels` to every sound; for any other model they are further prompts. With neither, sounds
    are unconditional, which a model conditioned on captions refuses. An unknown label is a NoLabel that lists the labels.
    """
    texts: Sequence[str | None] = prompts
    if model.condition != "caption":
        texts, labels = [None], [*prompts, *labels]
    elif not model.labels:
        texts, labels = [*prompts, *labels], ()
    matched = tuple(match_label(label, model.labels) for label in labels)
    if not texts and not matched:
        raise UserError('this model is conditioned on text: give a prompt, such as "a dog barks, then rain"')
    return [
        Request(matched, text or "", seed_of(seed, *([] if text is None else [text]), *matched, index))
        for text in texts or [None]
        for index in range(count)
    ]


def describe(request: Request) -> str:
    """The request as text; "" if it is unconditional."""
    return " · ".join(filter(None, [request.caption, ", ".join(request.labels)]))


def match_label(text: str, labels: Sequence[str]) -> str:
    """The label that a prompt means: equal up to case, the only one that contains the text, or the only one whose words (stemmed)
    all occur in the text (`a dog barks`: `dog`, `dog_barking`). Of `drum` and `kick drum` the longer one counts."""
    if not labels:
        raise NoLabel(f"label {text!r}: this model was trained without labels; leave it out", "")
    exact = [label for label in labels if label.casefold() == text.casefold()]
    within = [label for label in labels if text.strip() and text.casefold() in label.casefold()]
    words = _stems(text)
    named = {label: stems for label in labels if (stems := _stems(label)) and stems <= words}
    longest = [label for label, stems in named.items() if not any(stems < others for others in named.values())]
    matching = exact or within or longest
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise NoLabel(f"label {text!r} could be any of: {', '.join(matching)}; choose one", matching[0])
    raise NoLabel(f"unknown label {text!r}{did_you_mean(text, list(labels))} (labels: {', '.join(labels)})", labels[0])


def print_matched_labels(model: Model, prompts: Sequence[str], labels: Sequence[str] = ()) -> None:
    """Print to stderr which label each prompt or label matched, if it is not spelled the same."""
    for prompt in [*(prompts if model.condition == "labels" else ()), *(labels if model.labels else ())]:
        label = match_label(prompt, model.labels)
        if label.casefold() != prompt.casefold():
            terminal.say(f"{prompt!r} matches the label {label!r}", error=True)


def _stems(text: str) -> frozenset[str]:
    return frozenset(_stem(word) for word in re.findall(r"[^\W_]+", text.casefold()))


def _stem(word: str) -> str:
    """An English word without plural and verb endings: `barks`, `barked`, `barking` → `bark`; `cries`, `cry` → `cri`. A simplified
    step 1 of Porter (1980)."""
    if len(word) > 3:
        word = re.sub(r"(?<![su])s$", "", word)
        word = re.sub(r"^(?=.*[aeiouy].*(?:ing|ed)$)(.{3,})(?:ing|ed)$", r"\1", word)
        word = re.sub(r"^(.{3,})e$", r"\1", word)
    return re.sub(r"([^aeiou])\1$", r"\1", re.sub(r"y$", "i", word))


OVERLAP_SECONDS = 0.1  # between the windows that a long sound is cut into


def sampled(net: nn.Module, count: int, run: Run, work: Callable[[slice], Tensor]) -> Tensor:
    """What `work` makes of each batch of `count` items with `net`, which is moved to the run's device; on the CPU."""
    net.to(run.device)
    outputs = []
    with torch.no_grad(), evaluating(net):
        for start in range(0, count, run.batch_size):
            outputs.append(work(slice(start, start + run.batch_size)).cpu())
            run.progress(len(outputs[-1]))
    return torch.cat(outputs)


def mask_of(spans: Sequence[Sequence[int]], length: int) -> Tensor:
    """[length], true in the spans [start, stop)."""
    mask = torch.zeros(length, dtype=torch.bool)
    for start, stop in spans:
        mask[start:stop] = True
    return mask


def spans_of(mask: Tensor) -> list[list[int]]:
    """The spans [start, stop) where a boolean mask [T] is true."""
    edges = F.pad(mask, (1, 1)).int().diff()
    return [list(span) for span in zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True)]


def in_precision(net: Net, run: Run) -> Net:
    """The net evaluated in the run's precision; its outputs are float32."""

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        with autocast(run.device, run.precision):
            return net(xt, t).float()

    return denoise


def noise_of(requests: Sequence[Request], channels: int, length: int) -> Tensor:
    """Noise [N, channels, length] from each request's seed, drawn on the CPU so that a GPU gives the same up to rounding.

    For windows of a longer sound it depends on the position, so overlapping windows share it.
    """
    return torch.stack([_noise(request, channels, length) for request in requests])


def _noise(request: Request, channels: int, length: int) -> Tensor:
    if request.start is None:
        return torch.randn(channels, length, generator=torch.Generator().manual_seed(request.seed))
    return noise_at(request.start, length, channels, request.seed)


def generate_each(model: Model, requests: Sequence[Request], run: Run) -> Iterator[Tensor]:
    """A wave [C, T] for each request, with one batch in memory at a time; UserError if one is not finite."""
    for start in range(0, len(requests), run.batch_size):
        yield from finite(model.generate(requests[start : start + run.batch_size], run), run)


def reconstruct_each(
    model: Model, sounds: Iterable[tuple[str, tuple[np.ndarray, int]]], run: Run, whole: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Reconstruct waves with the model's encoder and decoder: (name, (wave [C, T], its rate)) → (name, wave [C, T]).

    A wave is first converted to the model's rate and channels. One longer than the model's length is cut, unless `whole`.
    """
    silent = replace(run, progress=lambda n: None)  # progress counts sounds, below
    for name, (wave, rate) in sounds:
        fitted = torch.from_numpy(in_model_format(wave, rate, model))
        fitted = fitted if whole else fitted[:, : model.num_samples]
        yield name, torch.cat(list(reconstructed(model, [fitted], fitted.shape[1], silent)), 1)
        run.progress(1)


def as_long_as_clip(wave: Tensor, length: int, model: Model) -> Tensor:
    """A wave [C, T] cut to the `length` of its real clip, or padded with silence as the clip is, up to the model's own length."""
    missing = min(length, model.num_samples or length) - wave.shape[1]
    return torch.nn.functional.pad(wave, (0, missing)) if missing > 0 else wave[:, :length]


def finite(waves: Tensor, run: Run) -> Tensor:
    """The waves, unchanged; UserError if a value is not finite."""
    if not torch.isfinite(waves).all():
        raise UserError(
            f"the model's output is not finite with {run.sampling}; choose milder settings, or retrain with a lower learning_rate"
        )
    return waves


def in_model_format(wave: np.ndarray, rate: int, model: Model) -> np.ndarray:
    """A wave [C, T] at the model's rate and channel count; if the counts differ, the mean of all channels, repeated."""
    empty = np.zeros((model.channels, 0), np.float32)
    return np.concatenate([empty, *_fitted([wave.T], rate, model)], 1)


def read_in_model_format(sound: Sound, model: Model) -> Iterator[Tensor]:
    """As `in_model_format` for a recording, in blocks [C, n]."""
    return map(torch.from_numpy, _fitted(sound.blocks(), sound.sample_rate, model))


def length_in_model_format(sound: Sound, model: Model) -> int:
    return resampled_length(sound.num_samples, sound.sample_rate, model.sample_rate)


def _fitted(blocks: Iterable[np.ndarray], rate: int, model: Model) -> Iterator[np.ndarray]:
    """Blocks [n, channels] with any channel count as float32 [C, n] at the model's rate and channel count."""

    def with_channels() -> Iterator[np.ndarray]:
        for block in blocks:
            if block.shape[1] != model.channels:
                block = np.repeat(block.mean(1, keepdims=True), model.channels, axis=1)
            yield block[:, 0] if model.channels == 1 else block

    for block in resample_blocks(with_channels(), rate, model.sample_rate, model.channels):
        yield np.ascontiguousarray(block.reshape(len(block), -1).T, np.float32)


def overlap_of(model: Model) -> int:
    """Overlap in samples of windows of the model's length."""
    return 0 if model.num_samples is None else min(round(OVERLAP_SECONDS * model.sample_rate), model.num_samples // 4)


def stream_windows(work: Callable[[Tensor, int], Tensor], blocks: Iterable[Tensor], length: int, model: Model) -> Iterator[Tensor]:
    """Apply `work` ([1, C, T], first sample → [1, C, T]) to blocks [C, n] of a sound, in windows of the model's length.

    Overlaps are crossfaded at equal power; yields finished blocks [C, n].
    """
    size, overlap = model.num_samples or length, overlap_of(model)
    cut = windows(blocks, window_starts(length, size, overlap), size)
    return faded(((start, work(part[None], start)[0]) for start, part in cut), overlap, equal_power)


def reconstructed(model: Model, blocks: Iterable[Tensor], length: int, run: Run) -> Iterator[Tensor]:
    """A sound of any length in blocks [C, n], encoded and decoded; yields blocks [C, n].

    A model by log-mels rebuilds those of each window, and one pass of the vocoder makes the sound: phases of windows do not fit.
    """
    vocoder = model.vocoder_for(run) if hasattr(model, "rebuilt") else None
    if vocoder is None or model.num_samples is None or length <= model.num_samples:
        return stream_windows(lambda part, start: finite(model.reconstruct(part, run), run), blocks, length, model)
    log_mels = _rebuilt(model, vocoder.spec, blocks, length, run)
    vocoder = vocoder.to(run.device)
    pieces = zip(*(vocoder.pieces(one[None].to(run.device)) for one in log_mels), strict=True)
    return _cut((finite(torch.cat([one[0] for one in channels]).cpu(), run).clamp(-1, 1) for channels in pieces), length)


def _rebuilt(model: Any, spec: MelSpec, blocks: Iterable[Tensor], length: int, run: Run) -> Tensor:
    """Log-mels [channels, n_mels, frames] of a sound's windows, joined; if the spec sets the peak, that of the loudest window."""
    hop, overlap, gains = spec.hop_length, overlap_of(model), []
    size = getattr(model, "rebuilt_samples", model.num_samples)

    def rebuild(part: Tensor) -> Tensor:
        gains.append(spec.power * torch.tensor([gain_of(channel.numpy(), spec) for channel in part]).log()[:, None, None])
        return model.rebuilt(part[None], run)[..., : -(-part.shape[1] // hop)] - gains[-1]

    cut = windows(blocks, window_starts(length, size, overlap, hop), size)
    parts = faded(((start // hop, rebuild(part)) for start, part in cut), overlap // hop, torch.lerp)
    log_mels = finite(torch.cat(list(parts), 2), run)
    return (log_mels + torch.stack(gains).amin(0)).clamp_min(math.log(spec.floor))


def _cut(blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """Blocks [C, n] of the first `length` samples."""
    for block in blocks:
        yield block[:, :length]
        length = max(0, length - block.shape[1])
