"""Compare every clip with words (zero-shot tags) and with its captions, by a network that embeds sounds and texts in one space."""

from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from soundmill import hashing, manifest, shards, stage
from soundmill.audio.flac import decode_mono, flac_rate
from soundmill.audio.resample import resample
from soundmill.corpora import catalog as catalogs
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import EmbedderName, code_by_name
from soundmill.params import StageParams
from soundmill.stage import Context, Input, Output

WORD = "{word}"
DIGITS = 4  # of scores, as last bits differ between processors
TABLES_AT_ONCE = 8192  # rows of shards that are joined at a time
TEXTS_HELD = 4096  # embeddings of captions in memory: clips of one recording share them


class ZeroShotParams(StageParams):
    embedder: EmbedderName | None = Field(description="of sounds and texts; null: nothing is compared")
    words: list[str] = Field(description="candidates for tags; []: no tags")
    prompt: str = Field(description="text that stands for a word, with {word} in it")
    tags: int = Field(ge=1, le=100, description="words per clip, the best first")

    @field_validator("embedder")
    @classmethod
    def _embeds_texts(cls, name: str | None) -> str | None:
        if name is not None and not embedders.find(name).texts:
            able = [other for other in embedders.NAMES if embedders.find(other).texts]
            raise ValueError(f"{name} embeds no texts; there are {', '.join(able)}")
        return name

    @field_validator("words")
    @classmethod
    def _each_once(cls, words: list[str]) -> list[str]:
        if len(set(words)) < len(words) or not all(word.strip() for word in words):
            raise ValueError("contains a word twice, or an empty one")
        return words

    @field_validator("prompt")
    @classmethod
    def _has_the_word(cls, prompt: str) -> str:
        if WORD not in prompt:
            raise ValueError(f"{prompt!r} must contain {WORD}")
        return prompt


def run(params: ZeroShotParams, ctx: Context, corpus: Input, clips: Input, scores: Output) -> dict[str, Any]:
    """Write the scores of every clip's captions and best words; without an embedder, an empty table."""
    if params.embedder is None:
        shards.write_rows([], scores, manifest.ZERO_SHOT)
        return {"clips": 0, "captions": 0}
    if reason := embedders.find(params.embedder).unavailable():
        raise UserError(f"zero_shot.embedder {params.embedder}: {reason}")
    from soundmill.training.device import pick_device

    weights = embedders.find(params.embedder).digest(None)
    paths = {path.name: path for path in shards.shard_paths(clips)}
    jobs = []
    for shard, recordings, captions in catalogs.by_shard(corpus):
        if (path := paths.get(shards.shard_name(shard))) is not None:
            with shards.open_parquet(path) as file:
                num_clips = file.metadata.num_rows
            key = hashing.digest(hashing.signature(path), shards.table_digest(recordings), shards.table_digest(captions), weights)
            jobs.append(shards.Job(path.name, (path, shard, recordings, captions, params, weights), num_clips, key))
    if pick_device("auto").type != "cpu":
        ctx = replace(ctx, workers=ctx.devices or 1)  # each would hold the network on the same GPU
    report, made = ctx.make_shards(score_shard, jobs, "scores")
    with shards.ShardWriter(scores, manifest.ZERO_SHOT) as writer:
        for tables in shards.read_tables((made / job.name for job in jobs), manifest.ZERO_SHOT, None, TABLES_AT_ONCE):
            writer.write_table(pa.concat_tables(tables))
    return {name: report.counts.get(name, 0) for name in ("clips", "captions")}


def score_shard(
    path: Path,
    shard: int,
    recordings: pa.Table,
    captions: pa.Table,
    params: ZeroShotParams,
    weights: str,
    output: Path,
    previous: Path | None = None,
) -> shards.Report:
    """Write the scores of one shard's clips; `weights` is the digest of the network."""
    rows = catalogs.clip_rows(path)
    described = catalogs.match(recordings.to_pylist(), captions.to_pylist(), rows, ()).clips
    texts_of = {clip_id: list(dict.fromkeys(description.captions)) for clip_id, description in described.items()}
    keys = [hashing.digest(weights, row["clip_id"], row["digest"], texts_of.get(row["clip_id"], [])) for row in rows]
    prompts = tuple(params.prompt.replace(WORD, word) for word in params.words)
    with shards.ItemWriter(output, manifest.ZERO_SHOT, previous) as writer:
        new = [place for place, key in enumerate(keys) if key not in writer]
        sounds = shards.read_rows(path, manifest.CLIPS, ["audio"], new)
        for _, row, report in writer.new(zip(keys, rows, strict=True)):
            texts = texts_of.get(row["clip_id"], [])
            sound = embed_sound(params.embedder, next(sounds)["audio"]["bytes"])
            points = [round(float(sound @ _of_texts(params.embedder, (text,))[0]), DIGITS) for text in texts]  # cosines
            scored = [{"caption": text, "score": point} for text, point in zip(texts, points, strict=True)]
            tags = []
            if params.words:  # the best first; of equal ones, the first in the list
                points = np.round(_of_texts(params.embedder, prompts) @ sound, DIGITS)
                order = np.argsort(-points, kind="stable")[: params.tags]
                tags = [{"tag": params.words[place], "score": float(points[place])} for place in order]
            writer.write({"clip_id": row["clip_id"], "shard": shard, "captions": scored, "tags": tags})
            report.count("clips")
            report.count("captions", len(texts))
    return writer.report


def embed_sound(embedder: str, flac: bytes) -> np.ndarray:
    """Unit vector [D] of a clip: the mean of its windows. One clip at a time, as others in a batch would change the last bits."""
    network = _network(embedder)
    wave = resample(decode_mono(flac), flac_rate(flac), network.sample_rate)
    (windows,) = network.embed([wave]).frames
    return _unit(windows.mean(axis=0, dtype=np.float64))


@cache
def _network(embedder: str) -> embedders.Embedder:
    """Once per worker process."""
    return embedders.load(embedder, None)


@lru_cache(TEXTS_HELD)
def _of_texts(embedder: str, texts: tuple[str, ...]) -> np.ndarray:
    """Unit vectors [N, D] of texts that are embedded together, as others in a batch change the last bits."""
    return np.stack([_unit(vector.astype(np.float64)) for vector in _network(embedder).embed_texts(list(texts))])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


if __name__ == "__main__":
    stage.main(run, section="zero_shot", code_by_name=code_by_name)
