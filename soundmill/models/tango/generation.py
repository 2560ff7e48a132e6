"""Make sounds with a trained checkpoint, and send real clips through its autoencoder and back."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards
from soundmill.audio import figures
from soundmill.audio.decode import write_wav
from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.catalog import choose_balanced, lengths_of, let_hear, read_labels, waves_of
from soundmill.models.tango import checkpoint, conditions
from soundmill.models.tango.checkpoint import Model
from soundmill.models.tango.params import GenerateParams, SamplingParams
from soundmill.models.tango.sample import sample_latents, to_log_mels, to_waves
from soundmill.models.tango.training import shorten
from soundmill.training.device import pick_device
from soundmill.training.module import use_threads
from soundmill.training.seeds import seed_of

SHOWN = 12  # clips in a picture
HEARD = 6  # clips sent to tracking


def generate(
    params: GenerateParams, ctx: Any, model: Path, clips: Path, catalog: Path, generated: Path, codec: Path
) -> dict[str, Any]:
    """Write a sound for every chosen test clip, by its first caption and of its length, and the codec's real clips."""
    use_threads(params.threads)
    rebuilt = checkpoint.load(model)
    clip_labels = read_labels(catalog)
    wanted = choose_balanced(clip_labels["test"], params.count)
    if not wanted:
        raise UserError(f"{catalog}: no test clip to generate for; raise rename.test_fraction or give the corpus a test split")
    if params.count is not None and len(wanted) < params.count:
        print(f"{ctx.name}: {params.count} sounds asked for, but there are {len(wanted)} test clips: one for each of them")
    metrics = _generate(params, ctx, rebuilt, clips, prompts_of(catalog, wanted), generated)
    ctx_labels = {clip_id: clip_labels["test"][clip_id] for clip_id in wanted}
    let_hear(ctx, rebuilt.autoencoder.spec.sample_rate, clips, choose_balanced(ctx_labels, HEARD), generated)

    through = choose_balanced(clip_labels[params.codec_split], params.codec_count)
    if not through:
        print(f"{ctx.name}: no clip in split {params.codec_split!r}: there is no codec line")
    _round_trip(params, ctx, rebuilt, clips, through, codec)
    return {**metrics, "codec": len(through), "threads": params.threads}


def prompts_of(catalog: Path, wanted: list[str]) -> dict[str, str]:
    """The first caption of each clip, "" where it has none."""
    rows = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "captions"]).to_pylist()
    captions = {row["clip_id"]: row["captions"] or [""] for row in rows}
    return {clip_id: captions[clip_id][0] for clip_id in wanted}


def _generate(params: GenerateParams, ctx: Any, model: Model, clips: Path, prompts: dict[str, str], output: Path) -> dict[str, Any]:
    spec, device = model.autoencoder.spec, pick_device(params.accelerator)
    lengths = lengths_of(clips, prompts)
    longest = max(lengths.values())
    if longest > model.num_samples:
        print(
            f"{ctx.name}: the model makes {model.num_samples / spec.sample_rate:g} s, the longest clip has "
            f"{longest / spec.sample_rate:g} s: longer clips get the model's length"
        )
    *states, empty = conditions.encode(model.text, [*prompts.values(), ""], ctx.home, ctx.scratch, ctx.digests)
    with ctx.progress(len(prompts), ctx.name) as tick:
        latents = sample_latents(
            model,
            states,
            conditions.null_of(model.params.null_text, empty),
            [seed_of(params.seed, clip_id) for clip_id in prompts],
            params.sampling,
            device=device,
            precision=params.precision,
            batch_size=params.batch_size,
            progress=tick,
        )
    log_mels = to_log_mels(model, latents, device)
    output.mkdir(parents=True)
    with ctx.progress(len(prompts), f"{ctx.name}: to sound") as tick:
        for clip_id, picture in zip(prompts, log_mels, strict=True):
            num_samples = min(lengths[clip_id], model.num_samples)
            wave = to_waves(model, picture[None], params.sampling, device)[0, :num_samples]
            write_wav(output / f"{manifest.check_clip_id(clip_id)}.wav", wave.numpy(), spec.sample_rate)
            tick(1)
    titles = [shorten(prompt) or "no text" for prompt in prompts.values()][:SHOWN]
    figure = figures.draw_log_mels(log_mels[:SHOWN].numpy(), titles, spec, min(4, len(titles)), "generated")
    ctx.tracking.log_figure(figure, "generated_spectrograms")
    return {"generated": len(prompts), "conditioned": sum(bool(prompt) for prompt in prompts.values())}


def _round_trip(params: GenerateParams, ctx: Any, model: Model, clips: Path, wanted: list[str], output: Path) -> None:
    output.mkdir(parents=True)
    device = pick_device(params.accelerator)
    with ctx.progress(len(wanted), f"{ctx.name}: codec") as tick:
        for clip_id, wave in waves_of(clips, set(wanted)):
            back = through_codec(model, wave, params.sampling, device)
            write_wav(output / f"{manifest.check_clip_id(clip_id)}.wav", back, model.autoencoder.spec.sample_rate)
            tick(1)


def through_codec(model: Model, wave: np.ndarray, sampling: SamplingParams, device: torch.device) -> np.ndarray:
    """A real clip [T] → log-mel → latent → log-mel → wave, at most as long: what the family could at best make of it."""
    autoencoder = model.autoencoder.to(device)
    mean, _ = autoencoder.encode(fitted_log_mel(wave, model).to(device))
    rebuilt = autoencoder.decode(mean * autoencoder.scaling_factor).cpu()
    return to_waves(model, rebuilt, sampling, device)[0, : len(wave)].numpy()


def fitted_log_mel(wave: np.ndarray, model: Model) -> Tensor:
    """Log-mel [1, n_mels, model.frames] of a wave, cut there or followed by silence."""
    values = torch.from_numpy(log_mel(wave, model.autoencoder.spec))[None, :, : model.frames]
    return torch.nn.functional.pad(values, (0, model.frames - values.shape[2]), value=model.autoencoder.silence)


def generate_sounds(
    checkpoint_dir: Path,
    prompts: list[str],
    count: int,
    seed: int,
    output_dir: Path,
    home: Path,
    steps: int | None = None,
    guidance: float | None = None,
    choose: registry.Choice = registry.keep_all,
) -> list[Path]:
    """The interface of models/registry.py: `count` sounds of each prompt as WAVs, and `spectrograms.png` beside them."""
    if not prompts:
        raise UserError('this family draws what a text says: give a prompt, such as "a dog barks, then rain"')
    model = checkpoint.load(checkpoint_dir)
    use_threads(model.params.hardware.threads)
    changed = {"num_steps": steps, "guidance_scale": guidance}
    sampling = model.params.sampling.model_copy(update={key: value for key, value in changed.items() if value is not None})
    device, spec = pick_device("auto"), model.autoencoder.spec
    with tempfile.TemporaryDirectory(prefix="soundmill-text-") as folder:
        *states, empty = conditions.encode(model.text, [*prompts, ""], home, Path(folder))
    each = [(prompt, text, index) for prompt, text in zip(prompts, states, strict=True) for index in range(count)]
    latents = sample_latents(
        model,
        [text for _, text, _ in each],
        conditions.null_of(model.params.null_text, empty),
        [seed_of(seed, prompt, index) for prompt, _, index in each],
        sampling,
        device=device,
        precision=model.params.hardware.precision,
        batch_size=model.params.real_items + model.params.mixed_items,
    )
    log_mels = to_log_mels(model, latents, device)
    waves = to_waves(model, log_mels, sampling, device)
    output_dir.mkdir(parents=True, exist_ok=True)
    prompt_of = [prompt for prompt, _, _ in each]
    kept = choose(prompt_of, waves.numpy(), spec.sample_rate)
    comments = registry.comments(checkpoint_dir, prompt_of, seed)
    paths = [output_dir / f"{_stem(prompt_of[index])}-{seed}-{index + 1:03d}.wav" for index in kept]
    for path, index in zip(paths, kept, strict=True):
        write_wav(path, waves[index].numpy(), spec.sample_rate, comments[index])
    titles = [shorten(prompt_of[index]) for index in kept]
    figure = figures.draw_log_mels(log_mels[kept].numpy(), titles, spec, min(4, len(kept)), f"guidance {sampling.guidance_scale:g}")
    figures.save_png(figure, output_dir / "spectrograms.png")
    return paths


def _stem(prompt: str) -> str:
    """The prompt as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-") or "sound"
