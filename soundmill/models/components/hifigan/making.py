"""HiFi-GAN as its stage publishes it: trained on the corpus's training clips, or loaded, and measured beside Griffin-Lim."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from soundmill.audio.log_mels import read_spec
from soundmill.models.catalog import choose_by_hash, read_weights
from soundmill.models.components import vocoder_errors
from soundmill.models.components.contracts import Made
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.hifigan import pretrained, training, vocoder
from soundmill.models.components.hifigan.params import HifiGanParams
from soundmill.models.components.loaded import LICENCE
from soundmill.models.components.log_mels.source import gather_log_mels
from soundmill.training.device import pick_device, use_threads

MEASURED_CLIPS = 16  # held-out ones, at most


def make(params: HifiGanParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> Made:
    splits = read_weights(catalog)
    spec, weights = read_spec(mels), params.weights
    vocoder.check_hop(params.network, spec)
    use_threads(params.hardware.threads)
    if weights.kind == "train":
        model, fitted, facts = training.train(params, ctx, spec, clips, mels, splits["train"], list(splits["valid"]))
    else:
        fitted = None
        model, facts = pretrained.load(weights, params.network, spec, ctx.home, ctx.digests)
        print(f"{ctx.name}: {LICENCE}", flush=True)

    device = pick_device(params.hardware.accelerator)
    split = "valid" if splits["valid"] else "train"
    chosen = choose_by_hash(list(splits[split]), MEASURED_CLIPS)
    log_mels = gather_log_mels(mels, chosen, ctx.scratch)
    griffin_lim = GriffinLim(spec, params)
    measured = vocoder_errors.measure({"l1_db": model, "griffin_lim_l1_db": griffin_lim}, log_mels, device)
    metrics = {
        "parameters": sum(weight.numel() for weight in model.net.parameters()),
        "measured_clips": len(chosen),
        **{f"{split}_{key}": value for key, value in measured.items()},
        **({**fitted.metrics, "steps": weights.steps} if fitted else {}),
    }
    return Made(
        save=lambda directory: vocoder.save(model, directory, {"kind": weights.kind, **facts}),
        points=fitted.points if fitted else [],
        metrics=metrics,
        steps=weights.steps if fitted else 0,
        draw=partial(vocoder_errors.samples, {"by the vocoder": model, "by Griffin-Lim": griffin_lim}, log_mels, device),
    )
