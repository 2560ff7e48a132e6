"""Encode clips or mixes with a family's codec, once, so that no training runs it; one shard per audio shard."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from soundmill import hashing, manifest, shards, stage
from soundmill.audio.flac import decode_flac, flac_rate
from soundmill.errors import UserError
from soundmill.manifest import SOUND
from soundmill.models.components import registry
from soundmill.models.components.contracts import Encoder, LatentsParams, read_codec
from soundmill.models.components.latents.store import ABOUT_KEY, LatentsAbout
from soundmill.stage import Context, Input, Output
from soundmill.training.device import autocast, pick_device


def run(
    params: LatentsParams, ctx: Context, audio: Input, autoencoder: Input, latents: Output, catalog: Input = None
) -> dict[str, Any]:
    """Write the posterior of every clip of the catalog; without a catalog, of every mix."""
    device = pick_device(params.accelerator)
    if catalog is not None:
        rows = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "split", "captions"]).to_pylist()
    else:
        rows = [
            {**row, "split": "train", "captions": [row.pop("caption")]}
            for row in shards.rows_below(audio, manifest.MIXES, ["clip_id", "caption", "first", "second"])
        ]
    remaining = {row["clip_id"]: row for row in rows}
    codec = read_codec(autoencoder)
    about = LatentsAbout(autoencoder=codec.digest, scaling_factor=codec.scaling_factor, num_samples=params.num_samples)
    encoding = Encoding(autoencoder, about, params.accelerator, params.batch_size, params.precision)
    jobs = []
    for path in shards.shard_paths(audio):
        ids = shards.read_table(path, SOUND, ["clip_id"])["clip_id"].to_pylist()
        described = {clip_id: remaining.pop(clip_id) for clip_id in ids if clip_id in remaining}
        key = hashing.digest(hashing.signature(path), encoding.made_by, about.model_dump(mode="json"), described)
        jobs.append(shards.Job(path.name, (path, described, encoding), len(described), key))
    if remaining:
        raise UserError(
            f"{audio}: {len(remaining)} clips of the catalog are missing, first {min(remaining)!r}; `dvc repro` rebuilds it"
        )
    if device.type != "cpu":
        ctx = replace(ctx, workers=ctx.devices or 1)  # one process fills a GPU; several would each hold the network and batches
    report = ctx.map_shards(encode_shard, jobs, latents)
    metrics = {name: report.counts.get(name, 0) for name in ("clips", "captions", "silent_samples")}
    if report.details:
        count, total, squares = np.sum(report.details, axis=0)
        # The standard deviation of all training latents as scaled for diffusion; it should be 1.
        metrics["latent_std"] = float(codec.scaling_factor * np.sqrt(max(squares / count - (total / count) ** 2, 0.0)))
    return {**metrics, "autoencoder": codec.digest}


@dataclass(frozen=True)
class Encoding:
    """How clips are encoded; plain values that other processes can unpickle."""

    autoencoder: Path
    about: LatentsAbout
    accelerator: str
    batch_size: int
    precision: str

    @property
    def at_once(self) -> int:
        """Clips per batch: one on a CPU, where other clips in the batch would change the last bits."""
        return 1 if pick_device(self.accelerator).type == "cpu" else self.batch_size

    @property
    def made_by(self) -> list[Any]:
        """What a clip's posterior depends on besides its wave."""
        return [self.about.autoencoder, self.about.num_samples, pick_device(self.accelerator).type, self.applied_precision]

    @property
    def applied_precision(self) -> str:
        return "32" if pick_device(self.accelerator).type == "cpu" else self.precision


@lru_cache(maxsize=1)
def _load(directory: Path, digest: str, accelerator: str) -> Encoder:
    """Load the codec, once per process and `digest`."""
    return registry.load_codec(directory).to(pick_device(accelerator))


def encode_shard(
    audio: Path, described: dict[str, dict[str, Any]], encoding: Encoding, output: Path, previous: Path | None = None
) -> shards.Report:
    """Write the posteriors of one shard's clips that are in `described`: catalog rows by clip id."""
    schema = manifest.LATENTS.with_metadata({ABOUT_KEY: encoding.about.model_dump_json().encode()})
    if previous and pq.read_schema(previous).metadata != schema.metadata:
        previous = None  # of another autoencoder: its rows differ, and an empty shard must not be reused either
    rows = [(row["clip_id"], row["digest"]) for row in shards.read_rows(audio, SOUND, ["clip_id", "digest"])]
    keys = {
        place: hashing.digest(*encoding.made_by, digest, described[clip_id])
        for place, (clip_id, digest) in enumerate(rows)
        if clip_id in described
    }
    with shards.ItemWriter(output, schema, previous) as writer:
        new = [place for place, key in keys.items() if key not in writer]
        encoded = _encode(shards.read_rows(audio, SOUND, rows=new), encoding, audio)
        for key, place, report in writer.new((key, place) for place, key in keys.items()):
            num_samples, posterior = next(encoded)
            row = described[rows[place][0]]
            shape = dict(zip(("channels", "frames", "bands"), posterior.shape[1:], strict=True))
            writer.write({**row, **shape, "posterior": posterior.tobytes(), "digest": key})
            report.count("clips")
            report.count("captions", len(row["captions"]))
            report.count("silent_samples", encoding.about.num_samples - num_samples)
            if row["split"] == "train":
                mean, log_variance = posterior.astype(np.float64)
                square = np.square(mean) + np.exp(log_variance)  # as expected of the values drawn from it
                report.details.append([mean.size, float(mean.sum()), float(square.sum())])
    return writer.report


def _encode(rows: Iterator[dict[str, Any]], encoding: Encoding, audio: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Each wave's length, and its latent's mean and log variance, float16 [2, channels, frames, bands]; silence fills a batch."""
    device, num_samples = pick_device(encoding.accelerator), encoding.about.num_samples
    while batch := list(islice(rows, encoding.at_once)):
        encoder = _load(encoding.autoencoder, encoding.about.autoencoder, encoding.accelerator)
        waves = [_wave(row, encoder, num_samples, audio) for row in batch]
        filler = [np.zeros_like(waves[0])] * (encoding.at_once - len(waves))
        with autocast(device, encoding.applied_precision):
            posteriors = encoder.posterior([*waves, *filler], num_samples)
        posteriors = posteriors.cpu().numpy().astype("<f2")
        for row, wave, posterior in zip(batch, waves, posteriors, strict=False):
            if not np.isfinite(posterior).all():
                raise UserError(f"the latent of clip {row['clip_id']!r} overflows float16; train another autoencoder")
            yield wave.shape[1], posterior


def _wave(row: dict[str, Any], encoder: Encoder, num_samples: int, audio: Path) -> np.ndarray:
    """A row's wave [channels, T] with the codec's channels."""
    data, name = row["audio"]["bytes"], f"{audio}: clip {row['clip_id']!r}"
    wave = decode_flac(data)
    if encoder.channels == 1:
        wave = wave.mean(0, keepdims=True)
    if (flac_rate(data), len(wave)) != (encoder.sample_rate, encoder.channels):
        raise UserError(
            f"{name} has {len(wave)} channels at {flac_rate(data)} Hz, the autoencoder needs {encoder.channels} at "
            f"{encoder.sample_rate}; choose a clip variant of that form"
        )
    if wave.shape[1] > num_samples:
        raise UserError(f"{name} has {wave.shape[1]} samples; raise latents.num_samples (now {num_samples}) or shorten the clips")
    return wave


def code_by_name(family: str | None, section: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    return [registry.kind_of("autoencoder", parameters["latent_families"][family]["codec"]).component]


if __name__ == "__main__":
    stage.main(run, section="latents", code_by_name=code_by_name)
