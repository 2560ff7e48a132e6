"""Make the mel autoencoder for its stage: train it on the training clips or load it, and measure it."""

from functools import partial
from pathlib import Path
from typing import Any

from soundmill import terminal
from soundmill.audio.log_mels import read_spec
from soundmill.models.catalog import read_weights
from soundmill.models.components.contracts import MadeComponent
from soundmill.models.components.loaded import LICENCE
from soundmill.models.components.mel_autoencoder import autoencoder, pretrained, training
from soundmill.models.components.mel_autoencoder.params import AutoencoderParams
from soundmill.training.device import pick_device, use_threads


def make(params: AutoencoderParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    splits = read_weights(catalog)
    weights = params.weights
    use_threads(params.hardware.threads)
    if taken := weights.kind == "train" and not weights.steps:
        spec, fitted, facts = read_spec(mels), None, {"taken_from": weights.start_from}
        model = training.read_start(params, spec, ctx.home)
        model.to(pick_device(params.hardware.accelerator))
    elif weights.kind == "train":
        model, fitted, facts = training.train(params, ctx, mels, splits["train"], list(splits["valid"]))
    else:
        spec, fitted = read_spec(mels), None
        params.check_spec(spec)
        model, facts = pretrained.load(weights, params.network, spec, ctx.home, ctx.digests)
        terminal.say(f"{ctx.name}: {LICENCE}")
        model.to(pick_device(params.hardware.accelerator))

    split = "valid" if splits["valid"] else "train"
    log_mels = training.held_out(mels, list(splits[split]), ctx.scratch)
    residual = model.residual
    measured = training.measure(model, log_mels)
    if taken:
        model.residual = residual  # a constant of the codec, whose digest must stay that of its source
    metrics = {
        "parameters": sum(weight.numel() for weight in model.net.parameters()),
        "scaling_factor": model.scaling_factor,
        "measured_clips": len(log_mels),
        f"{split}_l1_db": measured["l1_db"],
        "kl": measured["kl"],
        "latent_std": measured["latent_std"],
        **({**fitted.metrics, "steps": weights.steps} if fitted else {}),
    }
    return MadeComponent(
        save=lambda directory: {"digest": autoencoder.save(model, directory, {"kind": weights.kind, **facts})},
        points=fitted.points if fitted else [],
        metrics=metrics,
        steps=weights.steps if fitted else 0,
        draw=partial(training.samples, model, log_mels),
    )
