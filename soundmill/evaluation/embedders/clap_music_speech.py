"""LAION's CLAP for music, speech and AudioSet's sounds (Wu et al. 2023): HTSAT-base and RoBERTa, by transformers' ClapModel.

Its checkpoint is laion_clap's, so its tensors are renamed. Sounds and texts are prepared as for `clap`, with the files of that
repository of the hub: its tokenizer is RoBERTa's.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import init_empty_weights
from torch import Tensor
from transformers import ClapConfig, ClapModel

from soundmill.errors import UserError
from soundmill.evaluation.embedders import clap
from soundmill.evaluation.embedders.base import CLAP_PROCESSOR
from soundmill.training import torch_weights
from soundmill.training.device import pick_device

HTSAT = "audio_branch."
UNUSED = re.compile(r"(audio|text)_transform\.")  # of a checkpoint: layers that only its training used
NAMES = (  # of laion_clap's tensors → of transformers'
    (r"^text_branch\.", "text_model."),
    (r"_projection\.0\.", "_projection.linear1."),
    (r"_projection\.2\.", "_projection.linear2."),
)
# NumPy objects in the checkpoint: the best scores of its training.
NUMPY = (
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # its name in older versions
    np.dtype,
    type(np.dtype(np.float64)),
)


class MusicSpeechClap(clap.ClapEmbedder):
    """As `ClapEmbedder`; texts are truncated to 77 tokens, as in laion_clap."""

    name = "clap_music_speech"
    longest_text = 77

    def __init__(self, path: Path):
        self._processor = clap.load_processor(CLAP_PROCESSOR.find())
        state = torch_weights.read_state(path, "laion_clap", "state_dict", NUMPY)
        with init_empty_weights(include_buffers=False):
            net = ClapModel(config())
        torch_weights.load_state(net, {**clap.counted(net), **dict(self._renamed(state, path))}, path)
        self._net = net.eval().to(pick_device("auto"))

    def _renamed(self, state: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
        """The tensors without the spectrogram, which must be that of the processor."""
        named = {key.removeprefix("module."): values for key, values in state.items()}
        of_sounds = {key.removeprefix(HTSAT): values for key, values in named.items() if key.startswith(HTSAT)}
        of_sounds = torch_weights.without_transform(of_sounds, clap.HTSAT_TRANSFORM, clap.HTSAT_FFT, path)
        filters, expected = of_sounds.pop(clap.HTSAT_FILTERS, None), self._processor.feature_extractor.mel_filters_slaney
        if not isinstance(filters, Tensor) or filters.shape != expected.shape or not np.allclose(filters, expected, atol=1e-6):
            raise UserError(f"{path}: {clap.HTSAT_FILTERS} are not the mel filters that sounds are prepared with")
        for name, values in clap.htsat_renamed(of_sounds):
            yield f"audio_model.audio_encoder.{name}", values
        for key, values in named.items():
            if key.startswith(HTSAT) or UNUSED.match(key) or clap.COUNTED.match(key):
                continue
            name = key
            for pattern, replacement in NAMES:
                name = re.sub(pattern, replacement, name)
            yield name, values


def config() -> Any:
    """The sizes of HTSAT-base and RoBERTa-base."""
    audio = {"patch_embeds_hidden_size": 128, "depths": [2, 2, 12, 2], "hidden_size": 1024}
    return ClapConfig(text_config={"layer_norm_eps": 1e-5}, audio_config=audio)
