"""Join the clips of a variant and their mixes to one variant, on which any family can be trained."""

import shutil
from typing import Any

from pydantic import Field

from soundmill import manifest, shards, stage
from soundmill.audio.flac import flac_rate
from soundmill.errors import UserError
from soundmill.params import StageParams
from soundmill.stage import Context, Input, Output


class MixedParams(StageParams):
    clips: str = Field(min_length=1, description="clip variant that the mixes are of")
    variant: str = Field(min_length=1, description="name of the variant of both")


def run(
    params: MixedParams, ctx: Context, clips: Input, catalog: Input, mixes: Input, mixed: Output, described: Output
) -> dict[str, Any]:
    """Write the shards of clips as they are, then those of mixes, and one catalog of both; mixes are training clips."""
    rows = shards.read_table(catalog, manifest.CATALOG).to_pylist()
    by_id = {row["clip_id"]: row for row in rows}
    mixed.mkdir(parents=True, exist_ok=True)
    for path in shards.shard_paths(clips):
        shutil.copyfile(path, mixed / path.name)
    first_free, num_clips = 1 + max(row["shard"] for row in rows), len(rows)
    for shard, path in enumerate(shards.shard_paths(mixes), first_free):
        with shards.ShardWriter(mixed / shards.shard_name(shard), manifest.CLIPS) as writer:
            for mix in shards.read_rows(path, manifest.MIXES):
                both = [mix["first"], mix["second"]]
                same = {name: mix[name] for name in ("clip_id", "digest")} | {"start": 0.0}
                writer.write({**by_id[both[0]], "quality": None, **same, **{name: mix[name] for name in ("audio", "num_samples")}})
                seconds = mix["num_samples"] / flac_rate(mix["audio"]["bytes"])
                told = {"captions": [mix["caption"]], "labels": mix["labels"], "seconds": seconds, "shard": shard, "mixed": both}
                rows.append({**by_id[both[0]], **same, **told})
    if len(rows) == num_clips:
        raise UserError(f"{mixes}: no mixes to train on: set mixup.pairing and mixup.ratio, or leave `mixing=on` out")
    shards.write_rows(rows, described, manifest.MIXED_CATALOG)
    return {"clips": num_clips, "mixes": len(rows) - num_clips}


if __name__ == "__main__":
    stage.main(run, section="mixed")
