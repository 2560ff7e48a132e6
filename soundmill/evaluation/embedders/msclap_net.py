"""The network of Microsoft's CLAP of 2023: HTSAT for sounds and GPT-2 for texts by transformers, each with a projection."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import ClapAudioConfig, ClapAudioModel, GPT2Config, GPT2Model

from soundmill.evaluation.embedders import htsat
from soundmill.evaluation.embedders.cnn14 import BANDS, log_mel

HOP = 320
DIMENSIONS = 1024


class MsClap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.empty(htsat.FFT // 2 + 1, BANDS))
        self.audio_model = ClapAudioModel(ClapAudioConfig())  # its defaults are the sizes of HTSAT-tiny
        self.text_model = GPT2Model(GPT2Config())
        self.audio_projection, self.text_projection = Projection(), Projection()

    def of_sounds(self, waves: Tensor) -> Tensor:
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
