"""LAION's CLAP for music, speech and AudioSet's sounds (Wu et al. 2023): HTSAT-base and RoBERTa, by transformers' ClapModel.

Its checkpoint is laion_clap's, so its tensors are renamed. Sounds and texts are prepared as for `clap`, with the files of that
repository of the hub: its tokenizer is RoBERTa's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import hashing
from soundmill.errors import UserError
from soundmill.evaluation.embedders import clap
from soundmill.evaluation.embedders.base import Declaration
from soundmill.pretrained import Weights

FFT = 1024
TRANSFORM = ("audio_branch.spectrogram_extractor.stft.conv_real.weight", "audio_branch.spectrogram_extractor.stft.conv_imag.weight")
FILTERS = "audio_branch.logmel_extractor.melW"
# Of a checkpoint: heads and projections that only its training used, and what follows from the sizes.
UNUSED = re.compile(r"audio_branch\.(tscam_conv|head)\.|(audio|text)_transform\.|.*\.(attn_mask|position_ids|token_type_ids)$")
NAMES = (  # of laion_clap's tensors → of transformers'
    (r"^audio_branch\.bn0\.", "audio_model.audio_encoder.batch_norm."),
    (r"^audio_branch\.", "audio_model.audio_encoder."),
    (r"^text_branch\.", "text_model."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
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
        import torch
        from transformers import ClapModel

        from soundmill.training import torch_weights
        from soundmill.training.device import pick_device

        self._processor = clap.load_processor(clap.processor())
        checkpoint = torch_weights.read_checkpoint(path, NUMPY)
        state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
        if not isinstance(state, dict):
            raise UserError(f"{path}: not a checkpoint of laion_clap (it has no 'state_dict'); fetch it again")
        settings = config()
        with torch.device("meta"):
            net = ClapModel(settings)
        positions = torch.arange(settings.text_config.max_position_embeddings)[None]
        counted = {"position_ids": positions, "token_type_ids": torch.zeros_like(positions)}
        renamed = dict(_renamed(self._without_front_end(state, path)))
        renamed |= {f"text_model.embeddings.{name}": values for name, values in counted.items()}
        torch_weights.load_state(net, renamed, path)
        self._net = net.eval().to(pick_device("auto"))

    def _without_front_end(self, state: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """The state without the spectrogram, which must be that of the processor."""
        from torch import Tensor

        from soundmill.evaluation.embedders.stored_transform import without_transform

        named = {key.removeprefix("module."): values for key, values in state.items()}
        named = without_transform(named, TRANSFORM, FFT, path)
        filters, expected = named.pop(FILTERS, None), self._processor.feature_extractor.mel_filters_slaney
        if not isinstance(filters, Tensor) or filters.shape != expected.shape or not np.allclose(filters, expected, atol=1e-6):
            raise UserError(f"{path}: {FILTERS} are not the mel filters that sounds are prepared with")
        return named


def config() -> Any:
    """The sizes of HTSAT-base and RoBERTa-base."""
    from transformers import ClapConfig

    audio = {"patch_embeds_hidden_size": 128, "depths": [2, 2, 12, 2], "hidden_size": 1024}
    return ClapConfig(text_config={"layer_norm_eps": 1e-5}, audio_config=audio)


def _renamed(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, values in state.items():
        if UNUSED.match(key):
            continue
        name = key
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if ".self.qkv." in name:
            for part, third in zip(("query", "key", "value"), values.chunk(3), strict=True):
                yield name.replace(".self.qkv.", f".self.{part}."), third
        else:
            yield name, values


class MusicSpeechDeclaration(Declaration):
    """Besides its weights it needs the files of `clap` that prepare sounds and texts."""

    def digest(self, tagger: Path | None) -> str:
        return hashing.digest(super().digest(tagger), clap.digest(clap.processor(), clap.PROCESSOR_FILES))

    def unavailable(self) -> str | None:
        """As `Declaration.unavailable`; asks the hub if the files of `clap` are not on this machine."""
        reason = super().unavailable()
        if reason is None:
            try:
                clap.processor()
            except UserError as error:
                return str(error)
        return reason


_COMMIT = "4226474e38defca6fc9272a7848bb7b0355ccd7a"

EMBEDDERS = {
    "clap_music_speech": MusicSpeechDeclaration(
        MusicSpeechClap,
        Weights(
            name="clap_music_speech",
            file="music_speech_audioset_epoch_15_esc_89.98.pt",
            url=f"https://huggingface.co/lukewys/laion_clap/resolve/{_COMMIT}/music_speech_audioset_epoch_15_esc_89.98.pt",
            num_bytes=2_352_471_003,
            sha256="51c68f12f9d7ea25fdaaccf741ec7f81e93ee594455410f3bca4f47f88d8e006",
            licence="CC0-1.0",
            source="Wu et al. 2023, arXiv:2211.06687; github.com/LAION-AI/CLAP",
        ),
        classifier=False,
        patches=False,
        texts=True,
    )
}
