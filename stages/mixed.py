"""Join the clips of a variant and their mixes to one variant, on which any family can be trained."""

import shutil
from typing import Any

from pydantic import Field

from soundmill import manifest, shards, stage
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
    last, num_clips = max(int(path.stem.rpartition("-")[2]) for path in mixed.glob("*.parquet")), len(rows)
    for shard, path in enumerate(shards.shard_paths(mixes), last + 1):
        with shards.ShardWriter(mixed / shards.shard_name(shard), manifest.CLIPS) as writer:
            for mix in shards.read_rows(path, manifest.MIXES):
                both = [mix["first"], mix["second"]]
                same = {name: mix[name] for name in ("clip_id", "digest")} | {"start": 0.0}
                writer.write({**by_id[both[0]], "quality": None, **same, **{name: mix[name] for name in ("audio", "num_samples")}})
                seconds = [by_id[one]["seconds"] for one in both]
                longest = None if None in seconds else max(seconds)
                told = {"captions": [mix["caption"]], "labels": mix["labels"], "seconds": longest, "shard": shard, "mixed": both}
                rows.append({**by_id[both[0]], **same, **told})
    if len(rows) == num_clips:
        raise UserError(
            f"{mixes}: no mixes to train on: set mixup.pairing and mixup.ratio, or leave `mixing=on` out; clips without a caption "
            "(catalog.caption_templates), or of one recording alone, are not mixed"
        )
    shards.write_rows(rows, described, manifest.MIXED_CATALOG)
    return {"clips": num_clips, "mixes": len(rows) - num_clips}


if __name__ == "__main__":
    stage.main(run, section="mixed")
