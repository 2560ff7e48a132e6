"""Memory that training adapters needs at the size of Stable Audio Open's transformer, counted on paper: no weight is allocated.

The net (diffusers' StableAudioDiTModel as published: 1.06 billion weights) is on torch's meta device, in bfloat16, with adapters in
float32. One forward pass of a batch of latents counts each tensor that is kept for the backward pass, once per storage. Attention
counts as fused kernels keep it: queries, keys, values and output, no matrix. With gradient checkpointing, the inputs of each block
are kept and one at a time is computed again. The frozen text encoder and the codec run in earlier stages, so they need none.

python -m bench.lora_memory
python -m bench.lora_memory --rank 64 --dora --batch 4
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench import measure
from soundmill.training import adapters
from soundmill.training.params import LoraParams

FRAMES, TOKENS = 1024, 128  # latents of 47.6 s, text tokens at most
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
CARD = 8e9
REST = 0.8e9  # CUDA's context, the allocator's slack and cuBLAS's workspaces: an allowance, not counted


class Fused(torch.autograd.Function):
    """What a fused attention kernel keeps; without `backward`, as only the forward pass is counted."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dora", action="store_true")
    args = parser.parse_args()
    lora = LoraParams(rank=args.rank, alpha=float(args.rank), dropout=0.0, targets=TARGETS, dora=args.dora)
    needs = count(lora, args.batch)
    for name, size in needs.items():
        print(f"{name}: {size / 1e9:.3f} GB")
    measure.write("lora_memory", args.results, 1, {}, [], needs=needs, rank=args.rank, batch=args.batch, card=CARD)


def count(lora: LoraParams, batch: int = 1) -> dict[str, float]:
    """Bytes by what needs them; `total` is with gradient checkpointing and `EMA`."""
    net, blocks = transformer(lora)
    trained = adapters.trained(net)
    base = [weight for name, weight in net.named_parameters() if name not in trained]
    whole = kept(net, lambda: forward(net, batch))
    net.enable_gradient_checkpointing()
    outside = kept(net, lambda: forward(net, batch))
    block = (whole - outside) / blocks
    inputs = blocks * batch * (FRAMES + 1) * net.inner_dim * 2  # in bfloat16
    size = sum(weight.numel() for weight in trained.values())
    parts = {
        "base, bfloat16": float(sum(weight.numel() * weight.element_size() for weight in base)),
        "adapters, float32": 4.0 * size,
        "their gradients": 4.0 * size,
        "AdamW's two moments": 8.0 * size,
        "EMA": 4.0 * size,
        "activations, checkpointed: inputs of blocks": float(outside + inputs),
        "activations, checkpointed: the block computed again": block,
        "allowance for CUDA": REST,
    }
    return {**parts, "total": sum(parts.values()), "activations without checkpointing": float(whole)}


def transformer(lora: LoraParams) -> tuple[Any, int]:
    """The published net with adapters, on the meta device, and its number of blocks."""
    from diffusers import StableAudioDiTModel

    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            net = StableAudioDiTModel()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        adapters.attach(net, lora)
    for weight in adapters.trained(net).values():
        weight.data = weight.data.bfloat16()  # as autocast computes with them
    return net.train(), len(net.transformer_blocks)


def forward(net: nn.Module, batch: int) -> None:
    half = {"dtype": torch.bfloat16, "device": "meta"}
    latents, states = torch.empty(batch, 64, FRAMES, **half), torch.empty(batch, TOKENS, 768, **half)
    net(latents, torch.empty(batch, **half), states, torch.empty(batch, 1, 1536, **half))


def kept(net: nn.Module, run: Callable[[], None]) -> int:
    """Bytes of the tensors, other than weights, that a forward pass keeps for the backward pass."""
    weights = {weight.untyped_storage()._cdata for weight in net.parameters()}
    storages: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage  # held, so that no other one gets its address
        return tensor

    with fused(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in storages.values())


@contextmanager
def fused() -> Iterator[None]:
    own = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = lambda query, key, value, *args, **kwargs: Fused.apply(query, key, value)
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = own


if __name__ == "__main__":
    main()
