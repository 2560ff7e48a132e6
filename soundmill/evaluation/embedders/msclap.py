"""Microsoft's CLAP of 2023 (Elizalde et al. 2023): embeddings of sounds and texts in one space, by HTSAT and GPT-2.

The networks are transformers', each with a projection. The checkpoint is msclap's, so its tensors are renamed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import ClapAudioConfig, ClapAudioModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast

from soundmill.errors import UserError
from soundmill.evaluation.embedders import clap
from soundmill.evaluation.embedders.base import HUB_FILES, Embedder, Embeddings, in_batches
from soundmill.evaluation.embedders.panns import BANDS, log_mel
from soundmill.training import torch_weights
from soundmill.training.device import full_precision, pick_device

SAMPLE_RATE = 44_100
WINDOW = 7 * SAMPLE_RATE  # samples of the network's input; msclap crops longer sounds at random
WINDOWS_AT_ONCE = 8
HOP, DIMENSIONS = 320, 1024
TOKENIZER = HUB_FILES["msclap"].repository
END, END_TOKEN, PADDING = "<|endoftext|>", 50_256, "!"
LONGEST_TEXT = 1024  # tokens of GPT-2's input
# Of a checkpoint: what scales similarities, and masks of GPT-2 that older versions of transformers stored.
UNUSED = re.compile(r"logit_scale$|caption_encoder\.base\.h\.\d+\.attn\.(bias|masked_bias)$")
HTSAT = "audio_encoder.base.htsat."
NAMES = {
    "audio_encoder.projection.": "audio_projection.",
    "caption_encoder.base.": "text_model.",
    "caption_encoder.projection.": "text_projection.",
}


class MsClapEmbedder(Embedder):
    """1024-d embeddings, not of unit length, one per window of seven seconds, and of texts; no classifier, so logits are [N, 0].

    A shorter sound is repeated until it fills a window.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, path: Path):
        self._tokenizer = load_tokenizer(HUB_FILES["msclap"].find())
        state = torch_weights.read_state(path, "msclap", "model")
        with init_empty_weights(include_buffers=False):
            net = MsClap()
        torch_weights.load_state(net, {**clap.counted(net), **dict(_renamed(state))}, path)
        self._net = net.eval().to(pick_device("auto"))

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        by_wave = [[np.resize(part, WINDOW) for part in clap.windows(wave, WINDOW)] for wave in waves]
        windows = [window for parts in by_wave for window in parts]
        (embeddings,) = in_batches(self._net, windows, WINDOWS_AT_ONCE, [DIMENSIONS])
        return Embeddings.of_parts(embeddings, by_wave)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [N, 1024] float32 of texts; those longer than the network's input are truncated."""
        by_text = {}
        with torch.inference_mode(), full_precision():
            for text in sorted(set(texts)):
                tokens = self._tokenizer(f"{text} {END}")["input_ids"]
                cut = torch.tensor([*tokens[:-1][: LONGEST_TEXT - 1], END_TOKEN], device=self._net.filters.device)
                by_text[text] = self._net.of_text(cut).cpu().numpy()
        return np.stack([by_text[text] for text in texts]) if texts else np.zeros((0, DIMENSIONS), np.float32)


def _renamed(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    of_sounds = {key.removeprefix(HTSAT): values for key, values in state.items() if key.startswith(HTSAT)}
    if clap.HTSAT_FILTERS in of_sounds:  # else loading names what is missing
        yield "filters", of_sounds[clap.HTSAT_FILTERS]
    for name, values in clap.htsat_renamed(of_sounds):
        yield f"audio_model.audio_encoder.{name}", values
    for key, values in state.items():
        if not key.startswith(HTSAT) and not UNUSED.match(key):
            prefix = next((prefix for prefix in NAMES if key.startswith(prefix)), "")
            yield NAMES.get(prefix, "") + key.removeprefix(prefix), values


def load_tokenizer(directory: Path) -> Any:
    """GPT-2's tokenizer; a UserError if the file cannot be read or is another one's."""
    path = directory / "tokenizer.json"
    try:
        loaded = PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path}: cannot be read as a tokenizer ({' '.join(str(error).split())[:300]})") from None
    if loaded.convert_tokens_to_ids([PADDING, END]) != [0, END_TOKEN] or len(loaded) != END_TOKEN + 1:
        raise UserError(f"{path}: this is not the tokenizer of {TOKENIZER}")
    return loaded


class MsClap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.empty(clap.HTSAT_FFT // 2 + 1, BANDS))
        self.audio_model = ClapAudioModel(ClapAudioConfig())  # its defaults are the sizes of HTSAT-tiny
        self.text_model = GPT2Model(GPT2Config())
        self.audio_projection, self.text_projection = Projection(), Projection()

    def forward(self, waves: Tensor) -> Tensor:
        """Embeddings [N, 1024] of waves [N, T] of at most 1024 hops."""
        log_mels = log_mel(waves, self.filters, HOP)[:, None]
        return self.audio_projection(self.audio_model(input_features=log_mels).pooler_output)

    def of_text(self, tokens: Tensor) -> Tensor:
        """The embedding [1024] of a text's tokens [T].

        It is projected from the state of the last token or, as in msclap, of an earlier one: of as many before it as the text has
        tokens `!`, which msclap pads with.
        """
        states = self.text_model(input_ids=tokens[None]).last_hidden_state[0]
        return self.text_projection(states[tokens.count_nonzero() - 1])


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(768, DIMENSIONS, bias=False)
        self.linear2 = nn.Linear(DIMENSIONS, DIMENSIONS, bias=False)
        self.layer_norm = nn.LayerNorm(DIMENSIONS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear1(x)
        return self.layer_norm(x + self.linear2(gelu(x)))
