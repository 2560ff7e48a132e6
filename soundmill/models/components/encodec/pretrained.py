"""Load an EncodecModel in transformers' layout, as that of MusicGen's codec; or a codec that this project wrote."""

from pathlib import Path
from typing import Any

import torch

from soundmill.audio.mel import MelSpec
from soundmill.models.components.encodec import codec as codecs
from soundmill.models.components.encodec.codec import library_config
from soundmill.models.components.encodec.params import NetworkParams
from soundmill.models.components.loaded import LoadedParams, check_whole, compare, explained, find, find_saved, locate

FILES = ("config.json", "model.safetensors")


def load(weights: LoadedParams, network: NetworkParams, home: Path, digests: Path | None = None) -> tuple[Any, dict[str, Any]]:
    """The network that `weights` names (see hub.find), and the identity of its files. UserError if it is not as `network` says."""
    from transformers import EncodecModel

    if saved := find_saved(weights, codecs.EncodecConfig, network, home):
        return codecs.load(saved[0]).net, saved[1]
    directory, facts = find(weights, FILES, "autoencoder", home, digests)
    _check_config(directory, network)
    with explained(directory):
        net, loading = EncodecModel.from_pretrained(
            directory, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    check_whole(directory, loading)
    return net.eval(), facts


def check(weights: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path) -> None:
    """UserError as `load`, from the configuration alone."""
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
