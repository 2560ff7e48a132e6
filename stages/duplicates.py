"""Find duplicates among the clips of the variant `default`, by sound and by video."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import Field

from soundmill import manifest, shards, stage
from soundmill.corpora.duplicates import find
from soundmill.params import Probability, StageParams


class DuplicatesParams(StageParams):
    threshold: Probability = Field(gt=0, description="share of the shorter clip that must occur in the other")


def run(
    params: DuplicatesParams, ctx: stage.Context, corpus: stage.Input, clips: stage.Input, duplicates: stage.Output
) -> dict[str, Any]:
    """Write all pairs of clips of different recordings that have the same sound, or the same second of a video."""
    columns = ["recording_id", "group", "start_time", "corpus"]
    recordings = shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS, columns)
    scratch = ctx.scratch / "duplicates"
    scratch.mkdir(exist_ok=True)
    result = find(clips, recordings, ctx.map_shards, scratch, params.threshold)
    shards.write_rows(result.pairs, duplicates, manifest.DUPLICATES)

    recording_of = dict(zip(result.names["clip_id"].to_pylist(), result.names["recording_id"].to_pylist(), strict=True))
    corpus_of = dict(zip(recordings["recording_id"].to_pylist(), recordings["corpus"].to_pylist(), strict=True))
    across = sum(corpus_of[recording_of[pair["a"]]] != corpus_of[recording_of[pair["b"]]] for pair in result.pairs)
    return {
        "pairs": len(result.pairs),
        "by_kind": dict(Counter(pair["kind"] for pair in result.pairs)),
        "clips": len({clip for pair in result.pairs for clip in (pair["a"], pair["b"])}),
        "within_a_corpus": len(result.pairs) - across,
        "across_corpora": across,
        "featureless": len(result.featureless),
    }


if __name__ == "__main__":
    stage.main(run, section="duplicates")
