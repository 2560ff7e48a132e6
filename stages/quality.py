"""Apply the quality rules to every clip; write a page with the measures and the rejected clips."""

from typing import Any

from pydantic import Field

from soundmill import attribution, manifest, shards, stage
from soundmill.corpora import clip_pages
from soundmill.corpora.clip_pages import Limit, apply_rules
from soundmill.errors import UserError
from soundmill.params import Decibels, Hertz, Probability, Seconds, StageParams
from soundmill.stage import Context, Input, Output, Shown


class Rules(StageParams):
    """Limits of the measures; null: off. The first broken rule in this order is the reason for rejection."""

    min_seconds: Seconds | None
    min_level_db: Decibels | None  # A-weighted, of the loudest window; digital silence always fails
    max_level_db: Decibels | None
    max_silence_ratio: Probability | None
    max_clipping_ratio: Probability | None
    max_dc_offset: float | None = Field(ge=0)  # of either sign
    min_bandwidth_hz: Hertz | None
    min_channel_correlation: float | None = Field(ge=-1, le=1)


class QualityParams(StageParams):
    rules: Rules
    report: clip_pages.ReportParams


def run(params: QualityParams, ctx: Context, corpus: Input, clips: Input, verdicts: Output, report: Shown) -> dict[str, Any]:
    """Write a verdict on every clip and the page; clips that break a rule go to quarantine."""
    recordings = shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS, ["recording_id", "corpus"])
    limits = [Limit(name, value) for name, value in params.rules.model_dump().items() if value is not None]
    quality, rejected = apply_rules(clips, recordings, limits, verdicts)
    if len(rejected) == len(quality):
        broken = quality.broken()
        limit = max(quality.limits, key=lambda limit: broken[limit.name])
        median = quality.spread()[limit.measure].get("p50", "none")
        raise UserError(
            f"all {len(quality)} clips break a rule, {broken[limit.name]} of them quality.rules.{limit.name} "
            f"{limit.value:g} (median of {limit.measure}: {median}); relax it in params.yaml, or turn it off with null"
        )
    ctx.quarantine.extend(rejected)

    def show() -> None:
        columns = ["clip_id", "recording_id", "source", "start", "digest", "quality"]
        rows = shards.rows_below(clips, manifest.CLIPS, columns)
        timed = ({**row, "seconds": row["quality"]["seconds"]} for row in rows)
        terms = attribution.summary(attribution.credits_of_clips(timed, corpus / "recordings.parquet"))["hours"]
        clip_pages.write_quality(report, quality, params.report, terms)

    ctx.show(f"the page ({report.name})", show, report)
    return {
        "clips": len(quality),
        "kept": len(quality) - len(rejected),
        "rejected_for": quality.rejected_for(),
        "broken": quality.broken(),
        "measures": quality.spread(),
    }


if __name__ == "__main__":
    stage.main(run, section="quality")
