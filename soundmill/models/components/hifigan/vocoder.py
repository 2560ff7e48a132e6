"""HiFi-GAN, by transformers, as a vocoder; its weights have transformers' names. It is trained as in the paper, or AudioLDM's."""

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from soundmill import hub, terminal
from soundmill.audio.mel import MelSpec
from soundmill.models.components.contracts import LoadedParams, VocoderConfig, check_vocoder_spec, restore_vocoder
from soundmill.models.components.hifigan import HifiGanParams, NetworkParams
from soundmill.models.components.making import LICENCE, MadeComponent, check_published, compare, find, pretrained
from soundmill.models.components.vocoder_trainer import VocoderModule, VocoderTrainer, convolutions
from soundmill.models.components.vocoding import FrameVocoder


class HifiGanConfig(VocoderConfig):
    kind: Literal["hifigan"] = "hifigan"
    network: NetworkParams


class HifiGan(FrameVocoder):
    config = HifiGanConfig

    @staticmethod
    def synthesise(net: nn.Module, log_mels: Tensor, hop_length: int) -> Tensor:
        """As `FrameVocoder.synthesise`.

        A kernel that differs from its rate by an odd number adds samples at the end (32 at AudioLDM's sizes), which are cut.
        """
        return net(log_mels.transpose(1, 2))[:, : log_mels.shape[2] * hop_length]


def network(params: HifiGanParams, spec: MelSpec, channels: int) -> Any:
    return build_vocoder(params.network, spec.n_mels, spec.sample_rate)


def build_vocoder(params: NetworkParams, n_mels: int, sample_rate: int) -> Any:
    """The network, initialised from torch's global generator: 55,264,897 parameters at AudioLDM's sizes."""
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=n_mels,
            sampling_rate=sample_rate,
            upsample_initial_channel=params.channels,
            upsample_rates=params.rates,
            upsample_kernel_sizes=params.kernels,
            resblock_kernel_sizes=params.resblock_kernels,
            resblock_dilation_sizes=params.resblock_dilations,
            normalize_before=False,  # the input is not normalised
        )
    )


load = partial(restore_vocoder, HifiGan, network)


FILES = ("vocoder/config.json", "vocoder/model.safetensors")


def make(params: HifiGanParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    trainer, weights = VocoderTrainer.of(params, ctx, clips, mels, catalog), params.weights
    spec = trainer.spec
    if isinstance(weights, LoadedParams):
        model, facts = load_published(weights, params.network, spec, ctx.home, ctx.digests)
        terminal.say(f"{ctx.name}: {LICENCE}")
        return trainer.result(model, facts)
    model = HifiGan(params.network, spec, build_vocoder(params.network, spec.n_mels, spec.sample_rate))
    for layer in convolutions(model.net):  # transformers' scale suits 512 channels, and a narrow network would start silent
        layer.reset_parameters()
    return trainer.made(model, load, lambda: VocoderModule(weights, model, hinge=False))


def load_published(
    weights: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path, digests: Path | None = None
) -> tuple[HifiGan, dict[str, Any]]:
    """The vocoder that `weights` names, and the identity of its files.

    UserError if its architecture differs from `network`, or its mel spec from `spec`.
    """
    directory, facts = find(weights, FILES, "vocoder", home, digests)
    _check_config(directory / "vocoder", network, spec)
    return HifiGan(network, spec, pretrained(SpeechT5HifiGan, directory / "vocoder")), facts


def _check_config(directory: Path, params: NetworkParams, spec: MelSpec) -> None:
    with hub.loading(directory, "SpeechT5HifiGan"):
        config = SpeechT5HifiGanConfig.from_pretrained(directory, local_files_only=True)
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
    slope = SpeechT5HifiGanConfig().leaky_relu_slope  # that of `build_vocoder`
    compare(directory, {"leaky_relu_slope": (config.leaky_relu_slope, slope)}, "this program")


check = partial(check_published, "vocoder", FILES, _check_config, None)
