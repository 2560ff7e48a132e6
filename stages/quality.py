"""Hold every clip to the rules of quality, find what the corpus holds twice, and write the page that shows and plays both."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from soundmill import manifest, shards, stage
from soundmill.corpora import quality_report
from soundmill.corpora.duplicates import find
from soundmill.corpora.verdicts import Limit, Survey, judge
from soundmill.errors import UserError
from soundmill.params import Decibels, Hertz, Probability, Seconds, StageParams


class Rules(StageParams):
    """Limits of what was measured at decoding; null: the rule is off. In this order: the first that is broken is the reason."""

    min_seconds: Seconds | None
    min_level_db: Decibels | None  # A-weighted, of the loudest window; digital silence is below every limit
    max_level_db: Decibels | None
    max_silence_ratio: Probability | None
    max_clipping_ratio: Probability | None
    max_dc_offset: float | None = Field(ge=0)  # of either sign
    min_bandwidth_hz: Hertz | None
    min_channel_correlation: float | None = Field(ge=-1, le=1)

    def limits(self) -> list[Limit]:
        return [Limit(name, value) for name, value in self.model_dump().items() if value is not None]


class DuplicateParams(StageParams):
    threshold: Probability = Field(gt=0, description="share of the shorter clip that must be found in the other")


class ReportParams(StageParams):
    examples: int = Field(ge=0, le=200, description="clips to see and hear of each rule, and pairs of duplicates")
    megabytes: float = Field(ge=0, le=500, description="of sound in the page, at most")


class QualityParams(StageParams):
    rules: Rules
    duplicates: DuplicateParams
    report: ReportParams


def run(
    params: QualityParams,
    ctx: stage.Context,
    corpus: stage.Input,
    clips: stage.Input,
    verdicts: stage.Output,
    duplicates: stage.Output,
    report: stage.Shown,
) -> dict[str, Any]:
    """Write a verdict on every clip, all pairs of duplicates and the page; clips that break a rule go to quarantine."""
    columns = ["recording_id", "group", "start_time", "corpus"]
    recordings = shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS, columns)
    survey, rejected = judge(clips, recordings, params.rules.limits(), verdicts)
    _check_left(survey, len(rejected))
    ctx.quarantine.extend(rejected)

    scratch = ctx.scratch / "duplicates"
    scratch.mkdir(exist_ok=True)
    found = find(clips, recordings, ctx.map_shards, scratch, params.duplicates.threshold)
    shards.write_rows(found.pairs, duplicates, manifest.DUPLICATES)

    places = quality_report.places(survey, found.names, {clip for pair in found.pairs for clip in (pair["a"], pair["b"])})
    corpus_of = _corpus_of({place.recording_id for place in places.values()}, recordings)
    across = sum(corpus_of[places[pair["a"]].recording_id] != corpus_of[places[pair["b"]].recording_id] for pair in found.pairs)
    metrics = {
        "clips": len(survey),
        "kept": len(survey) - len(rejected),
        "rejected_for": survey.rejected_for(),
        "broken": survey.broken(),
        "measures": survey.spread(),
        "duplicates": {
            "pairs": len(found.pairs),
            "by_kind": dict(Counter(pair["kind"] for pair in found.pairs)),
            "clips": len(places),
            "within_a_corpus": len(found.pairs) - across,
            "across_corpora": across,
            "featureless": len(found.featureless),
        },
    }

    def show() -> None:
        quality_report.write(report, survey, found.pairs, places, params.report.examples, int(params.report.megabytes * 1e6))
        ctx.tracking.log_file(report)

    ctx.show(f"the page ({report.name})", show)
    return metrics


def _check_left(survey: Survey, rejected: int) -> None:
    if rejected == len(survey):
        broken = survey.broken()
        limit = max(survey.limits, key=lambda limit: broken[limit.name])
        median = survey.spread()[limit.measure].get("p50", "none")
        raise UserError(
            f"every one of the {len(survey)} clips breaks a rule, {broken[limit.name]} of them quality.rules.{limit.name} "
            f"{limit.value:g} (median of {limit.measure}: {median}); loosen it in params.yaml, or switch it off with null"
        )


def _corpus_of(ids: set[str], recordings: pa.Table) -> dict[str, str]:
    found = recordings.filter(pc.is_in(recordings["recording_id"], pa.array(ids, pa.string())))
    return dict(zip(found["recording_id"].to_pylist(), found["corpus"].to_pylist(), strict=True))


if __name__ == "__main__":
    stage.main(run, section="quality")
