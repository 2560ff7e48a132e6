"""Where a net runs and how."""

from __future__ import annotations

import pytest
import torch

from soundmill.training.device import autocast, usable_precision

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
