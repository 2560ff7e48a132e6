"""Guidance: scale 1 is the conditional answer, 0 the unconditional one, in between and beyond a straight line."""

from __future__ import annotations

import torch

from soundmill.diffusion.guidance import guided


def _net(xt: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    return xt * 0.5 + condition.sum(1)[:, None] + t[:, None] * 0.01


def test_line_through_conditional_and_unconditional():
    xt, t = torch.randn(3, 4), torch.tensor([1, 2, 3])
    condition, null = torch.rand(3, 2), torch.zeros(3, 2)
    conditional, unconditional = _net(xt, t, condition), _net(xt, t, null)
    assert torch.equal(guided(_net, xt, t, condition, null, 1), conditional)
    torch.testing.assert_close(guided(_net, xt, t, condition, null, 0.0), unconditional)
    torch.testing.assert_close(guided(_net, xt, t, condition, null, 3.0), 3 * conditional - 2 * unconditional)


def test_one_pass_of_the_net():
    calls = []

    def counting(xt: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        calls.append(len(xt))
        return _net(xt, t, condition)

    arguments = torch.randn(3, 4), torch.ones(3), torch.rand(3, 2), torch.zeros(3, 2)
    guided(counting, *arguments, 2.0)
    guided(counting, *arguments, 1)
    assert calls == [6, 3]
