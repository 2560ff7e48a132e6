"""Where a net runs and in which precision."""

import pytest
import torch

from soundmill.errors import UserError
from soundmill.params import parse
from soundmill.training import loop
from soundmill.training.device import autocast, usable_precision
from soundmill.training.loader import Loader, Order
from soundmill.training.module import TrainingModule
from soundmill.training.params import HardwareParams
from tests.training import test_module

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("instructions", "used"), [(True, "bf16"), (False, "32")])
def test_bfloat16_is_left_to_processors_that_have_instructions_for_it(monkeypatch, instructions, used):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: instructions)
    assert usable_precision(CPU, "bf16") == used
    assert usable_precision(CPU, "32") == "32"
    assert usable_precision(GPU, "bf16") == "bf16"
    x = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype == {"bf16": torch.bfloat16, "32": torch.float32}[used]
    with autocast(CPU, "32"):
        assert (x @ x).dtype == torch.float32


def test_torch_tells_whether_this_processor_has_them():
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)


def test_fp16_is_a_gpus():
    assert usable_precision(GPU, "fp16") == "fp16"
    with pytest.raises(UserError, match=r"`fp16`, which needs a GPU, and there is none here; set it to `bf16` or `32`"):
        usable_precision(CPU, "fp16")
    hardware = {"accelerator": "cpu", "devices": 1, "precision": "fp16", "threads": 1}
    with pytest.raises(UserError, match="precision fp16 needs a GPU; on a CPU use bf16 or 32"):
        parse(HardwareParams, hardware, "params.yaml: hardware")


class Alone(TrainingModule):
    def loss(self, step, batch):
        return (self.net(batch.values[0]) - batch.values[0]).square().mean()


def alone(params, steps):
    return Alone(test_module.layers(2), params, steps)


def duel(params, steps):
    return test_module.Duel(test_module.layers(2), {"discriminator": (test_module.layers(1), params.optimiser)}, params, steps)


@pytest.mark.parametrize("build", [alone, duel])
@pytest.mark.parametrize("clip_norm", [1e-3, 20.0, None])
def test_steps_of_fp16_are_those_of_32_bits_whatever_the_scale_of_its_losses(build, clip_norm):
    """The gradients are longer than the first bound and shorter than the second; both nets' steps are fused."""
    whole, half = (lengths(build, clip_norm, scale) for scale in (None, 1024.0))
    assert len(half) == (3 if build is alone else 6)
    assert half == pytest.approx(whole, rel=0.05)
    if clip_norm:  # the first moment begins with half of the gradient: its beta is 0.5
        assert (whole[0] == pytest.approx(clip_norm / 2)) == (clip_norm < 1)


def lengths(build, clip_norm: float | None, scale: float | None) -> list[float]:
    """Length of each optimiser's first moments after each of its steps, a sum of the gradients that it took."""
    params = test_module.PARAMS.model_copy(update={"optimiser": test_module.OPTIMISER.model_copy(update={"clip_norm": clip_norm})})
    seen: list[float] = []
    torch.manual_seed(0)
    module = build(params, 3)
    with loop.accelerated(test_module.CPU, "fp16" if scale else "32", 1) as accelerator:
        if scale:  # which accelerate leaves to a GPU
            accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=scale), True
        optimisers = loop.place(module, accelerator, test_module.CPU)
        for one in optimisers.values():
            one.optimizer.register_step_post_hook(lambda optimiser, *_: seen.append(moments_of(optimiser)))
        loader = Loader(test_module.Points(), Order(3, dict.fromkeys("abcdefgh", 1.0), 4), drawn, steps=3)
        for batch in loader:
            loop.train_on(module, batch, accelerator, optimisers)
    return seen


def drawn(step: int) -> torch.Tensor:
    return torch.rand(4, generator=torch.Generator().manual_seed(step))


def moments_of(optimiser: torch.optim.Optimizer) -> float:
    moments = [state["exp_avg"].flatten() for state in optimiser.state.values()]
    return float(torch.linalg.vector_norm(torch.cat(moments)))
