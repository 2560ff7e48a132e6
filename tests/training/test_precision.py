"""Where a net runs and in which precision."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision

from soundmill.errors import UserError
from soundmill.params import parse
from soundmill.training.device import autocast, usable_precision
from soundmill.training.loader import Loader, Order
from soundmill.training.module import TrainingModule
from soundmill.training.params import HardwareParams
from tests.training import test_phases

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
    with pytest.raises(UserError, match=r"`fp16`, which wants a GPU, and there is none here; set it to `bf16` or `32`"):
        usable_precision(CPU, "fp16")
    hardware = {"accelerator": "cpu", "devices": 1, "precision": "fp16", "threads": 1}
    with pytest.raises(UserError, match="precision fp16 is a GPU's; on a CPU take bf16 or 32"):
        parse(HardwareParams, hardware, "params.yaml: hardware")


class Alone(TrainingModule):
    def loss(self, step, batch):
        return (self.net(batch.values[0]) - batch.values[0]).square().mean()


def alone(params, steps):
    return Alone(test_phases.layers(2), params, steps)


def duel(params, steps):
    return test_phases.Duel(test_phases.layers(2), {"discriminator": (test_phases.layers(1), params.optimiser)}, params, steps)


@pytest.mark.parametrize("made", [alone, duel])
@pytest.mark.parametrize("clip_norm", [1e-3, 20.0])
def test_gradients_are_clipped_without_the_scale_of_fp16(tmp_path, made, clip_norm):
    """As in 32 bits: all are longer than the one and shorter than the other. On a CPU Lightning takes fp16 only in parts."""
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    whole, half = (norms(tmp_path, made, clip_norm, plugins) for plugins in ([], [scaled]))
    assert len(half) == (3 if made is alone else 6)
    assert half == pytest.approx(whole, rel=0.05)
    assert (max(whole) == pytest.approx(clip_norm)) == (clip_norm < 1)


def norms(directory, made, clip_norm, plugins) -> list[float]:
    """Lengths of the gradients that each optimiser takes a step by."""
    params = test_phases.PARAMS.model_copy(update={"optimiser": test_phases.OPTIMISER.model_copy(update={"clip_norm": clip_norm})})
    seen: list[float] = []

    class Watched(pl.Callback):
        def on_fit_start(self, trainer, module):
            for optimiser in trainer.optimizers:
                optimiser.register_step_post_hook(lambda optimiser, *_: seen.append(norm_of(optimiser)))

    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=3,
        plugins=plugins,
        callbacks=[Watched()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
    )
    order = Order(3, dict.fromkeys("abcdefgh", 1.0), 4)
    trainer.fit(made(params, 3), Loader(test_phases.Points(), order, drawn, steps=3))
    return seen


def drawn(step: int) -> torch.Tensor:
    return torch.rand(4, generator=torch.Generator().manual_seed(step))


def norm_of(optimiser: torch.optim.Optimizer) -> float:
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    return float(torch.linalg.vector_norm(torch.cat([weight.grad.flatten() for weight in weights])))
