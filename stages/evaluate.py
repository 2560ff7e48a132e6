"""Score a family's generated sounds against real clips, with baselines for every score, and write the report page."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from soundmill import stage, terminal
from soundmill.audio.flac import write_wav
from soundmill.errors import UserError
from soundmill.evaluation import embedders, family, pairwise, protocols, scorer
from soundmill.evaluation.embedders import code_by_name
from soundmill.evaluation.library import Setup
from soundmill.evaluation.protocols import EvaluateParams
from soundmill.page.sounds import Card
from soundmill.params import read_json
from soundmill.stage import Context, Input, Shown


def run(
    params: EvaluateParams,
    ctx: Context,
    generated: Input,
    codec: Input,
    clips: Input,
    catalog: Input,
    tagger: Input,
    terms: Input,
    report: Shown,
) -> dict[str, Any]:
    """Score `generated` sounds (`<clip id>.wav`) and those of the `codec` against real clips; `terms` are those of its training."""
    protocols.check_weights(params.protocols)
    names, unavailable = usable_embedders(params.embedders)
    chosen = [
        protocols.load(name).model_copy(update={"seed": params.seed, "replicates": params.bootstrap}) for name in params.protocols
    ]
    protocol = chosen[0].with_embedders(names)
    cache = ctx.scratch / "embeddings"
    setup = Setup(protocol, cache, ctx.workers, tagger, ctx.progress, params.ladder, ctx.devices)
    source = family.read(catalog, clips, generated, codec)
    evaluation = family.evaluate(setup, source, params, unavailable)
    if not source.reconstructed:
        scorer.check_measured(protocol, evaluation.metrics["left_out"])
    pairwise.compare_with_base(setup, source, params, evaluation, generated, codec, catalog)
    for other in chosen[1:]:
        family.add_protocol(replace(setup, protocol=other, ladder=[]), source, params, evaluation)
    ctx.report_damaged(cache, evaluation.damaged)
    for warning in evaluation.metrics["warnings"]:
        terminal.say(f"{ctx.name}: {warning}")

    def show() -> None:
        of_training = read_json(terms, "`dvc repro`")
        cards = family.write_report(report, ctx.family or ctx.name, evaluation, source, params.examples, of_training)
        track(ctx, report, cards, evaluation.metrics, clips)

    ctx.show(f"the report ({report.name})", show)
    return {key: value for key, value in evaluation.metrics.items() if key != "warnings"}


def usable_embedders(requested: list[str]) -> tuple[list[str], dict[str, str]]:
    """The embedders whose weights are available, and the others with the reason; if none is available, raise UserError."""
    unavailable = {}
    for name in requested:
        reason = embedders.unavailable(name)
        if reason:
            terminal.say(f"evaluate: {name} is skipped: {reason}")
            unavailable[name] = embedders.find(name).missing
    names = [name for name in requested if name not in unavailable]
    if not names:
        raise UserError("no embedder is available; add `tagger` or `texture`, which need no download, to evaluate.embedders")
    return names, unavailable


def track(ctx: Context, report: Path, cards: list[Card], metrics: dict[str, Any], clips: Path) -> None:
    """Log the report, the chart, the reference as a data set, and the example sounds with their references."""
    for name in ("index.html", "card.md", "scores.md", "scores.json", "scores.csv", "scores.tex", "sounds.csv"):
        ctx.tracking.log_file(report / name, "report")
    for name in ("scores.png", "ladder.png"):
        if (report / name).exists():
            ctx.tracking.log_file(report / name, "figures")
    digest, count = metrics["files"]["reference"], metrics["counts"]["reference"]
    ctx.tracking.log_dataset("reference", digest, count, clips, "evaluation")
    for card in cards:
        for kind, sound in zip(("generated", "reference"), card.sounds, strict=True):
            path = ctx.scratch / "sounds" / f"{card.clip_id}.{kind}.wav"
            write_wav(path, sound.wave, sound.sample_rate, made_by=sound.made_by)
            ctx.tracking.log_file(path, "sounds")


if __name__ == "__main__":
    stage.main(run, section="evaluate", code_by_name=code_by_name)
