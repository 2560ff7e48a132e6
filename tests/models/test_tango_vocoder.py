"""HiFi-GAN: its discriminators, its training, what is kept of it and where it is refused."""

from __future__ import annotations

import pytest
import torch

from soundmill.models.tango.discriminators import PERIODS, Discriminators, PeriodDiscriminator


def size(net: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def test_discriminators_have_the_published_sizes():
    with torch.device("meta"):
        built = Discriminators(32)
    assert (size(built.periods), size(built.scales)) == (41_105_770, 29_618_821)  # 70.7 M, with the norms' own


def test_every_discriminator_judges_every_wave():
    torch.manual_seed(0)
    judgements = Discriminators(4)(torch.randn(3, 1000))
    assert [len(features) for _, features in judgements] == [6] * 5 + [8] * 3
    assert all(scores.shape[0] == 3 and scores.ndim == 2 for scores, _ in judgements)
    assert [features[-1].shape[-1] for _, features in judgements[:5]] == list(PERIODS)
    assert [features[0].shape[-1] for _, features in judgements[5:]] == [1000, 501, 251]
    # 1000 / 2 rows, 81 times fewer after four strides of 3; 64 times fewer after strides of 2, 2, 4, 4.
    assert judgements[0][0].shape == (3, 7 * 2)
    assert judgements[5][0].shape == (3, 16)


@pytest.mark.parametrize("period", [2, 7])
def test_a_period_discriminator_compares_only_samples_a_period_apart(period):
    torch.manual_seed(0)
    judge, wave = PeriodDiscriminator(period, 4), torch.randn(1, 1, 40 * period)
    changed = wave.clone()
    changed[..., 1::period] += 1
    for one, other in zip(judge(wave)[1], judge(changed)[1], strict=True):
        same = [torch.equal(one[..., phase], other[..., phase]) for phase in range(period)]
        assert same == [phase != 1 for phase in range(period)]
