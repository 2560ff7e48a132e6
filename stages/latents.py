"""Latents of clips or of mixes by a family's autoencoder: once, so that no training runs it; one shard for each of spectrograms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from soundmill import manifest, shards, stage
from soundmill.audio.mel import read_spec
from soundmill.errors import UserError
from soundmill.models.components.mel_autoencoder import autoencoder as autoencoders
from soundmill.models.components.mel_autoencoder.latents import ABOUT_KEY, LatentsAbout
from soundmill.models.components.mel_autoencoder.params import LatentsParams
from soundmill.stage import Context, Input, Output
from soundmill.training.device import autocast, pick_device

MANY = 500  # clips: fewer are encoded before it is told what each takes, which costs four seconds of importing


def run(
    params: LatentsParams,
    ctx: Context,
    mels: Input,
    autoencoder: Input,
    latents: Output,
    catalog: Input = None,
    mixes: Input = None,
) -> dict[str, Any]:
    """Write the posterior of every clip of the catalog, or of every mix, whose captions go with it."""
    if (catalog is None) == (mixes is None):
        raise UserError("give --catalog for latents of clips, or --mixes for those of mixes")
    if params.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("latents.accelerator is `gpu`, but torch sees none here; set it to `cpu` or `auto`")
    config = autoencoders.config(autoencoder)
    if read_spec(mels) != config.mel_spec:
        raise UserError(f"{mels}: made with another mel spec than {autoencoder} was; remake both: `dvc repro`")
    if params.frames % config.network.factor:
        raise UserError(f"latents.frames {params.frames} must be a multiple of {config.network.factor}, by which they shrink")
    if catalog is not None:
        rows = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "split", "captions"]).to_pylist()
    else:
        rows = [
            {"clip_id": row["clip_id"], "split": "train", "captions": [row["caption"]]}
            for path in shards.shard_paths(mixes)
            for row in shards.read_rows(path, manifest.MIXES, ["clip_id", "caption"])
        ]
    known = {row["clip_id"]: row for row in rows}
    about = LatentsAbout(
        autoencoder=config.digest, scaling_factor=config.scaling_factor, mel_spec=config.mel_spec, frames=params.frames
    )
    encoding = Encoding(autoencoder, about, params.accelerator, params.batch_size, params.precision)
    jobs = []
    for path in shards.shard_paths(mels):
        ids = shards.read_table(path, manifest.SPECTROGRAMS, ["clip_id"])["clip_id"].to_pylist()
        mine = {clip_id: known.pop(clip_id) for clip_id in ids if clip_id in known}
        key = shards.digest(shards.signature(path), encoding.made_by, about.model_dump(mode="json"), mine)
        jobs.append(shards.Job(path.name, (path, mine, encoding), len(mine), key))
    if known:
        raise UserError(f"{mels}: no spectrogram of {len(known)} clips, the first {min(known)!r}; remake it: `dvc repro`")
    if len(rows) >= MANY:
        print(
            f"{ctx.name}: {len(rows)} clips, {_gigaflops(config, params.frames):.1f} GFLOP each, "
            f"on {pick_device(params.accelerator).type} where they are new",
            flush=True,
        )
    if pick_device(params.accelerator).type != "cpu":
        # One process, of a pool of its own, fills a GPU; each of several would hold the net and its pictures there.
        ctx = replace(ctx, workers=1, pool=None)
    report = ctx.map_shards(encode_shard, jobs, latents)
    metrics = {name: report.counts.get(name, 0) for name in ("clips", "captions", "silent_frames", "cut_frames")}
    if report.details:
        metrics["latent_std"] = scaled_deviation(report.details, config.scaling_factor)
    return {**metrics, "autoencoder": config.digest}


def _gigaflops(config: autoencoders.AutoencoderConfig, frames: int) -> float:
    """What it takes to encode one clip; counted where tensors have no memory."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        autoencoders.build_autoencoder(config.network).encode(torch.empty(1, 1, frames, config.mel_spec.n_mels))
    return counter.get_total_flops() / 1e9


@dataclass(frozen=True)
class Encoding:
    """By what, and how, clips are encoded; plain values, for other processes."""

    autoencoder: Path
    about: LatentsAbout
    accelerator: str
    batch_size: int
    precision: str

    @property
    def at_once(self) -> int:
        """Clips in a batch. A CPU takes one at a time, since neighbours would move last bits."""
        return 1 if pick_device(self.accelerator).type == "cpu" else self.batch_size

    @property
    def made_by(self) -> list[Any]:
        """What a clip's posterior depends on, beside its spectrogram."""
        return [self.about.autoencoder, self.about.frames, pick_device(self.accelerator).type, self.applied_precision]

    @property
    def applied_precision(self) -> str:
        return "32" if pick_device(self.accelerator).type == "cpu" else self.precision


@lru_cache(maxsize=1)
def _load(directory: Path, digest: str, accelerator: str) -> autoencoders.Autoencoder:
    """Once in every process, with one thread: others would give other last bits. `digest`: another one may come to lie there."""
    torch.set_num_threads(1)
    return autoencoders.load(directory).to(pick_device(accelerator))


def encode_shard(
    mels: Path, known: dict[str, dict[str, Any]], encoding: Encoding, output: Path, previous: Path | None = None
) -> shards.Report:
    """Write the posteriors of those clips of one shard that are `known`: by id, what the catalog says of them."""
    frames, made_by = encoding.about.frames, encoding.made_by
    schema = manifest.LATENTS.with_metadata({ABOUT_KEY: encoding.about.model_dump_json().encode()})
    if previous and pq.read_schema(previous).metadata != schema.metadata:
        previous = None  # of another autoencoder: none of its rows would be taken, but an empty shard as it is
    columns = ["clip_id", "num_frames", "digest"]
    rows = list(enumerate(shards.read_rows(mels, manifest.SPECTROGRAMS, columns)))
    keys = {place: shards.digest(*made_by, row["digest"], known[row["clip_id"]]) for place, row in rows if row["clip_id"] in known}
    with shards.ItemWriter(output, schema, previous) as writer:
        new = [place for place, key in keys.items() if key not in writer]
        posteriors = _encode(shards.read_rows(mels, manifest.SPECTROGRAMS, wanted=new), encoding, mels)
        for place, key in keys.items():
            if not writer.copy(key):
                posterior = next(posteriors)
                row = rows[place][1]
                told = known[row["clip_id"]]
                with writer.item(key) as report:
                    shape = dict(zip(("channels", "frames", "bands"), posterior.shape[1:], strict=True))
                    writer.write({**told, **shape, "posterior": posterior.tobytes(), "digest": key})
                    report.count("clips")
                    report.count("captions", len(told["captions"]))
                    report.count("silent_frames", max(0, frames - row["num_frames"]))
                    report.count("cut_frames", max(0, row["num_frames"] - frames))
                    if told["split"] == "train":
                        report.details.append(_moments(posterior))
    return writer.report


def _encode(rows: Iterator[dict[str, Any]], encoding: Encoding, mels: Path) -> Iterator[np.ndarray]:
    """Mean and ln variance, float16 [2, channels, frames, bands], of row after row; the last batch is filled up with silence."""
    device = pick_device(encoding.accelerator)
    while some := list(islice(rows, encoding.at_once)):
        model = _load(encoding.autoencoder, encoding.about.autoencoder, encoding.accelerator)
        log_mels = np.full((encoding.at_once, model.spec.n_mels, encoding.about.frames), model.silence, np.float32)
        for log_mel, row in zip(log_mels, some, strict=False):
            values = np.frombuffer(row["log_mel"], "<f2").reshape(row["num_mels"], row["num_frames"])
            # A clip of as many samples as frames · hop has one frame more, at its end.
            if row["num_frames"] > encoding.about.frames + 1:
                raise UserError(
                    f"{mels}: clip {row['clip_id']!r} has {row['num_frames']} frames; raise latents.frames, now "
                    f"{encoding.about.frames}, or shorten its clips (clip_seconds)"
                )
            values = values[:, : encoding.about.frames]
            log_mel[:, : values.shape[1]] = values
        with autocast(device, encoding.applied_precision):
            posteriors = model.encode(torch.from_numpy(log_mels).to(device))
        posteriors = torch.stack(posteriors, dim=1).cpu().numpy().astype("<f2")
        for row, posterior in zip(some, posteriors, strict=False):
            if not np.isfinite(posterior).all():
                raise UserError(f"the latent of clip {row['clip_id']!r} does not fit into float16; train another autoencoder")
            yield posterior


def _moments(posterior: np.ndarray) -> list[float]:
    """Number, sum and sum of squares of a draw's values."""
    mean, log_variance = posterior.astype(np.float64)
    return [mean.size, float(mean.sum()), float((np.square(mean) + np.exp(log_variance)).sum())]


def scaled_deviation(moments: list[list[float]], scaling_factor: float) -> float:
    """Standard deviation of all training latents as the diffusion knows them: it should be 1."""
    count, total, squares = np.sum(moments, axis=0)
    return float(scaling_factor * np.sqrt(max(squares / count - (total / count) ** 2, 0.0)))


if __name__ == "__main__":
    stage.main(run, section="latents")
