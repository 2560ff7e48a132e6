"""Audiobox Aesthetics (Tjandra et al. 2025): four ratings of a sound by networks on WavLM, trained on listeners' ratings.

WavLM is transformers' WavLMModel; the checkpoint has its authors' names, so its tensors are renamed.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import WavLMConfig, WavLMModel

from soundmill.evaluation.embedders.base import Embedder, Embeddings, split
from soundmill.params import read_yaml
from soundmill.training import checkpoint, torch_weights
from soundmill.training.device import full_precision, pick_device

SAMPLE_RATE = 16_000
WINDOW = 10 * SAMPLE_RATE  # samples
FRAME = 320  # samples of a frame of WavLM
FIRST_FRAME = 400  # samples that its first frame needs
WINDOWS_AT_ONCE = 2
WIDTH, HEAD_LAYERS = 768, 5
# Axes of the checkpoint, in the order of its ratings: mean and standard deviation of the listeners' ratings, from its config.json.
AXES = {"CE": (5.06865, 1.93029), "CU": (5.73633, 1.75669), "PC": (3.18591, 1.86637), "PQ": (6.57505, 1.51466)}
NAMES = read_yaml(Path(__file__).with_name("wavlm.yaml"))["names"]  # of WavLM's tensors → of transformers'


class Audiobox(Embedder):
    """The four ratings [1, 4] of a sound, about 1 to 10, in place of an embedding: means over windows of ten seconds.

    Windows count by their length. A sound without a sample has none. It is not a classifier, so logits are [N, 0].
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, path: Path):
        state = checkpoint.read_weights(path, "fetch it again")
        with torch.device("meta"):
            heads = nn.ModuleDict({axis: nn.Sequential(*_layers(), nn.Linear(WIDTH, 1)) for axis in AXES})
            shares = nn.ParameterDict({axis: torch.empty(WavLMConfig().num_hidden_layers + 1) for axis in AXES})
            self._net = nn.ModuleDict({"wavlm_model": WavLMModel(WavLMConfig()), "proj_layer": heads, "layer_weights": shares})
        torch_weights.load_state(self._net, {_renamed(key): values for key, values in state.items()}, path)
        self._device = pick_device("auto")
        self._net.eval().to(self._device)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        cut = [[np.asarray(wave[start : start + WINDOW], np.float32) for start in range(0, len(wave), WINDOW)] for wave in waves]
        windows = [window for parts in cut for window in parts]
        ratings = np.zeros((len(windows), len(AXES)))
        with torch.inference_mode(), full_precision():
            for start in range(0, len(windows), WINDOWS_AT_ONCE):
                some = windows[start : start + WINDOWS_AT_ONCE]
                ratings[start : start + len(some)] = self._rate(some).cpu().numpy()
        of_waves = zip(split(ratings, cut), cut, strict=True)
        means = [np.average(rows, axis=0, weights=[*map(len, parts)])[None] if parts else rows for rows, parts in of_waves]
        return Embeddings([mean.astype(np.float32) for mean in means], np.zeros((len(waves), 0), np.float32))

    def _rate(self, windows: Sequence[np.ndarray]) -> Tensor:
        """Ratings [N, 4] of windows of at most ten seconds, padded with zeros that are masked."""
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
        for axis, (mean, deviation) in AXES.items():
            mixed = torch.einsum("lnd,l->nd", means, self._net["layer_weights"][axis].softmax(dim=0))
            ratings.append(self._net["proj_layer"][axis](normalize(mixed, dim=-1))[:, 0] * deviation + mean)
        return torch.stack(ratings, dim=1)


def _layers() -> Iterator[nn.Module]:
    for _ in range(HEAD_LAYERS - 1):
        yield from (nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU())


def _renamed(key: str) -> str:
    room, dot, name = key.partition(".")
    return room + dot + torch_weights.renamed(name, NAMES) if room == "wavlm_model" else key
