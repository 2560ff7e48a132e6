"""A checkpoint of tiny-audio-diffusion: the same net as a-unet's, what is imported of it, and files that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from a_unet import TimeConditioningPlugin
from a_unet.apex import AttentionItem, ModulationItem, ResnetItem, SkipModulate, XBlock, XUNet

from soundmill.errors import UserError
from soundmill.models import generation
from soundmill.models.importing import import_published
from soundmill.models.waveform_unet import model as models
from tests.imports import ROOT

LEVELS = ((8, 1, 1, False), (16, 2, 2, False), (16, 4, 1, True))  # channels, factor, items, attention


def their_net() -> torch.nn.Module:
    """As audio-diffusion-pytorch's UNetV0 builds it, small."""
    blocks = [
        XBlock(channels=width, factor=factor, items=([ResnetItem, ModulationItem] + [AttentionItem] * attention) * items)
        for width, factor, items, attention in LEVELS
    ]
    sizes = {"attention_features": 64, "attention_heads": 2, "modulation_features": 32, "resnet_groups": 8}
    return TimeConditioningPlugin(XUNet)(dim=1, in_channels=2, blocks=blocks, skip_t=SkipModulate, **sizes)


def write(path: Path, **more: object) -> torch.nn.Module:
    """A Lightning checkpoint with such a net, trained and averaged; returns the averaged one."""
    torch.manual_seed(0)
    trained, averaged = their_net(), their_net()
    state = {f"model.net.{name}": value for name, value in trained.state_dict().items()}
    state |= {f"model_ema.ema_model.net.{name}": value for name, value in averaged.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 700, "epoch": 3, **more}, path)
    return averaged.eval()


def conf() -> Path:
    return ROOT / "conf"


def test_with_its_weights_the_net_says_the_same_and_makes_sounds(tmp_path):
    theirs = write(tmp_path / "tiny.ckpt")
    count = import_published(tmp_path / "tiny.ckpt", tmp_path / "imported" / "tiny", conf)
    assert count == sum(weight.numel() for weight in theirs.parameters())
    ours = models.load(tmp_path / "imported/tiny")
    waves, level = torch.randn(3, 2, 64), torch.tensor([0.0, 0.3, 1.0])
    with torch.no_grad():
        expected = theirs(waves, level)
        torch.testing.assert_close(ours.net(waves, level), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1
    config = json.loads((tmp_path / "imported/tiny/config.json").read_text())
    assert (config["sample_rate"], config["channels"], config["steps"], config["imported"]["name"]) == (44_100, 2, 700, "tiny.ckpt")
    paths = generation.generate_sounds(tmp_path / "imported/tiny", [], 1, 0, tmp_path / "sounds", tmp_path, ["num_steps=1"])
    assert len(paths) == 1


class Code:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"hyper_parameters": Code()}, "cannot be read as weights"),
        ({"state_dict": {}}, r"contains no U-Net of tiny-audio-diffusion"),
        ({"state_dict": [1]}, "it has no `state_dict`"),
        ({"state_dict": {1: torch.zeros(1)}}, "'1' is not a complete tensor"),
        ({"state_dict": {"model.net.a": torch.zeros(1).expand(10**9)}}, "'model.net.a' is not a complete tensor"),
        ({"state_dict": {"model.net.a": torch.tensor([float("nan")])}}, "values that are not finite real numbers"),
        ({"state_dict": {"model.net.blocks.2.net.block.blocks.0.block.weight": torch.zeros(4, 2)}}, "no U-Net"),
        ({"state_dict": {"model.net.blocks.2.net.block.blocks.0.block.weight": torch.zeros(4, 2, 1)}}, "no U-Net"),
    ],
)
def test_what_is_none_is_refused(tmp_path, content, message, capsys):
    write(tmp_path / "tiny.ckpt", **content)
    with pytest.raises(UserError, match=message):
        import_published(tmp_path / "tiny.ckpt", tmp_path / "imported", conf)
    assert not (tmp_path / "imported").exists()
    assert "it ran" not in capsys.readouterr().out


def test_tensors_too_many_or_of_other_shapes_are_refused(tmp_path):
    write(tmp_path / "tiny.ckpt")
    whole = torch.load(tmp_path / "tiny.ckpt", weights_only=True)
    name = "model_ema.ema_model.net.blocks.2.net.block.blocks.1.block.blocks.0.blocks.0.2.weight"
    for change in ({f"{name}.more": torch.zeros(1)}, {name: torch.zeros(8, 8, 5)}):
        torch.save({"state_dict": {**whole["state_dict"], **change}}, tmp_path / "other.ckpt")
        with pytest.raises(UserError, match=r"other\.ckpt: not the weights of UNet1d"):
            import_published(tmp_path / "other.ckpt", tmp_path / "imported", conf)
