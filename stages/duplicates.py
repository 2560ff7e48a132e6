"""Find duplicates, by sound and video, among the clips of the variant `default`."""

from collections import Counter
from typing import Any

from pydantic import Field

from soundmill import manifest, shards, stage
from soundmill.corpora import clip_pages
from soundmill.corpora.duplicates import find
from soundmill.params import Probability, StageParams
from soundmill.stage import Context, Input, Output, Shown


class DuplicatesParams(StageParams):
    threshold: Probability = Field(gt=0, description="share of the shorter clip that must be found in the other")
    report: clip_pages.ReportParams


def run(params: DuplicatesParams, ctx: Context, corpus: Input, clips: Input, duplicates: Output, report: Shown) -> dict[str, Any]:
    """Write all pairs of clips, of two recordings each, that are the same sound or seconds of one video, and the page."""
    columns = ["recording_id", "group", "start_time", "corpus"]
    recordings = shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS, columns)
    scratch = ctx.scratch / "duplicates"
    scratch.mkdir(exist_ok=True)
    result = find(clips, recordings, ctx.map_shards, scratch, params.threshold)
    shards.write_rows(result.pairs, duplicates, manifest.DUPLICATES)
    ctx.show(f"the page ({report.name})", lambda: clip_pages.write_duplicates(report, clips, result.pairs, params.report), report)
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
