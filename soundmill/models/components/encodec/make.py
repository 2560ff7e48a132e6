"""Make EnCodec for its stage: load an EncodecModel in transformers' layout, as that of MusicGen's codec, or one of this project."""

from functools import partial
from pathlib import Path
from typing import Any

from soundmill import terminal
from soundmill.audio.mel import MelSpec
from soundmill.models.catalog import read_weights
from soundmill.models.components.contracts import save_codec
from soundmill.models.components.encodec import EncodecParams, NetworkParams
from soundmill.models.components.encodec import codec as codecs
from soundmill.models.components.encodec.codec import EncodecCodec, library_config
from soundmill.models.components.loaded import LoadedParams, compare, explained, find, find_saved, locate, pretrained
from soundmill.models.components.making import MadeComponent, size
from soundmill.models.components.waves.samples import check_waves, of_clips
from soundmill.training.device import pick_device, use_threads

LICENCE = "these weights have their own licence (MusicGen's: CC BY-NC 4.0, no commercial use); it also applies to what they make"
FILES = ("config.json", "model.safetensors")


def make(params: EncodecParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    splits, network = read_weights(catalog), params.network
    use_threads(params.hardware.threads)
    check_waves(clips, list(splits["train"]), network.audio_channels, network.sample_rate)
    net, facts = load_published(params.weights, network, ctx.home, ctx.digests)
    terminal.say(f"{ctx.name}: {LICENCE}")
    device = pick_device(params.hardware.accelerator)
    model = EncodecCodec(network, params.bandwidth, net).to(device)
    metrics = {
        "parameters": size(net),
        "latent_rate": model.latent_rate,
        "latent_values_per_second": model.latent_rate * network.latent_channels,
        "bandwidth": params.bandwidth,
    }
    draw = partial(of_clips, model, clips, list(splits["valid"] or splits["train"]), device)
    return MadeComponent(partial(save_codec, model, source={"kind": "load", **facts}), metrics, draw)


def load_published(
    weights: LoadedParams, network: NetworkParams, home: Path, digests: Path | None = None
) -> tuple[Any, dict[str, Any]]:
    """The network that `weights` names (see hub.find), and the identity of its files. UserError if it is not as `network` says."""
    from transformers import EncodecModel

    if saved := find_saved(weights, codecs.EncodecConfig, network, home):
        return codecs.load(saved[0]).net, saved[1]
    directory, facts = find(weights, FILES, "autoencoder", home, digests)
    _check_config(directory, network)
    return pretrained(EncodecModel, directory), facts


def check(weights: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path) -> None:
    """UserError as `load_published`, from the configuration alone."""
    if not find_saved(weights, codecs.EncodecConfig, network, home):
        _check_config(locate(weights, FILES, "autoencoder", home)[0], network)


def _check_config(directory: Path, network: NetworkParams) -> None:
    from transformers import EncodecConfig, PreTrainedConfig

    with explained(directory):
        stated, _ = EncodecConfig.get_config_dict(directory, local_files_only=True)
        theirs = EncodecConfig().to_dict() | stated
    ours, general = library_config(network).to_dict(), PreTrainedConfig().to_dict()
    keys = [key for key in ours if key not in general or key == "model_type"]
    compare(directory, {key: (theirs[key], ours[key]) for key in keys}, "autoencoder.network")
