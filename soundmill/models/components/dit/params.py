"""Sizes of the transformers."""

from typing import Self

from pydantic import Field, model_validator

from soundmill.params import Seconds, StageParams


class SizesParams(StageParams):
    layers: int = Field(ge=1)
    heads: int = Field(ge=1, description="attention heads; the transformer is heads · head_width wide")
    head_width: int = Field(ge=4, multiple_of=4, description="channels of a head; rotary positions turn half of them")
    key_heads: int = Field(ge=1, description="heads of keys and values in the attention to conditions; must divide `heads`")
    gated: bool = Field(False, description="also predict a gain of each channel of the input")

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.heads % self.key_heads:
            raise ValueError(f"key_heads {self.key_heads} must divide the {self.heads} heads")
        return self


class TransformerParams(SizesParams):
    """The transformer.

    Stable Audio Open's has 24 layers, 24 heads of 64, 12 for keys, conditions 768 wide, 128 tokens and 512 s; that of Stable Audio
    Open Small 16 layers, 8 heads of 128, contexts 1024 wide, 64 tokens, 256 s, normalised queries and keys, and no start.
    """

    condition_width: int = Field(ge=8, description="width of the conditions: text, seconds and label")
    context_width: int | None = Field(
        None, ge=8, description="width that the conditions of the attention are projected to; null: condition_width"
    )
    query_key_norm: bool = Field(False, description="normalise the queries and keys of each head (LayerNorm)")
    start: bool = Field(True, description="tell the start of the sound in its recording, not only its end")
    text_width: int = Field(ge=1, description="width of the text encoder's states")
    text_tokens: int = Field(ge=1, description="tokens of every text: shorter ones are padded with zeros, longer ones cut")
    max_seconds: Seconds = Field(gt=0, description="longer times are told as this one")
    gradient_checkpointing: bool = Field(description="recompute activations in the backward pass: less memory, a third more time")
