"""Load EnCodec for its stage."""

from functools import partial
from pathlib import Path
from typing import Any

from soundmill import terminal
from soundmill.models.catalog import read_weights
from soundmill.models.components.contracts import MadeComponent
from soundmill.models.components.encodec import codec as codecs
from soundmill.models.components.encodec import pretrained
from soundmill.models.components.encodec.codec import EncodecCodec
from soundmill.models.components.encodec.params import EncodecParams
from soundmill.models.components.waves.samples import check_waves, of_clips
from soundmill.training.device import pick_device, use_threads

LICENCE = "these weights have their own licence (MusicGen's: CC BY-NC 4.0, no commercial use); it also applies to what they make"


def make(params: EncodecParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    splits, network = read_weights(catalog), params.network
    use_threads(params.hardware.threads)
    check_waves(clips, list(splits["train"]), network.audio_channels, network.sample_rate)
    net, facts = pretrained.load(params.weights, network, ctx.home, ctx.digests)
    terminal.say(f"{ctx.name}: {LICENCE}")
    device = pick_device(params.hardware.accelerator)
    model = EncodecCodec(network, params.bandwidth, net).to(device)
    metrics = {
        "parameters": sum(weight.numel() for weight in net.parameters()),
        "latent_rate": model.latent_rate,
        "latent_values_per_second": model.latent_rate * network.latent_channels,
        "bandwidth": params.bandwidth,
    }
    return MadeComponent(
        partial(codecs.save, model, source={"kind": "load", **facts}),
        [],
        metrics,
        0,
        partial(of_clips, model, clips, list(splits["valid"] or splits["train"]), device),
    )
