"""Memory on paper: against values worked out by hand."""

import pytest
import torch
from torch import nn

from bench import lora_memory
from soundmill.training.params import LoraParams


def test_what_the_backward_pass_needs_is_counted_once() -> None:
    """A linear layer keeps its input, a GELU its own: 4 · 8 and twice 4 · 16 values in float32."""
    with torch.device("meta"):
        net, x = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2)), torch.empty(4, 8)
    assert lora_memory.kept(net, lambda: net(x)) == 4 * (4 * 8 + 4 * 16 + 4 * 16)


def test_adapters_of_the_open_model_fit_a_card_of_eight_gigabytes() -> None:
    needs = lora_memory.count(LoraParams(rank=16, alpha=16.0, dropout=0.0, targets=lora_memory.TARGETS, dora=False))
    assert needs["base, bfloat16"] == pytest.approx(2 * 1.057e9, rel=0.01)
    # 24 blocks, two attentions of 1,536 values; keys and values have half as many heads in the second, of 768 of text.
    queries_and_outputs, keys_and_values = 4 * (1536 + 1536), 2 * (1536 + 1536) + 2 * (768 + 768)
    assert needs["adapters, float32"] == 4 * 16 * 24 * (queries_and_outputs + keys_and_values)
    assert needs["AdamW's two moments"] == 2 * needs["adapters, float32"]
    assert needs["total"] < 0.5 * lora_memory.CARD
    assert needs["activations without checkpointing"] > 5 * sum(size for name, size in needs.items() if "checkpointed:" in name)
