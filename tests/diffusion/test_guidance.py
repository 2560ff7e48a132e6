"""Guidance: scale 1 is the conditional answer, 0 the unconditional one, in between and beyond a straight line."""

import pytest
import torch

from soundmill.diffusion.guidance import guided


def _net(xt: torch.Tensor, t: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """An answer that hangs on states [B, L, D] where mask [B, L] is true."""
    return xt * 0.5 + (states * mask[..., None]).sum((1, 2))[:, None] + t[:, None] * 0.01


XT, T = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3])
TEXT = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(1)), torch.arange(5) < torch.tensor([[2], [5], [3]])
NULL = torch.ones(3, 5, 2), (torch.arange(5) < 1).expand(3, 5)


def test_line_through_conditional_and_unconditional():
    conditional, unconditional = _net(XT, T, *TEXT), _net(XT, T, *NULL)
    assert torch.equal(guided(_net, TEXT, NULL, 1)(XT, T), conditional)
    torch.testing.assert_close(guided(_net, TEXT, NULL, 0.0)(XT, T), unconditional)
    torch.testing.assert_close(guided(_net, TEXT, NULL, 3.0)(XT, T), 3 * conditional - 2 * unconditional)


def test_masks_stay_boolean_and_what_they_hide_changes_nothing():
    kinds = []

    def looking(xt: torch.Tensor, t: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        kinds.append(mask.dtype)
        return _net(xt, t, states, mask)

    states, mask = TEXT
    hidden = torch.where(mask[..., None], states, 1e3)
    torch.testing.assert_close(guided(looking, (hidden, mask), NULL, 2.0)(XT, T), guided(looking, TEXT, NULL, 2.0)(XT, T))
    assert set(kinds) == {torch.bool}


def test_one_pass_of_the_net():
    calls = []

    def counting(xt: torch.Tensor, t: torch.Tensor, label_weights: torch.Tensor) -> torch.Tensor:
        calls.append(len(xt))
        return xt + label_weights.sum(1, keepdim=True)

    conditions = (torch.rand(3, 2),), (torch.zeros(3, 2),)
    guided(counting, *conditions, 2.0)(XT, T)
    guided(counting, *conditions, 1)(XT, T)
    assert calls == [6, 3]


@pytest.mark.parametrize("plain", [[0, 1, 2], [1], []])
def test_items_without_a_condition_are_computed_once(plain):
    evaluated = []

    def counting(xt: torch.Tensor, t: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        evaluated.append(len(xt))
        return _net(xt, t, states, mask)

    mixed = tuple(states.clone() for states in TEXT)
    for states, nothing in zip(mixed, NULL, strict=True):
        states[plain] = nothing[plain]
    conditional, unconditional = _net(XT, T, *mixed), _net(XT, T, *NULL)
    output = guided(counting, mixed, NULL, 3.0)(XT, T)
    torch.testing.assert_close(output, unconditional + 3 * (conditional - unconditional))
    assert evaluated == [3 + 3 - len(plain)]


def test_an_item_may_differ_by_a_mark_alone():
    """The U-Net of waves takes states, a mask, and which items are to be seen without them."""
    evaluated = []

    def net(xt: torch.Tensor, t: torch.Tensor, states: torch.Tensor, mask: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        evaluated.append(len(xt))
        return _net(xt, t, states, mask) * (~dropped)[:, None]

    dropped = torch.tensor([False, True, False])
    output = guided(net, (*TEXT, dropped), (*TEXT, torch.ones(3, dtype=torch.bool)), 3.0)(XT, T)
    torch.testing.assert_close(output, 3 * net(XT, T, *TEXT, dropped))
    assert evaluated[0] == 5


def test_conditions_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        guided(_net, TEXT, NULL[:1], 2.0)


def test_a_step_reads_nothing_back():
    """On a GPU it would wait for all that was asked for before."""
    mixed = tuple(given.clone() for given in TEXT)
    for given, nothing in zip(mixed, NULL, strict=True):
        given[1] = nothing[1]
    answer = guided(_net, mixed, NULL, 3.0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        answer(XT, T)
    called = {event.key for event in profile.key_averages()}
    assert "aten::cat" in called
    assert not called & {"aten::nonzero", "aten::item", "aten::_local_scalar_dense"}
