"""HTSAT (Chen et al. 2022), the network of several CLAPs that hears sounds: from its authors' names of tensors to transformers'."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

FFT = 1024
TRANSFORM = ("spectrogram_extractor.stft.conv_real.weight", "spectrogram_extractor.stft.conv_imag.weight")
FILTERS = "logmel_extractor.melW"
UNUSED = re.compile(r"(tscam_conv|head)\.|.*\.attn_mask$")  # heads that only its training used, and what follows from the sizes
COUNTED = re.compile(r".*\.(num_batches_tracked|relative_position_index|position_ids|token_type_ids)$")  # by any net of these sizes
NAMES = (
    (r"^bn0\.", "batch_norm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
)


def renamed(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tensors without the spectrogram (TRANSFORM and FILTERS) by their names in `ClapAudioModel`'s `audio_encoder`."""
    for key, values in state.items():
        if UNUSED.match(key) or COUNTED.match(key):
            continue
        name = key
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if ".self.qkv." in name:
            for part, third in zip(("query", "key", "value"), values.chunk(3), strict=True):
                yield name.replace(".self.qkv.", f".self.{part}."), third
        else:
            yield name, values


def counted(net: Any) -> dict[str, Any]:
    """The net's own indices and counts; checkpoints lack them or have them as floats."""
    return {name: values for name, values in net.state_dict().items() if COUNTED.match(name)}
