"""Audiobox Aesthetics (Tjandra et al. 2025): four ratings of a sound by networks on WavLM, trained on listeners' ratings.

WavLM is transformers' WavLMModel; the checkpoint has its authors' names, so its tensors are renamed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation.embedders.base import Declaration, Embeddings
from soundmill.pretrained import Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLE_RATE = 16_000
WINDOW = 10 * SAMPLE_RATE  # samples
FRAME = 320  # samples of a frame of WavLM
FIRST_FRAME = 400  # samples that its first frame needs
WINDOWS_AT_ONCE = 2
WIDTH, HEAD_LAYERS = 768, 5
# Axes of the checkpoint: the metric, and mean and standard deviation of the listeners' ratings, from its config.json.
AXES = {
    "CE": ("content_enjoyment", 5.06865, 1.93029),
    "CU": ("content_usefulness", 5.73633, 1.75669),
    "PC": ("production_complexity", 3.18591, 1.86637),
    "PQ": ("production_quality", 6.57505, 1.51466),
}
NAMES = (  # of WavLM's tensors → of transformers'
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)


class Audiobox:
    """The four ratings [1, 4] of a sound, about 1 to 10, in place of an embedding: means over windows of ten seconds.

    Windows count by their length. A sound without a sample has none. It is not a classifier, so logits are [N, 0].
    """

    name = "audiobox"
    sample_rate = SAMPLE_RATE
    channels = 1

    def __init__(self, path: Path):
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from torch import nn
        from transformers import WavLMConfig, WavLMModel

        from soundmill.training import torch_weights
        from soundmill.training.device import pick_device

        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: cannot be read as weights ({type(error).__name__}: {error}); fetch it again") from None
        with torch.device("meta"):
            self._net = nn.ModuleDict(
                {
                    "wavlm_model": WavLMModel(WavLMConfig()),
                    "proj_layer": nn.ModuleDict({axis: _head() for axis in AXES}),
                    "layer_weights": nn.ParameterDict({axis: torch.empty(WavLMConfig().num_hidden_layers + 1) for axis in AXES}),
                }
            )
        torch_weights.load_state(self._net, {_renamed(key): values for key, values in state.items()}, path)
        self._device = pick_device("auto")
        self._net.eval().to(self._device)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        import torch

        from soundmill.training.device import full_precision

        windows = [
            (owner, np.asarray(wave[start : start + WINDOW], np.float32))
            for owner, wave in enumerate(waves)
            for start in range(0, len(wave), WINDOW)
        ]
        ratings = np.zeros((len(windows), len(AXES)))
        with torch.inference_mode(), full_precision():
            for start in range(0, len(windows), WINDOWS_AT_ONCE):
                some = [window for _, window in windows[start : start + WINDOWS_AT_ONCE]]
                ratings[start : start + len(some)] = self._rate(some).cpu().numpy()
        owners, lengths = np.array([owner for owner, _ in windows]), np.array([len(window) for _, window in windows])
        frames = []
        for owner in range(len(waves)):
            own = np.flatnonzero(owners == owner)
            mean = np.average(ratings[own], axis=0, weights=lengths[own])[None] if len(own) else ratings[:0]
            frames.append(mean.astype(np.float32))
        return Embeddings(frames, np.zeros((len(waves), 0), np.float32))

    def _rate(self, windows: Sequence[np.ndarray]) -> Tensor:
        """Ratings [N, 4] of windows of at most ten seconds, padded with zeros that are masked."""
        import torch
        from torch.nn.functional import normalize

        padded = torch.from_numpy(np.stack([np.pad(window, (0, WINDOW - len(window))) for window in windows]))
        longest = (WINDOW - FIRST_FRAME) // FRAME + 1
        frames = torch.tensor([min(longest, -(-len(window) // FRAME)) for window in windows])  # begun, so not masked
        # transformers derives the mask of the frames from one of the samples, counting whole frames.
        samples = torch.arange(WINDOW) < (FIRST_FRAME + FRAME * (frames - 1))[:, None]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")  # of transformers' own masks
            states = self._net["wavlm_model"](
                padded.to(self._device), attention_mask=samples.to(self._device), output_hidden_states=True
            ).hidden_states
        heard = (torch.arange(longest) < frames[:, None]).to(self._device)[..., None]
        means = torch.stack([(state * heard).sum(dim=1) / heard.sum(dim=1) for state in states])  # [layers, N, 768]
        ratings = []
        for axis, (_, mean, deviation) in AXES.items():
            mixed = torch.einsum("lnd,l->nd", means, self._net["layer_weights"][axis].softmax(dim=0))
            ratings.append(self._net["proj_layer"][axis](normalize(mixed, dim=-1))[:, 0] * deviation + mean)
        return torch.stack(ratings, dim=1)


def _head() -> nn.Sequential:
    from torch import nn

    layers: list[nn.Module] = []
    for _ in range(HEAD_LAYERS - 1):
        layers += [nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


def _renamed(key: str) -> str:
    room, dot, name = key.partition(".")
    if room != "wavlm_model":
        return key
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return room + dot + name


_COMMIT = "9b1dd8e5df9af7216e836a98974fe3b82c56ded6"

EMBEDDERS = {
    "audiobox": Declaration(
        Audiobox,
        Weights(
            name="audiobox",
            file="audiobox-aesthetics.safetensors",
            url=f"https://huggingface.co/facebook/audiobox-aesthetics/resolve/{_COMMIT}/model.safetensors",
            num_bytes=415_472_992,
            sha256="a5a3c2412649cc2384ec525ffd5180ce6c4778f43bed6108e0a1303de04d014e",
            licence="CC-BY-4.0",
            source="Tjandra et al. 2025, arXiv:2502.05139; github.com/facebookresearch/audiobox-aesthetics",
        ),
        classifier=False,
        patches=False,
        ratings=tuple(metric for metric, _, _ in AXES.values()),
    )
}
