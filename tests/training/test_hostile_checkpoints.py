"""Checkpoints that ask for more than they have are refused before they take memory, with their file and key."""

import json
import resource
import struct
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from soundmill import params
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.components.griffin_lim.params import GriffinLimParams
from soundmill.training import checkpoint
from tests.imports import ROOT

OWN = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


def layers(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(3, 2) for _ in range(count)))


@pytest.mark.parametrize(
    ("make", "tensors", "found"),
    [
        (partial(nn.Linear, 200_000, 200_000), OWN, r"weight is \[2, 3\] .* and \[200000, 200000\]"),  # 160 GB
        (partial(nn.Embedding, 3_000_000_000, 16), {"weight": OWN["weight"]}, r"weight is \[2, 3\]"),
        (partial(layers, 10**9), OWN, "more layers than the 2 tensors"),
        (partial(nn.Linear, 10**30, 2), OWN, "Overflow"),
        (partial(nn.Linear, 3, 2, bias=False), OWN, r"bias is \[2\] .* absent in the net|bias is .* and absent"),
        (partial(nn.Linear, 3, 2), {"weight": OWN["weight"]}, "bias is absent"),
        (partial(nn.Linear, 3, 2), {**OWN, "bias": torch.ones(2, dtype=torch.int32)}, "bias is .* whole numbers"),
        (partial(nn.Linear, 3, 2), {**OWN, "bias": torch.ones(2, dtype=torch.bool)}, "bias is .* whole numbers"),
    ],
)
def test_a_net_is_not_made_unless_its_weights_are_there(tmp_path, make, tensors, found):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=rf"model\.safetensors: the weights do not fit the architecture in config\.json .*{found}"):
        checkpoint.load_weights(make, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_net_that_fits_has_the_weights_and_leaves_the_generator_alone(tmp_path):
    save_file(OWN, tmp_path / "model.safetensors")
    net = checkpoint.load_weights(partial(nn.Linear, 3, 2), tmp_path / "model.safetensors")
    assert torch.equal(net.weight, OWN["weight"])
    assert not net.training
    assert nn.Linear(1, 1).weight.device.type == "cpu"


@pytest.mark.parametrize(
    "header",
    [
        {"weight": {"dtype": "F32", "shape": [200_000, 200_000], "data_offsets": [0, 24]}},
        {"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 10**12]}},
        {"weight": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 24]}},
        {"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 0]}},
        {"weight": {"dtype": "X9", "shape": [2, 3], "data_offsets": [0, 24]}},
        10**15,
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", header) if isinstance(header, int) else struct.pack("<Q", len(text)) + text + bytes(24))
    with pytest.raises(UserError, match=r"model\.safetensors: weights cannot be read"):
        checkpoint.load_weights(partial(nn.Linear, 3, 2, bias=False), path)


def test_a_config_that_is_huge_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"family": "x", "labels": [""] * 3_000_000}))
    with pytest.raises(UserError, match=r"config\.json: has 12,.* bytes"):
        checkpoint.read(tmp_path)


VALUES = {
    "guidance_scale": [1e30, -1.0, float("nan"), float("inf"), 101.0],
    "num_steps": [0, -1, 10**9],
    "griffin_lim_iterations": [0, 10**9],
    "seed": [-1, 2**63, 2**64],
    "steps": [0, 10**9],
    "batch_size": [0, 10**9],
}


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_numbers_without_sense_are_refused_by_their_key(name):
    """In each family's sections `train` and `generate`, whatever is in them."""
    document, kind = params.compose(ROOT / "conf", [f"model={name}"])[name], registry.family(name)
    tried = 0
    for part, model in (("train", kind.train_params), ("generate", kind.generate_params)):
        for where in (document[part], document[part].get("sampling") or {}):
            for key in VALUES.keys() & where.keys():
                own = where[key]
                for value in VALUES[key]:
                    where[key], tried = value, tried + 1
                    with pytest.raises(UserError, match=rf"\b{key}\b"):
                        params.parse(model, document[part], f"{name}.{part}")
                where[key] = own
    assert tried >= 4
    with pytest.raises(UserError, match="griffin_lim_iterations"):
        params.override(
            GriffinLimParams(griffin_lim_iterations=2, griffin_lim_momentum=0.9, griffin_lim_grain="none"),
            ["griffin_lim_iterations=1000000000"],
            "sampling",
        )
