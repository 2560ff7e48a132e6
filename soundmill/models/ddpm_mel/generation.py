"""Make sounds with a trained checkpoint, and send real clips through its picture and back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from soundmill import manifest, shards
from soundmill.audio.decode import decode_flac, write_wav
from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.models.ddpm_mel import checkpoint, figures
from soundmill.models.ddpm_mel.checkpoint import Model
from soundmill.models.ddpm_mel.params import GenerateParams
from soundmill.models.ddpm_mel.sample import pick_device, sample_log_mels, to_waves
from soundmill.params import did_you_mean
from soundmill.training.module import use_threads
from soundmill.training.seeds import seed_of

SHOWN = 12  # clips in a picture
HEARD = 6  # clips sent to tracking


def choose_balanced(clip_labels: dict[str, list[str]], count: int | None) -> list[str]:
    """`count` clip ids (None: all), taken in turn from every set of labels in stable order; returned sorted."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for clip_id in sorted(clip_labels):
        groups.setdefault(tuple(clip_labels[clip_id]), []).append(clip_id)
    turns = [(place, labels, clip_id) for labels, ids in groups.items() for place, clip_id in enumerate(ids)]
    return sorted(clip_id for _, _, clip_id in sorted(turns)[:count])


def generate(
    params: GenerateParams, ctx: Any, model: Path, clips: Path, catalog: Path, generated: Path, codec: Path
) -> dict[str, Any]:
    """Write a sound for every chosen test clip, with its labels and length, and the codec's real clips; returns metrics."""
    use_threads(params.threads)
    rebuilt = checkpoint.load(model)
    clip_labels = _catalog(catalog)
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
    lengths = _lengths(clips, wanted)
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
    _let_hear(ctx, model, clips, choose_balanced(wanted, HEARD), output)
    conditioned = sum(bool(set(labels) & known) for labels in wanted.values())
    return {"generated": len(wanted), "conditioned": conditioned}


def _let_hear(ctx: Any, model: Model, clips: Path, chosen: list[str], output: Path) -> None:
    """Send some sounds to tracking, each beside the real clip of the same name."""
    pairs = ctx.scratch / "listen"
    pairs.mkdir(parents=True, exist_ok=True)
    for clip_id, wave in _waves(clips, set(chosen)):
        shutil.copyfile(output / f"{clip_id}.wav", pairs / f"{clip_id}-generated.wav")
        write_wav(pairs / f"{clip_id}-reference.wav", wave, model.spec.sample_rate)
        for kind in ("generated", "reference"):
            ctx.tracking.log_file(pairs / f"{clip_id}-{kind}.wav", "listen")


def _round_trip(params: GenerateParams, ctx: Any, model: Model, clips: Path, wanted: list[str], output: Path) -> None:
    """Real clips → log-mel → picture → log-mel → wave: what the family could at best make of them."""
    output.mkdir(parents=True)
    picture = model.picture
    with ctx.progress(len(wanted), f"{ctx.name}: codec") as tick, torch.no_grad():
        for clip_id, wave in _waves(clips, set(wanted)):
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
    steps: int | None = None,
    guidance: float | None = None,
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
    paths = [output_dir / f"{stem}-{seed}-{index + 1:03d}.wav" for index in range(count)]
    for path, wave in zip(paths, waves, strict=True):
        write_wav(path, wave.numpy(), model.spec.sample_rate)
    titles = [path.stem for path in paths]
    figure = figures.draw_log_mels(log_mels.numpy(), titles, model.spec, min(4, count), ", ".join(asked) or "unconditional")
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


def _catalog(catalog: Path) -> dict[str, dict[str, list[str]]]:
    """Labels by clip id by split."""
    table = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "split", "labels"])
    splits: dict[str, dict[str, list[str]]] = {split: {} for split in manifest.SPLITS}
    for row in sorted(table.to_pylist(), key=lambda row: row["clip_id"]):
        splits[row["split"]][row["clip_id"]] = sorted(set(row["labels"] or []))
    return splits


def _lengths(clips: Path, wanted: Iterable[str]) -> dict[str, int]:
    """Samples of each clip."""
    found: dict[str, int] = {}
    for path in shards.shard_paths(clips):
        for row in pq.read_table(path, columns=["clip_id", "num_samples"]).to_pylist():
            found[row["clip_id"]] = row["num_samples"]
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise UserError(f"{clips}: {len(missing)} clips of the catalog are missing, the first {missing[0]!r}; run `dvc repro`")
    return {clip_id: found[clip_id] for clip_id in wanted}


def _waves(clips: Path, wanted: set[str]) -> Iterable[tuple[str, np.ndarray]]:
    for path in shards.shard_paths(clips):
        for row in shards.read_rows(path, manifest.CLIPS, ["clip_id", "audio"]):
            if row["clip_id"] in wanted:
                yield row["clip_id"], decode_flac(row["audio"]["bytes"])
