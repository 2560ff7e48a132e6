"""The mel autoencoder of a latent family: trained on the corpus's training clips, or loaded."""

from __future__ import annotations

from typing import Any

from soundmill import stage
from soundmill.audio import figures
from soundmill.audio.mel import read_spec
from soundmill.models.catalog import read_weights
from soundmill.models.tango import autoencoder as autoencoders
from soundmill.models.tango import autoencoder_training, pretrained
from soundmill.models.tango.params import AutoencoderParams
from soundmill.stage import Context, Input, Output, Shown
from soundmill.training.callbacks import write_curve
from soundmill.training.device import pick_device
from soundmill.training.module import use_threads


def run(
    params: AutoencoderParams, ctx: Context, mels: Input, catalog: Input, autoencoder: Output, curves: Output, grid: Shown
) -> dict[str, Any]:
    """Write the autoencoder, its curve (no point if it was loaded) and a picture of clips beside what it makes of them."""
    splits = read_weights(catalog)
    weights = params.weights
    use_threads(params.hardware.threads)
    if weights.kind == "train":
        model, points, facts = autoencoder_training.train(params, ctx, mels, splits["train"])
    else:
        spec, points = read_spec(mels), []
        autoencoders.check_shape(params.network, spec)
        model, facts = pretrained.load(weights, params.network, spec, ctx.home, ctx.digests)
        print(f"{ctx.name}: {pretrained.LICENCE}", flush=True)
        model.to(pick_device(params.hardware.accelerator))

    split = "valid" if splits["valid"] else "train"
    log_mels = autoencoder_training.held_out(mels, list(splits[split]), ctx.scratch)
    measured = autoencoder_training.measure(model, log_mels)
    write_curve(points, curves)
    digest = autoencoders.save(model, autoencoder, {"kind": weights.kind, **facts})

    def show() -> None:
        figure = autoencoder_training.draw(model, log_mels, f"autoencoder on {split} clips")
        figures.save_png(figure, grid)
        ctx.tracking.log_figure(figure, "autoencoder")

    ctx.show(f"the picture ({grid.name})", show)
    return {
        "digest": digest,
        "parameters": sum(weight.numel() for weight in model.net.parameters()),
        "scaling_factor": model.scaling_factor,
        "measured_clips": len(log_mels),
        f"{split}_l1_db": measured["l1_db"],
        "kl": measured["kl"],
        "latent_std": measured["latent_std"],
        **({"loss": points[-1]["loss"], "steps": weights.steps} if points else {}),
    }


if __name__ == "__main__":
    stage.main(run, section="autoencoder")
