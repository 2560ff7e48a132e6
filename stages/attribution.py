"""Name whose sounds a family's checkpoint was trained on, and under which terms; the training need not run again for that."""

import json
from typing import Any

from soundmill import attribution, hashing, stage
from soundmill.params import StageParams
from soundmill.stage import Context, Input, Output


def run(params: StageParams, ctx: Context, model: Input, corpus: Input, table: Output, summary: Output) -> dict[str, Any]:
    """Write the table of credits (CSV), and what pages show of it (JSON), which no spelling of a name changes."""
    found = attribution.credits_of(model, corpus / "recordings.parquet")
    attribution.write(found, table)
    summary.write_text(json.dumps(attribution.summary(found), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    ctx.tracking.log_model_attribution(hashing.model_digest(model), ctx.family, table, attribution.tags(found))
    return {
        "recordings": sum(bool(credit.recording) for credit in found),
        "creators": len({credit.creator for credit in found} - {""}),
        "without_list": sum(not credit.recording for credit in found),
    }


if __name__ == "__main__":
    stage.main(run, section="attribution")
