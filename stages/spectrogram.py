"""Log-mel spectrograms of clips under one named mel spec; one shard per shard of clips."""

from pathlib import Path
from typing import Any

import numpy as np

from soundmill import hashing, manifest, shards, stage
from soundmill.audio.flac import decode_mono, flac_rate
from soundmill.audio.log_mels import SPEC_KEY
from soundmill.audio.mel import MelSpec, SpectrogramParams, check_sample_rate, log_mel
from soundmill.manifest import SOUND
from soundmill.stage import Context, Input, Output


def run(params: SpectrogramParams, ctx: Context, audio: Input, spectrograms: Output) -> dict[str, Any]:
    """Write a spectrogram for every clip of the shards in `audio`, any of which may have no rows."""
    spec_json = params.spec.model_dump_json()
    jobs = []
    for path in shards.shard_paths(audio):
        facts = hashing.signature(path)
        # Weighted by size: opening thousands of shards to count their clips would take half a second.
        jobs.append(shards.Job(path.name, (path, spec_json), path.stat().st_size, hashing.digest(facts)))
    report = ctx.map_shards(spectrogram_shard, jobs, spectrograms, unit="B")
    return {"clips": report.counts.get("clips", 0), "frames": report.counts.get("frames", 0), "bands": params.n_mels}


def spectrogram_shard(audio: Path, spec_json: str, output: Path, previous: Path | None = None) -> shards.Report:
    """Write the log-mels of one shard, with the spec in its metadata."""
    spec = MelSpec.model_validate_json(spec_json)
    schema = manifest.SPECTROGRAMS.with_metadata({SPEC_KEY: spec_json.encode()})
    with shards.ItemWriter(output, schema, previous) as writer:
        plain = shards.read_rows(audio, SOUND, columns=["clip_id", "digest"])
        keyed = [(f"{row['clip_id']} {row['digest']}", number) for number, row in enumerate(plain)]
        new = shards.read_rows(audio, SOUND, SOUND.names, rows=[number for key, number in keyed if key not in writer])
        for _, _, report in writer.new(keyed):
            row = next(new)
            values = _log_mel(row, spec, audio)
            made = {"clip_id": row["clip_id"], "digest": hashing.digest(spec_json, row["digest"])}
            shape = {"num_mels": values.shape[0], "num_frames": values.shape[1]}
            writer.write({**made, **shape, "log_mel": values.tobytes()})
            report.count("clips")
            report.count("frames", values.shape[1])
    return writer.report


def _log_mel(row: dict[str, Any], spec: MelSpec, audio: Path) -> np.ndarray:
    wave, sample_rate = decode_mono(row["audio"]["bytes"]), flac_rate(row["audio"]["bytes"])
    check_sample_rate(spec, sample_rate, f"{audio}: clip {row['clip_id']!r}")
    return np.ascontiguousarray(log_mel(wave, spec).astype("<f2"))


if __name__ == "__main__":
    stage.main(run, section="spectrogram")
