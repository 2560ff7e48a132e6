"""The vocoder of a family that makes log-mels: trained on the corpus's training clips, or loaded."""

from __future__ import annotations

from typing import Any

from soundmill import shards, stage
from soundmill.audio import figures
from soundmill.audio.mel import read_spec
from soundmill.models.catalog import read_weights
from soundmill.models.tango import pretrained, vocoder_training
from soundmill.models.tango import vocoder as vocoders
from soundmill.models.tango.params import VocoderParams
from soundmill.stage import Context, Input, Output, Shown
from soundmill.training.callbacks import write_curve
from soundmill.training.device import pick_device
from soundmill.training.loader import gather_log_mels
from soundmill.training.module import use_threads


def run(
    params: VocoderParams, ctx: Context, clips: Input, mels: Input, catalog: Input, vocoder: Output, curves: Output, grid: Shown
) -> dict[str, Any]:
    """Write the vocoder, its curve (no point if it was loaded) and a picture of clips, by it and by Griffin-Lim."""
    splits = read_weights(catalog)
    spec, weights = read_spec(mels), params.weights
    vocoders.check_hop(params.network, spec)
    use_threads(params.hardware.threads)
    if weights.kind == "train":
        model, points, facts = vocoder_training.train(params, ctx, spec, clips, mels, splits["train"])
    else:
        points = []
        model, facts = pretrained.load_vocoder(weights, params.network, spec, ctx.home, ctx.digests)
        print(f"{ctx.name}: {pretrained.LICENCE}", flush=True)
    model.to(pick_device(params.hardware.accelerator))

    split = "valid" if splits["valid"] else "train"
    chosen = sorted(sorted(splits[split], key=shards.digest)[: vocoder_training.MEASURED_CLIPS])
    log_mels = gather_log_mels(mels, chosen, ctx.scratch)
    measured, pictures = vocoder_training.measure(model, log_mels, params)
    write_curve(points, curves)
    vocoders.save(model, vocoder, {"kind": weights.kind, **facts})

    def show() -> None:
        figure = vocoder_training.draw(pictures, chosen, spec, f"vocoder on {split} clips")
        figures.save_png(figure, grid)
        ctx.tracking.log_figure(figure, "vocoder")

    ctx.show(f"the picture ({grid.name})", show)
    return {
        "parameters": sum(weight.numel() for weight in model.net.parameters()),
        "measured_clips": len(chosen),
        **{f"{split}_{key}": value for key, value in measured.items()},
        **({"loss": points[-1]["loss"], "steps": weights.steps} if points else {}),
    }


if __name__ == "__main__":
    stage.main(run, section="vocoder")
