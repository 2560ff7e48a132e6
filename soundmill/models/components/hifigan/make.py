"""Make HiFi-GAN for its stage: train it on the training clips, or load AudioLDM's.

Losses, sizes and rates are those of HiFi-GAN (Kong, Kim & Bae 2020, arXiv:2010.05646).
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from soundmill import terminal
from soundmill.audio.mel import MelSpec
from soundmill.models.components.contracts import check_vocoder_spec
from soundmill.models.components.hifigan import HifiGanParams, NetworkParams
from soundmill.models.components.hifigan.vocoder import HifiGan, build_vocoder, load, synthesise
from soundmill.models.components.loaded import LICENCE, LoadedParams, compare, explained, find, locate, pretrained
from soundmill.models.components.making import MadeComponent
from soundmill.models.components.vocoder_adversary import Discriminators, VocoderModule, convolutions, with_norms, without_norms
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.training.device import use_threads

FILES = ("vocoder/config.json", "vocoder/model.safetensors")


def make(params: HifiGanParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    trainer, weights = VocoderTrainer.of(params, ctx, clips, mels, catalog), params.weights
    spec, fitted = trainer.spec, None
    use_threads(params.hardware.threads)
    if isinstance(weights, LoadedParams):
        model, facts = load_published(weights, params.network, spec, ctx.home, ctx.digests)
        terminal.say(f"{ctx.name}: {LICENCE}")
    else:
        torch.manual_seed(weights.seed)
        build = partial(build_vocoder, params.network, spec.n_mels, spec.sample_rate)
        net = build()
        for layer in convolutions(net):  # transformers' scale suits 512 channels, and a narrow network would start silent
            layer.reset_parameters()
        model = HifiGan(params.network, spec, net)
        started_from = trainer.start(model, load)
        with_norms(net)
        module = VocoderModule(weights, net, build, spec, synthesise, Discriminators(weights.discriminator_width))
        fitted, facts = trainer.train(module, model, started_from)
        without_norms(net).eval()
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
    # Sample rate, bands and hop are the only mel parameters of a transformers configuration.
    required = {"sample_rate": config.sampling_rate, "n_mels": config.model_in_dim, "hop_length": math.prod(config.upsample_rates)}
    more = ["log-mels normalised by the vocoder's constants"] if config.normalize_before else []
    check_vocoder_spec(str(directory), required, spec, more)
    sizes = {
        "channels": config.upsample_initial_channel,
        "rates": list(config.upsample_rates),
        "kernels": list(config.upsample_kernel_sizes),
        "resblock_kernels": list(config.resblock_kernel_sizes),
        "resblock_dilations": [list(dilations) for dilations in config.resblock_dilation_sizes],
    }
    compare(directory, {key: (sizes[key], value) for key, value in params.model_dump().items()}, "vocoder.network")
    expected = build_vocoder(params, spec.n_mels, spec.sample_rate).config.leaky_relu_slope
    compare(directory, {"leaky_relu_slope": (config.leaky_relu_slope, expected)}, "this program")
