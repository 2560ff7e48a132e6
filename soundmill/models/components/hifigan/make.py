"""Make HiFi-GAN for its stage: train it on the training clips, or load AudioLDM's.

Losses, sizes and rates are those of HiFi-GAN (Kong, Kim & Bae 2020, arXiv:2010.05646).
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soundmill import terminal
from soundmill.audio.mel import MelSpec
from soundmill.models.components.hifigan import HifiGanParams, NetworkParams, vocoder
from soundmill.models.components.hifigan.vocoder import HifiGan, build_vocoder, load, synthesise
from soundmill.models.components.loaded import LICENCE, LoadedParams, compare, explained, find, locate, pretrained
from soundmill.models.components.making import MadeComponent
from soundmill.models.components.vocoder_adversary import Discriminators, VocoderModule, convolutions, with_norms, without_norms
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.training.device import use_threads
from soundmill.training.fitting import Fitted

FILES = ("vocoder/config.json", "vocoder/model.safetensors")


def train(params: HifiGanParams, trainer: VocoderTrainer) -> tuple[HifiGan, Fitted, dict[str, Any]]:
    """The trained vocoder, its training, and facts."""
    weights, spec = params.weights, trainer.spec
    torch.manual_seed(weights.seed)
    build = partial(build_vocoder, params.network, spec.n_mels, spec.sample_rate)
    net = reinitialised(build())
    model = HifiGan(params.network, spec, net)
    started_from = trainer.start(model, load)
    with_norms(net)
    module = VocoderModule(weights, net, build, spec, synthesise, Discriminators(weights.discriminator_width))
    fitted, facts = trainer.train(module, model, started_from)
    without_norms(net).eval()
    return model, fitted, facts


def reinitialised(net: nn.Module) -> nn.Module:
    """Initialise with torch's defaults: transformers' scale suits 512 channels, and a narrow network would start silent."""
    for layer in convolutions(net):
        layer.reset_parameters()
    return net


def make(params: HifiGanParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    trainer, weights = VocoderTrainer.of(params, ctx, clips, mels, catalog), params.weights
    use_threads(params.hardware.threads)
    if weights.kind == "train":
        model, fitted, facts = train(params, trainer)
    else:
        fitted = None
        model, facts = load_published(weights, params.network, trainer.spec, ctx.home, ctx.digests)
        terminal.say(f"{ctx.name}: {LICENCE}")
    return trainer.result(model, facts, fitted)


def load_published(
    weights: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path, digests: Path | None = None
) -> tuple[HifiGan, dict[str, Any]]:
    """The vocoder that `weights` names, and the identity of its files.

    UserError if its architecture differs from `network`, or its mel spec from `spec`.
    """
    from transformers import SpeechT5HifiGan

    directory, facts = find(weights, FILES, "vocoder", home, digests)
    net = pretrained(SpeechT5HifiGan, directory / "vocoder")
    _check_config(net.config, directory / "vocoder", network, spec)
    return HifiGan(network, spec, net), facts


def check(weights: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path) -> None:
    """UserError as `load_published`, from the configuration alone."""
    from transformers import SpeechT5HifiGanConfig

    directory = locate(weights, FILES, "vocoder", home)[0] / "vocoder"
    with explained(directory):
        config = SpeechT5HifiGanConfig.from_pretrained(directory, local_files_only=True)
    _check_config(config, directory, network, spec)


def _check_config(config: Any, directory: Path, params: NetworkParams, spec: MelSpec) -> None:
    vocoder.check_config(config, spec, str(directory))
    sizes = vocoder.sizes_of(config).model_dump()
    compare(directory, {key: (sizes[key], value) for key, value in params.model_dump().items()}, "vocoder.network")
    expected = build_vocoder(params, spec.n_mels, spec.sample_rate).config.leaky_relu_slope
    compare(directory, {"leaky_relu_slope": (config.leaky_relu_slope, expected)}, "this program")
