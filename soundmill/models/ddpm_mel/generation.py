"""Make sounds with a trained checkpoint, and send real clips through its picture and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soundmill import manifest
from soundmill.audio import figures
from soundmill.audio.decode import write_wav
from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.catalog import choose_balanced, lengths_of, let_hear, read_labels, waves_of
from soundmill.models.ddpm_mel import checkpoint
from soundmill.models.ddpm_mel.checkpoint import Model
from soundmill.models.ddpm_mel.params import GenerateParams
from soundmill.models.ddpm_mel.sample import sample_log_mels, to_waves
from soundmill.params import did_you_mean
from soundmill.training.device import pick_device
from soundmill.training.module import use_threads
from soundmill.training.seeds import seed_of

SHOWN = 12  # clips in a picture
HEARD = 6  # clips sent to tracking


def generate(
    params: GenerateParams, ctx: Any, model: Path, clips: Path, catalog: Path, generated: Path, codec: Path
) -> dict[str, Any]:
    """Write a sound for every chosen test clip, with its labels and length, and the codec's real clips; returns metrics."""
    use_threads(params.threads)
    rebuilt = checkpoint.load(model)
    clip_labels = read_labels(catalog)
    wanted = choose_balanced(clip_labels["test"], params.count)
    if not wanted:
        raise UserError(f"{catalog}: no test clip to generate for; raise rename.test_fraction or give the corpus a test split")
    if params.count is not None and len(wanted) < params.count:
        print(f"{ctx.name}: {params.count} sounds asked for, but there are {len(wanted)} test clips: one for each of them")
    metrics = _generate(params, ctx, rebuilt, clips, {clip_id: clip_labels["test"][clip_id] for clip_id in wanted}, generated)

    through = choose_balanced(clip_labels[params.codec_split], params.codec_count)
    if not through:
        print(f"{ctx.name}: no clip in split {params.codec_split!r}: there is no codec line")
    _round_trip(params, ctx, rebuilt, clips, through, codec)
    return {**metrics, "codec": len(through), "threads": params.threads}


def _generate(
    params: GenerateParams, ctx: Any, model: Model, clips: Path, wanted: dict[str, list[str]], output: Path
) -> dict[str, Any]:
    lengths = lengths_of(clips, wanted)
    longest = max(lengths.values())
    if longest > model.picture.num_samples:
        print(
            f"{ctx.name}: the model makes {model.picture.num_samples / model.spec.sample_rate:g} s, the longest clip has "
            f"{longest / model.spec.sample_rate:g} s: longer clips get the model's length"
        )
    known = set(model.labels)
    unheard = sorted({label for labels in wanted.values() for label in labels} - known)
    if unheard and model.labels:
        print(f"{ctx.name}: labels the model was not trained on, left out of the condition: {', '.join(unheard)}")
    with ctx.progress(len(wanted), ctx.name) as tick:
        log_mels = sample_log_mels(
            model,
            torch.stack([model.condition(labels) for labels in wanted.values()]),
            [seed_of(params.seed, clip_id) for clip_id in wanted],
            params.sampling,
            device=pick_device(params.accelerator),
            precision=params.precision,
            batch_size=params.batch_size,
            progress=tick,
        )
    output.mkdir(parents=True)
    with ctx.progress(len(wanted), f"{ctx.name}: to sound") as tick:
        for clip_id, picture in zip(wanted, log_mels, strict=True):
            num_samples = min(lengths[clip_id], model.picture.num_samples)
            wave = to_waves(picture[None], model, model.picture.num_samples, params.sampling)[0, :num_samples]
            write_wav(output / f"{manifest.check_clip_id(clip_id)}.wav", wave.numpy(), model.spec.sample_rate)
            tick(1)
    shown = choose_balanced(wanted, SHOWN)
    rows = [list(wanted).index(clip_id) for clip_id in shown]
    titles = [", ".join(wanted[clip_id]) or clip_id for clip_id in shown]
    ctx.tracking.log_figure(
        figures.draw_log_mels(log_mels[rows].numpy(), titles, model.spec, 4, "generated"), "generated_spectrograms"
    )
    let_hear(ctx, model.spec.sample_rate, clips, choose_balanced(wanted, HEARD), output)
    conditioned = sum(bool(set(labels) & known) for labels in wanted.values())
    return {"generated": len(wanted), "conditioned": conditioned}


def _round_trip(params: GenerateParams, ctx: Any, model: Model, clips: Path, wanted: list[str], output: Path) -> None:
    """Real clips → log-mel → picture → log-mel → wave: what the family could at best make of them."""
    output.mkdir(parents=True)
    picture = model.picture
    with ctx.progress(len(wanted), f"{ctx.name}: codec") as tick, torch.no_grad():
        for clip_id, wave in waves_of(clips, set(wanted)):
            fitted = np.zeros(picture.num_samples, dtype=np.float32)
            kept = min(len(wave), len(fitted))
            fitted[:kept] = wave[:kept]
            values = torch.from_numpy(log_mel(fitted[None], model.spec))
            back = to_waves(picture.decode(*picture.encode(values)), model, picture.num_samples, params.sampling)[0, :kept]
            write_wav(output / f"{manifest.check_clip_id(clip_id)}.wav", back.numpy(), model.spec.sample_rate)
            tick(1)


def generate_sounds(
    checkpoint_dir: Path,
    labels: list[str],
    count: int,
    seed: int,
    output_dir: Path,
    home: Path,
    steps: int | None = None,
    guidance: float | None = None,
    choose: registry.Choice = registry.keep_all,
) -> list[Path]:
    """The interface of models/registry.py: `count` sounds of `labels` as WAVs, and `spectrograms.png` beside them."""
    model = checkpoint.load(checkpoint_dir)
    use_threads(model.params.hardware.threads)
    asked = [match_label(label, model.labels) for label in labels]
    changed = {"num_steps": steps, "guidance_scale": guidance}
    sampling = model.params.sampling.model_copy(update={key: value for key, value in changed.items() if value is not None})
    log_mels = sample_log_mels(
        model,
        model.condition(asked).expand(count, -1),
        [seed_of(seed, *asked, index) for index in range(count)],
        sampling,
        device=pick_device("auto"),
        precision=model.params.hardware.precision,
        batch_size=model.params.batch_size,
    )
    waves = to_waves(log_mels, model, model.picture.num_samples, sampling)
    output_dir.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "-", " ".join(asked).lower()).strip("-") or "sound"
    prompts = [", ".join(asked)] * count
    kept = choose(prompts, waves.numpy(), model.spec.sample_rate)
    comments = registry.comments(checkpoint_dir, prompts, seed)
    paths = [output_dir / f"{stem}-{seed}-{index + 1:03d}.wav" for index in kept]
    for path, index in zip(paths, kept, strict=True):
        write_wav(path, waves[index].numpy(), model.spec.sample_rate, comments[index])
    titles = [path.stem for path in paths]
    figure = figures.draw_log_mels(log_mels[kept].numpy(), titles, model.spec, min(4, len(kept)), prompts[0] or "unconditional")
    figures.save_png(figure, output_dir / "spectrograms.png")
    return paths


def match_label(asked: str, known: list[str]) -> str:
    """The known label meant: the same but for case, or the only one that contains the text."""
    if not known:
        raise UserError(f"label {asked!r}: this model was trained without labels; leave --label out")
    exact = [label for label in known if label.casefold() == asked.casefold()]
    within = [label for label in known if asked.strip() and asked.casefold() in label.casefold()]
    found = exact or within
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"label {asked!r} could be any of: {', '.join(found)}; say which")
    raise UserError(f"unknown label {asked!r}{did_you_mean(asked, known)} (labels: {', '.join(known)})")
