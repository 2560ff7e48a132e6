"""Captions as vectors, for any net that is told label weights; and the transformer of pictures."""

import numpy as np
import pytest
import torch

from soundmill.models.components.dit.network import PictureDiT
from soundmill.models.components.dit.params import SizesParams
from soundmill.models.components.text_states.states import vectors

RNG = np.random.default_rng(0)


def test_a_caption_is_the_mean_of_its_states_with_length_one():
    states = RNG.standard_normal((5, 3)).astype("<f2")
    found = vectors([states, None, 7 * states], 3)
    mean = states.astype(np.float64).mean(0)
    np.testing.assert_allclose(found[0].double(), mean / np.linalg.norm(mean), atol=1e-3)
    assert found[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(found[2], found[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("conditions", [0, 3])
def test_the_transformer_of_pictures_is_told_time_and_condition(conditions):
    torch.manual_seed(0)
    net = PictureDiT(SizesParams(layers=2, heads=2, head_width=8, key_heads=1), (4, 2, 6), 1000, conditions)
    for parameter in net.parameters():  # it starts as the identity in many parts
        torch.nn.init.normal_(parameter, std=0.2)
    xt, weights = torch.randn(2, 4, 2, 6), torch.eye(2, conditions)
    with torch.no_grad():
        answer = net(xt, torch.tensor([10, 10]), weights)
        assert answer.shape == xt.shape
        assert not torch.allclose(answer, net(xt, torch.tensor([10, 900]), weights))
        alone = net(xt[1:], torch.tensor([10]), weights[1:])
        torch.testing.assert_close(answer[1:], alone, atol=1e-5, rtol=1e-4)
        assert torch.allclose(answer, net(xt, torch.tensor([10, 10]), 2 * weights)) == (conditions == 0)
