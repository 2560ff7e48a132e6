"""A checkpoint of tiny-audio-diffusion: the same net as a-unet's, what is imported of it, and files that are refused."""

import json
from pathlib import Path

import pytest
import torch

from soundmill.errors import UserError
from soundmill.models import generation
from soundmill.models.importing import import_published
from soundmill.models.waveform_unet import model as models
from tests import recorded
from tests.lost_bits import Code
from tests.models.test_audio_dit_published import conf


def write(path: Path, **more: object) -> None:
    """A Lightning checkpoint with a small net as audio-diffusion-pytorch builds it, trained and averaged."""
    averaged = recorded.state("a_unet")
    state = {f"model.net.{name}": torch.zeros_like(value) for name, value in averaged.items()}
    state |= {f"model_ema.ema_model.net.{name}": value for name, value in averaged.items()}
    torch.save({"state_dict": state, "global_step": 700, "epoch": 3, **more}, path)


def test_with_its_weights_the_net_says_the_same_and_makes_sounds(tmp_path):
    write(tmp_path / "tiny.ckpt")
    count = import_published(tmp_path / "tiny.ckpt", tmp_path / "imported" / "tiny", conf)
    assert count == 47_420
    ours = models.load(tmp_path / "imported/tiny")
    with torch.no_grad():
        output = ours.net(torch.from_numpy(recorded.uniform(3, 2, 64)), torch.tensor([0.0, 0.3, 1.0]))
    recorded.check("a_unet", "output", output, 1e-5, 1e-5)
    assert output.std() > 0.1
    config = json.loads((tmp_path / "imported/tiny/config.json").read_text())
    assert (config["sample_rate"], config["channels"], config["steps"], config["imported"]["name"]) == (44_100, 2, 700, "tiny.ckpt")
    paths = generation.generate_sounds(tmp_path / "imported/tiny", [], 1, 0, tmp_path / "sounds", tmp_path, ["num_steps=1"])
    assert len(paths) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"hyper_parameters": Code()}, "cannot be read as weights"),
        ({"state_dict": {}}, r"contains no U-Net of tiny-audio-diffusion"),
        ({"state_dict": [1]}, "it has no 'state_dict'"),
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
