"""The nets: the paper's parameter count, shapes, and what the condition does."""

import pytest
import torch

from soundmill.models.ddpm_mel.residual import ResidualUNet
from soundmill.models.ddpm_mel.unet import UNet, timestep_embedding

PAPER = {"channels": 1, "widths": [64, 128, 256, 256], "attention_levels": [0, 1, 2, 3], "heads": 4, "embedding_size": 256}


def _size(**changes) -> int:
    with torch.device("meta"):  # counted, never allocated
        net = UNet(**(PAPER | changes))
    return sum(weight.numel() for weight in net.parameters())


def test_paper_parameter_count():
    assert _size(num_labels=0) == 23_331_457
    assert _size(num_labels=10) == 23_331_457 + 256 * 10


def test_laptop_size_of_the_same_class():
    assert _size(num_labels=0, widths=[16, 32, 64, 64], attention_levels=[1, 2, 3], embedding_size=64) == 1_461_249


def _small(num_labels: int) -> UNet:
    torch.manual_seed(0)
    return UNet(4, [8, 16], [1], heads=2, embedding_size=16, num_labels=num_labels).eval()


def _residual(shape: tuple[int, int, int], num_labels: int, **changes) -> ResidualUNet:
    torch.manual_seed(0)
    return ResidualUNet(shape, [8, 16, 24], [1, 2], 2, 16, num_labels, **({"blocks": 1, "dropout": 0.0} | changes))


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 4, 12)])
def test_keeps_the_shape(shape):
    xt = torch.randn(3, *shape)
    for net in (_small(0), _residual(shape, 0), _residual(shape, 0, blocks=2)):
        assert net(xt, torch.tensor([0, 5, 999]), torch.zeros(3, 0)).shape == xt.shape


def test_residual_net_begins_at_zero_and_every_weight_learns():
    net = _residual((4, 8, 8), 3)
    xt, t, condition = torch.randn(2, 4, 8, 8), torch.tensor([1, 500]), torch.eye(3)[:2]
    assert net(xt, t, condition).abs().max() == 0
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    net(xt, t, condition).square().mean().backward()
    still = [name for name, weight in net.named_parameters() if weight.grad is None or weight.grad.abs().max() == 0]
    assert not still


def test_residual_net_tells_rows_and_labels_apart():
    net = _residual((4, 8, 8), 3)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    xt, t = torch.zeros(1, 4, 8, 8), torch.tensor([10])
    answer = net(xt, t, torch.zeros(1, 3))
    assert not torch.allclose(answer[:, :, 3], answer[:, :, 4])
    assert not torch.allclose(answer, net(xt, t, torch.eye(3)[:1]))


def test_condition_is_a_weighted_sum_of_label_embeddings():
    net, xt, t = _small(3), torch.randn(1, 4, 8, 8), torch.tensor([10])
    answers = {weights: net(xt, t, torch.tensor([weights])) for weights in ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0))}
    none, one, two = answers.values()
    assert not torch.allclose(none, one)
    assert not torch.allclose(one, two)
    net.labels.weight.data[:2] = 0
    torch.testing.assert_close(net(xt, t, torch.tensor([[0.5, 0.5, 0.0]])), none)


def test_timestep_embedding():
    embedding = timestep_embedding(torch.tensor([0, 7]), 6)
    assert embedding[0].tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(
        embedding[1, [0, 3]], torch.tensor([7.0, 7.0]).sin() * torch.tensor([1.0, 0]) + torch.tensor([0, torch.tensor(7.0).cos()])
    )
