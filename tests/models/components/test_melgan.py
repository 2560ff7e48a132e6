"""MelGAN: its net's size and length, hinge, and where it is refused."""

import pytest
import torch

from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.melgan import NetworkParams
from soundmill.models.components.melgan.vocoder import MelGan, MelGanNet, load
from soundmill.models.components.vocoder_adversary import Discriminators
from soundmill.training.module import hinge_discriminator_loss, hinge_generator_loss
from tests.mels import TANGO

SMALL = NetworkParams(channels=2, rates=[5, 4, 4, 2], residual_layers=2)


def test_the_net_has_the_published_size():
    """4.26 million weights, by the paper's table 1."""
    net = MelGanNet(NetworkParams(channels=32, rates=[8, 8, 2, 2], residual_layers=3), 80)
    assert sum(weight.numel() for weight in net.parameters()) == pytest.approx(4.26e6, rel=2e-3)


@pytest.mark.parametrize("frames", [1, 3, 50])
def test_a_frame_becomes_a_hop(tmp_path, frames):
    torch.manual_seed(0)
    model = MelGan(SMALL, TANGO, MelGanNet(SMALL, TANGO.n_mels).eval())
    log_mels = torch.randn(2, TANGO.n_mels, frames)
    waves = model.vocode(log_mels)
    assert waves.shape == (2, 1, frames * TANGO.hop_length)
    assert waves.abs().max() <= 1
    save_vocoder(model, tmp_path / "vocoder", {"kind": "train"})
    assert torch.equal(load(tmp_path / "vocoder", TANGO).vocode(log_mels), waves)


def test_hinge_of_scales_alone():
    discriminators = Discriminators(4, periods=())
    outputs = [scores for scores, _ in discriminators(torch.randn(2, 4000))]
    assert len(outputs) == 3
    nothing = [torch.zeros_like(scores) for scores in outputs]
    assert hinge_discriminator_loss(nothing, nothing) == 2 * 3
    assert hinge_generator_loss(nothing) == 0
    assert hinge_discriminator_loss([one + 1 for one in nothing], [one - 1 for one in nothing]) == 0
