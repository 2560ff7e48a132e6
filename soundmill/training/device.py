"""The device, precision and mode that a net runs in."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from soundmill.errors import UserError


def pick_device(accelerator: str) -> torch.device:
    """UserError if it is `gpu` and there is none."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator is `gpu`, but torch finds no GPU; set it to `cpu` or `auto`")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def use_threads(threads: int) -> None:
    """Set the number of CPU threads: sums are split among them, so it affects the last bits."""
    torch.set_num_threads(threads)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads in the block (None: unchanged)."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_precision(device: torch.device, precision: str) -> str:
    """`precision`, or 32 on a CPU without bfloat16 instructions, which is up to a hundred times faster there.

    fp16 on a CPU is a UserError: it has no fp16 matrix products, and losses are not scaled there.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision is `fp16`, which needs a GPU, and there is none here; set it to `bf16` or `32`")
    if precision == "bf16" and device.type == "cpu":
        instructions = (able for name, able in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
        return "bf16" if any(instructions) else "32"
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    usable = usable_precision(device, precision)
    return torch.autocast(device.type, torch.float16 if usable == "fp16" else torch.bfloat16, enabled=usable != "32")


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    was = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was)


def full_precision() -> AbstractContextManager[None]:
    """Keep GPUs from rounding float32 to TF32 in convolutions and matrix products: scores must not depend on the machine."""
    return _float32("ieee")


@contextmanager
def fast_kernels(device: torch.device) -> Iterator[None]:
    """Let GPUs round float32 to TF32 in convolutions and matrix products, and cuDNN choose the fastest algorithm."""
    if device.type == "cpu":
        yield
        return
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with _float32("tf32"):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _float32(precision: str) -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def of_equal_length(lengths: Sequence[int], size: int | Callable[[int], int]) -> Iterator[list[int]]:
    """Numbers of items in batches of `size` (or `size` of their length), all of one length, as padding would change results."""
    by_length: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        by_length.setdefault(length, []).append(number)
    for length, same in by_length.items():
        step = size(length) if callable(size) else size
        yield from (same[start : start + step] for start in range(0, len(same), step))
