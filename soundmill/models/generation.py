"""Sounds of a trained checkpoint of any family: for test clips, for prompts, and of real clips sent through it and back.

For that a family's generation.py has
- `asked_by_clips(model, catalog, clip_labels)`: by clip id what its sound is asked for by, labels or a caption; nothing: []
- `asked_by_prompts(model, prompts)`: the same of every kind of sound that prompts ask for;
- `draw(model, asked, seeds, how)`: a log-mel [N, n_mels, frames] for each;
- `to_waves(model, log_mels, sampling, device)`: waves [N, model.num_samples] in [−1, 1] of them;
- `through_codec(model, wave, sampling, device)`: a real clip, cut to that length, through the family's representation and back.

A model has its `params`, the `spec` of its log-mels and the `num_samples` of its sounds.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest
from soundmill.audio import figures
from soundmill.audio.decode import write_wav
from soundmill.audio.invert import mel_to_wave
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError, told
from soundmill.models import registry
from soundmill.models.catalog import choose_balanced, lengths_of, let_hear, read_labels, waves_of
from soundmill.models.params import FamilyGenerateParams, GriffinLimParams
from soundmill.training.device import pick_device
from soundmill.training.module import use_threads
from soundmill.training.seeds import seed_of

SHOWN = 12  # clips in a picture
HEARD = 6  # clips sent to tracking
LONGEST_PROMPT = 400  # letters in the comment of a sound, of which libsndfile reads none of 2,048 bytes and more
GRIFFIN_LIM_SEED = 0  # the phases it starts from are the same for every clip, real or generated


@dataclass(frozen=True)
class How:
    """How sounds are made."""

    sampling: Any  # the family's
    device: torch.device
    precision: str
    batch_size: int
    home: Path  # where relative names of text encoders start
    scratch: Path
    digests: Path | None = None  # cache of file digests
    progress: Callable[[int], Any] = lambda n: None


def run(
    family: str, params: FamilyGenerateParams, ctx: Any, model: Path, clips: Path, catalog: Path, generated: Path, codec: Path
) -> dict[str, Any]:
    """Write a sound for every chosen test clip, of its length, and the codec's real clips; returns metrics."""
    use_threads(params.threads)
    trained = registry.part(family, "checkpoint").load(model)
    of_family = registry.part(family, "generation")
    labels = read_labels(catalog)
    wanted = choose_balanced(labels["test"], params.count)
    if not wanted:
        raise UserError(f"{catalog}: no test clip to generate for; raise rename.test_fraction or give the corpus a test split")
    if params.count is not None and len(wanted) < params.count:
        print(f"{ctx.name}: {params.count} sounds asked for, but there are {len(wanted)} test clips: one for each of them")
    its_labels = {clip_id: labels["test"][clip_id] for clip_id in wanted}
    asked = of_family.asked_by_clips(trained, catalog, its_labels)
    lengths, rate = lengths_of(clips, wanted), trained.spec.sample_rate
    makes, longest = trained.num_samples / rate, max(lengths.values()) / rate
    if longest > makes:
        print(f"{ctx.name}: the model makes {makes:g} s, the longest clip has {longest:g} s: longer clips get the model's length")

    sampling, device = params.sampling, pick_device(params.accelerator)
    with ctx.progress(len(wanted), ctx.name) as tick:
        how = How(sampling, device, params.precision, params.batch_size, ctx.home, ctx.scratch, ctx.digests, tick)
        log_mels = of_family.draw(trained, list(asked.values()), [seed_of(params.seed, clip_id) for clip_id in asked], how)
    _check_finite(log_mels, sampling)
    generated.mkdir(parents=True)
    with ctx.progress(len(wanted), f"{ctx.name}: to sound") as tick:
        for clip_id, log_mel in zip(asked, log_mels, strict=True):
            wave = of_family.to_waves(trained, log_mel[None], sampling, device)[0, : lengths[clip_id]]
            write_wav(generated / f"{manifest.check_clip_id(clip_id)}.wav", wave.numpy(), rate)
            tick(1)
    through = choose_balanced(labels[params.codec_split], params.codec_count)
    if not through:
        print(f"{ctx.name}: no clip in split {params.codec_split!r}: there is no codec line")
    codec.mkdir(parents=True)
    with ctx.progress(len(through), f"{ctx.name}: codec") as tick:
        for clip_id, wave in waves_of(clips, set(through)):
            back = of_family.through_codec(trained, wave, sampling, device)
            write_wav(codec / f"{manifest.check_clip_id(clip_id)}.wav", back, rate)
            tick(1)

    def show_spectrograms() -> None:
        shown = choose_balanced(its_labels, SHOWN)
        titles = [", ".join(asked[clip_id]) or clip_id for clip_id in shown]
        of_shown = log_mels[[wanted.index(clip_id) for clip_id in shown]]
        figure = figures.draw_log_mels(of_shown.numpy(), titles, trained.spec, 4, "generated")
        ctx.tracking.log_figure(figure, "generated_spectrograms")

    ctx.show("the spectrograms", show_spectrograms)
    ctx.show("the sounds to hear", partial(let_hear, ctx, rate, clips, choose_balanced(its_labels, HEARD), generated))
    conditioned = sum(bool(its) for its in asked.values())
    return {"generated": len(wanted), "conditioned": conditioned, "codec": len(through), "threads": params.threads}


# Of waves [N, T] at a rate, and the prompt of each ("" without): the places of those that are kept.
Choice = Callable[[list[str], np.ndarray, int], list[int]]


def keep_all(prompts: list[str], waves: np.ndarray, sample_rate: int) -> list[int]:
    return list(range(len(prompts)))


def generate_sounds(
    checkpoint_dir: Path,
    prompts: list[str],
    count: int,
    seed: int,
    output_dir: Path,
    home: Path,
    steps: int | None = None,
    guidance: float | None = None,
    choose: Choice = keep_all,
) -> list[Path]:
    """Make `count` sounds of `prompts` (none: unconditional) with a trained checkpoint of any family.

    Of a family that knows labels the prompts are labels, mixed in every sound; an unknown one is a UserError that lists the
    known. Of one that reads text, each prompt gets `count` sounds. Writes WAVs, whose comment says what they are, and a picture,
    `spectrograms.png`, into `output_dir`, which is made before any sound is; returns the WAVs. `home` is where relative paths of
    text encoders start. `steps` and `guidance` replace the checkpoint's own sampling. Of all that are made `choose` says which are
    kept: they are the same, and called the same, as if all were.
    """
    whose = registry.origin(checkpoint_dir)
    family = whose["family"]
    model, of_family = registry.part(family, "checkpoint").load(checkpoint_dir), registry.part(family, "generation")
    params = model.params
    use_threads(params.hardware.threads)
    changed = {"num_steps": steps, "guidance_scale": guidance}
    sampling = params.sampling.model_copy(update={key: value for key, value in changed.items() if value is not None})
    each = [(asked, index) for asked in of_family.asked_by_prompts(model, prompts) for index in range(count)]
    seeds = [seed_of(seed, *asked, index) for asked, index in each]
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output_dir}: no sound can be written there ({error.strerror}); name another directory") from None
    with tempfile.TemporaryDirectory(prefix="soundmill-") as folder:
        how = How(sampling, pick_device("auto"), params.hardware.precision, params.items, home, Path(folder))
        log_mels = of_family.draw(model, [asked for asked, _ in each], seeds, how)
    _check_finite(log_mels, sampling)
    waves = of_family.to_waves(model, log_mels, sampling, how.device)
    said = [", ".join(asked) for asked, _ in each]
    kept = choose(said, waves.numpy(), model.spec.sample_rate)
    paths = [output_dir / f"{_stem(said[index])}-{seed}-{index + 1:03d}.wav" for index in kept]
    for path, index in zip(paths, kept, strict=True):
        prompt = said[index] if len(said[index]) <= LONGEST_PROMPT else said[index][: LONGEST_PROMPT - 1] + "…"
        facts = {"prompt": prompt, "seed": seed, "number": index + 1, "steps": sampling.num_steps}
        comment = json.dumps({**whose, **facts, "guidance": sampling.guidance_scale}, ensure_ascii=False)
        write_wav(path, waves[index].numpy(), model.spec.sample_rate, comment)
    picture = output_dir / "spectrograms.png"
    with told(str(picture)):
        titles = [said[index] or path.stem for index, path in zip(kept, paths, strict=True)]
        heading = f"{family}: {sampling.num_steps} steps, guidance {sampling.guidance_scale:g}"
        figure = figures.draw_log_mels(log_mels[kept].numpy(), titles, model.spec, min(4, len(paths)), heading)
        figures.save_png(figure, picture)
    return paths


def _check_finite(log_mels: Tensor, sampling: Any) -> None:
    if not torch.isfinite(log_mels).all():
        raise UserError(
            f"the model's log-mels are not finite at guidance {sampling.guidance_scale:g}; lower it, or retrain with `dvc repro`"
        )


def _stem(prompt: str) -> str:
    """The prompt as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-") or "sound"


def by_griffin_lim(log_mel: Tensor, spec: MelSpec, num_samples: int, sampling: GriffinLimParams) -> Tensor:
    """Waves [B, num_samples] of log-mels [B, n_mels, frames]."""
    iterations, momentum = sampling.griffin_lim_iterations, sampling.griffin_lim_momentum
    return mel_to_wave(log_mel, spec, num_samples, iterations, momentum, GRIFFIN_LIM_SEED)


def one_by_one(invert: Callable[[Tensor], Tensor], log_mels: Tensor) -> Tensor:
    """Waves [N, T] in [−1, 1] by `invert`, of log-mels [1, n_mels, frames] each; one that is louder is turned down whole."""
    with torch.no_grad():
        wave = torch.cat([invert(log_mel[None]) for log_mel in log_mels])
    return wave / wave.abs().amax(1, keepdim=True).clamp_min(1)
