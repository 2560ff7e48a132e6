"""Griffin-Lim as a vocoder: its grain is drawn by the request's seed, its phases are not."""

import torch

from soundmill.models.components import vocoding
from soundmill.models.components.contracts import GriffinLimParams
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from tests.mels import TANGO

NOISE = torch.randn(2, TANGO.n_mels, 30, generator=torch.Generator().manual_seed(0)) - 3


def griffin_lim(**grain: str) -> GriffinLim:
    return GriffinLim(TANGO, GriffinLimParams(griffin_lim_iterations=2, griffin_lim_momentum=0.0, **grain))


def test_a_request_has_its_grain_whatever_shares_its_batch():
    vocoder, cpu = griffin_lim(griffin_lim_grain="speckle"), torch.device("cpu")
    same = NOISE[:1].expand(2, -1, -1)
    waves = vocoding.to_waves(vocoder, same, cpu, 4000, seeds=[7, 8])
    assert waves.shape == (2, 1, 4000)
    assert (waves[0] - waves[1]).abs().max() > 0.01
    assert torch.equal(vocoding.to_waves(vocoder, NOISE[:1], cpu, 4000, seeds=[8])[0], waves[1])
    assert torch.equal(*vocoding.to_waves(vocoder, same, cpu))  # recordings, of no request


def test_without_grain_no_seed_is_heard():
    """As in checkpoints that do not name it."""
    plain = griffin_lim(griffin_lim_grain="none")
    assert griffin_lim() == plain
    assert torch.equal(plain.vocode(NOISE, 1), plain.vocode(NOISE, 2))
    assert not torch.equal(plain.vocode(NOISE), griffin_lim(griffin_lim_grain="speckle").vocode(NOISE))
