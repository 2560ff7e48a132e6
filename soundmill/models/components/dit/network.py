"""Transformers that denoise latents or pictures: diffusers' StableAudioDiTModel, told as Stable Audio is, or a vector alone."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from soundmill.diffusion.gain import apply_gain, with_magnitude
from soundmill.models.components.dit.params import SizesParams, TransformerParams

TIME_WIDTH = 256  # of the Fourier features of the time


class Conditions(NamedTuple):
    """What the net is told; a condition that is hidden is zero, so a hidden text costs as much as another."""

    states: Tensor  # float [B, tokens, text_width], of the text encoder
    mask: Tensor  # boolean [B, tokens], true: a token
    labels: Tensor  # float [B, num_labels], weights
    seconds: Tensor  # float [B, 2], start and end of the sound
    told: Tensor  # boolean [B, 2]: whether the seconds are told to the attention, and to the global state


class Transformer(nn.Module):
    """StableAudioDiTModel over [B, channels, frames] of any length, which attends to conditions [B, tokens, width]."""

    def __init__(self, params: SizesParams, channels: int, frames: int, width: int, overall: int, context_width: int | None = None):
        """`overall` is the width of what is told to the whole."""
        with warnings.catch_warnings():  # an import within diffusers warns of its own move
            warnings.filterwarnings("ignore", category=FutureWarning)
            from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTModel

        super().__init__()
        self.rotary_width, self.gated = params.head_width // 2, params.gated
        channels *= 1 + params.gated
        self.transformer = StableAudioDiTModel(
            sample_size=frames,
            in_channels=channels,
            out_channels=channels,
            num_layers=params.layers,
            attention_head_dim=params.head_width,
            num_attention_heads=params.heads,
            num_key_value_attention_heads=params.key_heads,
            cross_attention_dim=context_width or width,
            cross_attention_input_dim=width,
            global_states_input_dim=overall,
            time_proj_dim=TIME_WIDTH,
        )
        # The last layer of every residual branch is zero, as in the authors' code: training is steadier from there.
        for block in self.transformer.transformer_blocks:
            for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
                nn.init.zeros_(last.weight)
            nn.init.zeros_(block.ff.net[2].bias)
        for residual in (self.transformer.preprocess_conv, self.transformer.postprocess_conv):
            nn.init.zeros_(residual.weight)

    def denoise(self, xt: Tensor, t: Tensor, attended: Tensor, overall: Tensor) -> Tensor:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        positions = torch.arange(xt.shape[2] + 1, device=xt.device)
        predicted = self.transformer(
            with_magnitude(xt) if self.gated else xt,
            t,
            encoder_hidden_states=attended,
            global_hidden_states=overall[:, None],
            rotary_embedding=get_1d_rotary_pos_embed(self.rotary_width, positions, use_real=True, repeat_interleave_real=False),
            return_dict=False,
        )[0]
        return apply_gain(predicted, xt) if self.gated else predicted


class DiT(Transformer):
    """Predicts from (xt, t, *Conditions): latents [B, channels, frames] of any length, times [B] in [0, 1].

    The attention sees the text's tokens, the label's and those of end and, if `params.start`, start; the global state has all but
    the text. The names of weights are those of diffusers' StableAudioPipeline. At Stable Audio Open's sizes the transformer has
    1,056,939,136 parameters.
    """

    def __init__(self, params: TransformerParams, channels: int, frames: int, num_labels: int):
        width = params.condition_width
        super().__init__(params, channels, frames, width, width * (1 + params.start + bool(num_labels)), params.context_width)
        from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

        self.start = params.start
        self.projection_model = StableAudioProjectionModel(params.text_width, width, min_value=0, max_value=params.max_seconds)
        if not params.start:
            self.projection_model.start_number_conditioner = None
        self.labels = nn.Embedding(num_labels, width) if num_labels else None
        if params.query_key_norm:
            # diffusers' attention uses these layers where they are there, but its transformer has no setting for them.
            for block in self.transformer.transformer_blocks:
                for attention in (block.attn1, block.attn2):
                    attention.norm_q, attention.norm_k = (nn.LayerNorm(params.head_width, eps=1e-6) for _ in range(2))
        if params.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()

    def forward(self, xt: Tensor, t: Tensor, states: Tensor, mask: Tensor, labels: Tensor, seconds: Tensor, told: Tensor) -> Tensor:
        projected = self.projection_model(states, seconds[:, 0] if self.start else None, seconds[:, 1])
        ends = projected.seconds_start_hidden_states, projected.seconds_end_hidden_states
        times = torch.cat([one for one in ends if one is not None], 1)  # [B, 2 or 1, width]
        attended = [projected.text_hidden_states * mask[..., None], times * told[:, 0, None, None]]
        overall = [(times * told[:, 1, None, None]).flatten(1)]
        if self.labels is not None:
            label = labels @ self.labels.weight
            attended.append(label[:, None])
            overall.append(label)
        return self.denoise(xt, t, torch.cat(attended, 1), torch.cat(overall, 1))


class PictureDiT(Transformer):
    """Predicts from (xt, t, condition): pictures [B, channels, rows, columns], timesteps [B], and weights [B, conditions].

    Columns are the transformer's positions, with the channels of all rows in each.
    """

    def __init__(self, params: SizesParams, shape: tuple[int, int, int], num_timesteps: int, conditions: int):
        channels, rows, columns = shape
        width = params.heads * params.head_width
        super().__init__(params, channels * rows, columns, width, width)
        self.num_timesteps = num_timesteps
        self.labels = nn.Embedding(conditions, width) if conditions else None
        self.nothing = nn.Parameter(torch.zeros(width))

    def forward(self, xt: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        told = self.nothing.expand(len(xt), -1)
        if self.labels is not None:
            told = told + condition.to(told) @ self.labels.weight.to(told)
        predicted = self.denoise(xt.flatten(1, 2), t.to(xt.dtype) / self.num_timesteps, told[:, None], told)
        return predicted.view_as(xt)


def hidden(conditions: Conditions) -> Conditions:
    """The conditions that guidance compares with: nothing in the attention; the global state still knows the seconds."""
    nothing = {name: torch.zeros_like(getattr(conditions, name)) for name in ("states", "mask", "labels")}
    told = conditions.told.clone()
    told[:, 0] = False
    return conditions._replace(**nothing, told=told)


def padded(states: Sequence[np.ndarray | None], tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """States [n, width] (None: no text) as float32 [B, tokens, width], with zeros or cut, and the mask of tokens [B, tokens]."""
    values = torch.zeros(len(states), tokens, width)
    for row, one in zip(values, states, strict=True):
        if one is not None:
            row[: len(one)] = torch.from_numpy(one[:tokens].astype(np.float32))
    return values, torch.arange(tokens) < torch.tensor([0 if one is None else len(one) for one in states])[:, None]
