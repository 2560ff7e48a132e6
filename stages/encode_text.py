"""Encode every distinct caption of clips and mixes with a frozen text encoder, once, so that no training runs it."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from soundmill import hashing, manifest, shards, stage, terminal, text
from soundmill.errors import UserError
from soundmill.params import Seed, StageParams
from soundmill.stage import Context, Input, Output

NULL = ""  # the unconditional caption of classifier-free guidance, always encoded


class ScratchParams(StageParams):
    """Sizes of `byt5-scratch`, an encoder with random weights."""

    width: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    seed: Seed

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        return self


class EncodeTextParams(StageParams):
    clips: str = Field(min_length=1, description="clip variant; its captions and those of mixes are encoded")
    encoder: str = Field(min_length=1, description="id on the Hugging Face hub, a directory, or `byt5-scratch`")
    revision: str | None = Field(description="commit on the hub, 40 hex digits")
    max_tokens: int = Field(ge=1, le=4096, description="longer captions are truncated and counted")
    scratch: ScratchParams = Field(description="sizes of `byt5-scratch`")


def run(params: EncodeTextParams, ctx: Context, catalog: Input, mixes: Input, states: Output) -> dict[str, Any]:
    """Write the states of every distinct caption and the empty one, sharded by hash; only new captions are computed."""
    rows = shards.read_table(catalog, manifest.CATALOG, ["shard", "captions"]).to_pylist()
    captions = {NULL, *(caption for row in rows for caption in row["captions"])}
    captions |= {row["caption"] for row in shards.rows_below(mixes, manifest.MIXES, ["caption"])}
    if params.encoder == text.SCRATCH:
        encoder = text.make_scratch(ctx.scratch / "encoder", **params.scratch.model_dump())
        terminal.say(
            f"{ctx.name}: WARNING: {text.SCRATCH} has random weights: it distinguishes captions but not their meaning, and models "
            "trained on it will not understand new captions. Set `encoder` to a pretrained one"
        )
    else:
        encoder = text.find(params.encoder, params.revision, ctx.home, ctx.digests)

    count = 1 + max((row["shard"] for row in rows), default=0)
    by_shard: dict[int, list[str]] = defaultdict(list)
    for caption in sorted(captions):
        by_shard[shards.shard_of(caption, count)].append(caption)
    # Encoding a prompt later needs the same encoder; random weights are rebuilt from their sizes and seed.
    scratch = None if encoder.pretrained else params.scratch.model_dump()
    about = {**encoder.identity(), "max_tokens": params.max_tokens, "scratch": scratch}
    jobs = [
        shards.Job(shards.shard_name(index), (some, encoder, about), len(some), hashing.digest(encoder.digest, about, some))
        for index, some in sorted(by_shard.items())
    ]
    report = ctx.map_shards(encode_shard, jobs, states, unit="caption")
    truncated = report.counts.get("truncated", 0)
    if truncated:
        terminal.say(f"{ctx.name}: {truncated} of {len(captions)} captions were truncated to {params.max_tokens} tokens")
    return {
        "captions": len(captions),
        "tokens": report.counts["tokens"],
        "truncated": truncated,
        "encoder": encoder.identity(),
    }


def encode_shard(
    captions: list[str], encoder: text.Encoder, about: dict[str, Any], output: Path, previous: Path | None = None
) -> shards.Report:
    """Write the states of one shard's captions; `about` identifies the encoder in the shard's metadata."""
    max_tokens = about["max_tokens"]
    schema = manifest.TEXT_STATES.with_metadata({text.ENCODER_KEY: json.dumps(about, sort_keys=True).encode()})
    with shards.ItemWriter(output, schema, previous) as writer:
        keyed = ((hashing.digest(encoder.digest, max_tokens, caption), caption) for caption in captions)
        for digest, caption, report in writer.new(keyed):
            states, truncated = text.load(encoder, max_tokens)(caption)
            values = states.astype("<f2")
            if not np.isfinite(values).all():
                raise UserError(f"the text encoder's states of {caption!r} do not fit into float16; use another encoder")
            row = {"digest": digest, "caption": caption, "states": values.tobytes()}
            writer.write({**row, "num_tokens": values.shape[0], "width": values.shape[1]})
            report.count("tokens", values.shape[0])
            report.count("truncated", int(truncated))
    return writer.report


if __name__ == "__main__":
    stage.main(run, section="text")
