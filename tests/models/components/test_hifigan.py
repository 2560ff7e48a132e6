"""HiFi-GAN: its nets, what it is trained on, what is kept of it, where it is refused, and those of others."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from soundmill import manifest, shards
from soundmill.audio import flac, mel
from soundmill.models.components import vocoder_adversary
from soundmill.models.components.hifigan import HifiGanParams, NetworkParams
from soundmill.models.components.hifigan.vocoder import HifiGan, build_vocoder
from soundmill.models.components.log_mels.source import gather_log_mels
from soundmill.models.components.vocoder_adversary import PERIODS, Discriminators, LogMel, PeriodDiscriminator
from soundmill.models.components.waves.source import Pairs, gather_waves
from soundmill.params import compose, parse
from tests import prepared
from tests.models.components.test_mel_autoencoder import SPEC, size

VOICE = NetworkParams(
    channels=32, rates=[5, 4, 2, 2, 2], kernels=[16, 16, 8, 4, 4], resblock_kernels=[3], resblock_dilations=[[1, 3]]
)


@pytest.fixture
def model() -> HifiGan:
    torch.manual_seed(0)
    return HifiGan(VOICE, SPEC, build_vocoder(VOICE, SPEC.n_mels, SPEC.sample_rate).eval())


def test_nets_have_the_published_sizes(root):
    document = compose(root / "conf", ["model=tango", "vocoder=hifigan"])["vocoder"]
    expected = parse(HifiGanParams, document, "vocoder")
    with torch.device("meta"):
        assert size(build_vocoder(expected.network, 64, 16_000)) == 55_264_897
        built = Discriminators(expected.weights.discriminator_width)
    assert (size(built.periods), size(built.scales)) == (41_105_770, 29_618_821)  # 70.7 M, with the norms' own


def test_every_discriminator_judges_every_wave():
    torch.manual_seed(0)
    judgements = Discriminators(4)(torch.randn(3, 1000))
    assert [len(features) for _, features in judgements] == [6] * 5 + [8] * 3
    assert all(scores.shape[0] == 3 and scores.ndim == 2 for scores, _ in judgements)
    assert [features[-1].shape[-1] for _, features in judgements[:5]] == list(PERIODS)
    assert [features[0].shape[-1] for _, features in judgements[5:]] == [1000, 501, 251]
    assert judgements[0][0].shape == (3, 7 * 2)  # 500 rows of 2, four strides of 3
    assert judgements[5][0].shape == (3, 16)  # strides of 2, 2, 4, 4


@pytest.mark.parametrize("period", [2, 7])
def test_a_period_discriminator_compares_only_samples_a_period_apart(period):
    torch.manual_seed(0)
    discriminator, wave = PeriodDiscriminator(period, 4), torch.randn(1, 1, 40 * period)
    changed = wave.clone()
    changed[..., 1::period] += 1
    for one, other in zip(discriminator(wave)[1], discriminator(changed)[1], strict=True):
        same = [torch.equal(one[..., phase], other[..., phase]) for phase in range(period)]
        assert same == [phase != 1 for phase in range(period)]


def test_a_wave_has_as_many_samples_as_its_frames(model):
    log_mel = torch.randn(2, 16, 10)
    assert model.net(log_mel.transpose(1, 2)).shape == (2, 10 * 160 + 32)
    assert model.vocode(log_mel).shape == (2, 1, 1600)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_log_mels_with_a_gradient_are_those_without(power):
    spec = SPEC.model_copy(update={"power": power, "peak": None})
    wave = 0.3 * np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    wave[:, 1000:3000] = 0
    found = torch.tensor(wave, requires_grad=True)
    values = LogMel(spec)(found)
    np.testing.assert_allclose(values.detach(), mel.log_mel(wave, spec), atol=2e-4)
    values.sum().backward()
    assert found.grad.isfinite().all()
    assert found.grad.abs().max() > 0


def test_norms_change_how_a_net_is_trained_and_not_what_it_says(model):
    plain = set(model.net.state_dict())
    vocoder_adversary.with_norms(model.net)
    log_mel = torch.randn(1, 16, 8)
    normed = model.vocode(log_mel)
    vocoder_adversary.without_norms(model.net)
    assert set(model.net.state_dict()) == plain
    torch.testing.assert_close(model.vocode(log_mel), normed)


LENGTHS = {"a": 8000, "b": 3000}


@pytest.fixture
def pairs(tmp_path) -> Pairs:
    """Crops of ten frames of two clips of noise, the second shorter than that twice."""
    rng, clips, rows = np.random.default_rng(0), [], []
    for clip_id, length in LENGTHS.items():
        wave = (0.02 * rng.standard_normal(length)).astype(np.float32)
        clips.append(prepared.sound(clip_id, wave, SPEC.sample_rate))
        values = mel.log_mel(flac.decode_mono(clips[-1]["audio"]["bytes"]), SPEC).astype("<f2")
        size = {"num_mels": 16, "num_frames": values.shape[1]}
        rows.append({"clip_id": clip_id, "log_mel": values.tobytes(), "digest": "", **size})
    prepared.write_rows(clips, tmp_path / "clips" / shards.shard_name(0), manifest.CLIPS)
    shards.write_rows(rows, tmp_path / "mels" / shards.shard_name(0), manifest.SPECTROGRAMS)
    log_mels = gather_log_mels(tmp_path / "mels", ["b", "a"], tmp_path)
    return Pairs(log_mels, gather_waves(tmp_path / "clips", ["b", "a"], tmp_path, partial(mel.levelled, spec=SPEC)), 25, SPEC)


@pytest.mark.parametrize("place", [0.0, 0.4, 0.999])
def test_a_crops_wave_is_what_its_log_mel_was_made_of(pairs, place):
    log_mels, waves = pairs.batch(np.array([1, 0]), np.array([place, place]))
    assert log_mels.shape == (2, 16, 25)
    assert waves.shape == (2, 25 * 160)
    assert waves[0].abs().max() > 0.25  # brought to a peak of 0.5, whole, before it was cut
    found = mel.log_mel(waves.numpy(), SPEC.model_copy(update={"peak": None}))
    inner = slice(4, 22)  # frames whose window of 1024 lies within the crop
    np.testing.assert_allclose(found[0, :, inner], log_mels[0, :, inner], atol=0.02)
    assert waves[1, 3000:].abs().max() == 0
    assert (log_mels[1, :, 19:] == np.float16(math.log(1e-5))).all()
