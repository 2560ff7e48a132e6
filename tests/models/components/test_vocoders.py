"""HiFi-GAN and MelGAN: their nets and discriminators, and what they are trained on; standard deviations of waves, of all samples
and per frequency; Griffin-Lim: its grain and its phases."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch

from soundmill import manifest, shards
from soundmill.audio import flac, mel
from soundmill.errors import UserError
from soundmill.models.components import vocoder_trainer, vocoding
from soundmill.models.components.contracts import GriffinLimParams
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.hifigan import HifiGanParams, NetworkParams
from soundmill.models.components.hifigan.vocoder import HifiGan, build_vocoder
from soundmill.models.components.log_mels.source import gather_log_mels
from soundmill.models.components.making import size
from soundmill.models.components.melgan import NetworkParams as MelGanSizes
from soundmill.models.components.melgan.vocoder import MelGanNet
from soundmill.models.components.vocoder_trainer import PERIODS, Discriminators, LogMel, with_norms, without_norms
from soundmill.models.components.waves.source import Pairs, gather_waves, wave_deviation, wave_deviation_per_frequency
from soundmill.params import compose, parse
from soundmill.training.loader import Arrays, Described, gather
from tests import prepared
from tests.mels import TANGO
from tests.models.components.test_mel_autoencoder import SPEC

VOICE = NetworkParams(
    channels=32, rates=[5, 4, 2, 2, 2], kernels=[16, 16, 8, 4, 4], resblock_kernels=[3], resblock_dilations=[[1, 3]]
)


def test_discriminators_have_the_published_sizes(root):
    document = compose(root / "conf", ["model=tango", "vocoder=hifigan"])["vocoder"]
    with torch.device("meta"):
        built = Discriminators(parse(HifiGanParams, document, "vocoder").weights.discriminator_width)
    assert (size(built.periods), size(built.scales)) == (41_105_770, 29_618_821)  # 70.7 M, with the norms' own


def test_every_discriminator_judges_every_wave():
    judgements = Discriminators(4)(torch.randn(3, 1000))
    assert [len(features) for _, features in judgements] == [6] * 5 + [8] * 3
    assert all(scores.shape[0] == 3 and scores.ndim == 2 for scores, _ in judgements)
    assert [features[-1].shape[-1] for _, features in judgements[:5]] == list(PERIODS)
    assert [features[0].shape[-1] for _, features in judgements[5:]] == [1000, 501, 251]
    assert judgements[0][0].shape == (3, 7 * 2)  # 500 rows of 2, four strides of 3
    assert judgements[5][0].shape == (3, 16)  # strides of 2, 2, 4, 4
    assert len(Discriminators(4, periods=())(torch.randn(2, 1000))) == 3  # MelGAN's


@pytest.mark.parametrize("period", [2, 7])
def test_a_period_discriminator_compares_only_samples_a_period_apart(period):
    discriminator, wave = vocoder_trainer.PeriodDiscriminator(period, 4), torch.randn(1, 1, 40 * period)
    changed = wave.clone()
    changed[..., 1::period] += 1
    for one, other in zip(discriminator(wave)[1], discriminator(changed)[1], strict=True):
        same = [torch.equal(one[..., phase], other[..., phase]) for phase in range(period)]
        assert same == [phase != 1 for phase in range(period)]


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


def test_norms_change_how_a_net_is_trained_and_not_what_it_says():
    model = HifiGan(VOICE, SPEC, build_vocoder(VOICE, SPEC.n_mels, SPEC.sample_rate).eval())
    plain = set(model.net.state_dict())
    with_norms(model.net)
    log_mel = torch.randn(1, 16, 8)
    normed = model.vocode(log_mel)
    without_norms(model.net)
    assert set(model.net.state_dict()) == plain
    torch.testing.assert_close(model.vocode(log_mel), normed)


@pytest.mark.parametrize("place", [0.0, 0.4, 0.999])
def test_a_crops_wave_is_what_its_log_mel_was_made_of(tmp_path, place):
    """Crops of ten frames of two clips of noise, the second shorter than that twice."""
    lengths = {"a": 8000, "b": 3000}
    rng, clips, rows = np.random.default_rng(0), [], []
    for clip_id, length in lengths.items():
        wave = (0.02 * rng.standard_normal(length)).astype(np.float32)
        clips.append(prepared.sound(clip_id, wave, SPEC.sample_rate))
        values = mel.log_mel(flac.decode_mono(clips[-1]["audio"]["bytes"]), SPEC).astype("<f2")
        size = {"num_mels": 16, "num_frames": values.shape[1]}
        rows.append({"clip_id": clip_id, "log_mel": values.tobytes(), "digest": "", **size})
    prepared.write_rows(clips, tmp_path / "clips" / shards.shard_name(0), manifest.CLIPS)
    shards.write_rows(rows, tmp_path / "mels" / shards.shard_name(0), manifest.SPECTROGRAMS)
    log_mels = gather_log_mels(tmp_path / "mels", ["b", "a"], tmp_path)
    waves = gather_waves(tmp_path / "clips", ["b", "a"], tmp_path, partial(mel.levelled, spec=SPEC))
    pairs = Pairs(log_mels, waves, 25, SPEC)
    log_mels, waves = pairs.batch(np.array([1, 0]), np.array([place, place]))
    assert log_mels.shape == (2, 16, 25)
    assert waves.shape == (2, 25 * 160)
    assert waves[0].abs().max() > 0.25  # brought to a peak of 0.5, whole, before it was cut
    found = mel.log_mel(waves.numpy(), SPEC.model_copy(update={"peak": None}))
    inner = slice(4, 22)  # frames whose window of 1024 lies within the crop
    np.testing.assert_allclose(found[0, :, inner], log_mels[0, :, inner], atol=0.02)
    assert waves[1, 3000:].abs().max() == 0
    assert (log_mels[1, :, 19:] == np.float16(math.log(1e-5))).all()


def test_melgans_net_has_the_published_size():
    """4.26 million weights, by the paper's table 1."""
    assert size(MelGanNet(MelGanSizes(channels=32, rates=[8, 8, 2, 2], residual_layers=3), 80)) == pytest.approx(4.26e6, rel=2e-3)


LOG_MELS = torch.randn(2, TANGO.n_mels, 30, generator=torch.Generator().manual_seed(0)) - 3


def griffin_lim(**grain: str) -> GriffinLim:
    return GriffinLim(TANGO, GriffinLimParams(griffin_lim_iterations=2, griffin_lim_momentum=0.0, **grain))


def test_a_request_has_its_grain_whatever_shares_its_batch_and_without_it_no_seed_is_heard():
    vocoder, cpu = griffin_lim(griffin_lim_grain="speckle"), torch.device("cpu")
    same = LOG_MELS[:1].expand(2, -1, -1)
    waves = vocoding.to_waves(vocoder, same, cpu, 4000, seeds=[7, 8])
    assert waves.shape == (2, 1, 4000)
    assert (waves[0] - waves[1]).abs().max() > 0.01
    assert torch.equal(vocoding.to_waves(vocoder, LOG_MELS[:1], cpu, 4000, seeds=[8])[0], waves[1])
    assert torch.equal(*vocoding.to_waves(vocoder, same, cpu))  # recordings, of no request
    plain = griffin_lim(griffin_lim_grain="none")
    assert griffin_lim() == plain
    assert torch.equal(plain.vocode(LOG_MELS, 1), plain.vocode(LOG_MELS, 2))
    assert not torch.equal(plain.vocode(LOG_MELS), griffin_lim(griffin_lim_grain="speckle").vocode(LOG_MELS))


NOISE = np.random.default_rng(0).standard_normal((2, 200_000))


def stored(waves: Sequence[np.ndarray], directory: Path) -> Arrays:
    ids = [str(number) for number in range(len(waves))]
    index = [Described(name, wave.shape, "") for name, wave in zip(ids, waves, strict=True)]
    contents = [(name, wave.astype("<f2")) for name, wave in zip(ids, waves, strict=True)]
    return gather(lambda: index, lambda: contents, ids, directory / "waves", "clip")


def test_white_noise_has_its_standard_deviation_at_every_frequency(tmp_path):
    waves = stored([0.1 * NOISE], tmp_path)
    np.testing.assert_allclose(wave_deviation_per_frequency(waves, "key"), np.full(257, 0.1), rtol=0.12)
    assert wave_deviation(waves, "key") == pytest.approx(0.1, rel=0.01)


def test_filtered_noise_has_the_response_of_its_filter(tmp_path):
    waves = stored([0.1 * scipy.signal.lfilter([1], [1, -0.9], one) for one in NOISE], tmp_path)
    _, response = scipy.signal.freqz([1], [1, -0.9], 257, include_nyquist=True)
    found = np.array(wave_deviation_per_frequency(waves, "key"))
    np.testing.assert_allclose(found, 0.1 * np.abs(response), rtol=0.15)
    assert np.sqrt(np.square(found).mean()) == pytest.approx(wave_deviation(waves, "key"), rel=0.02)


def test_clips_count_by_their_samples_and_short_ones_too(tmp_path):
    waves = stored([0.1 * NOISE[:, :150_000], 0.3 * NOISE[:, :50_000], np.zeros((2, 100))], tmp_path)
    expected = np.sqrt(0.75 * 0.1**2 + 0.25 * 0.3**2)
    np.testing.assert_allclose(wave_deviation_per_frequency(waves, "key"), np.full(257, expected), rtol=0.12)


def test_frequencies_that_recordings_lack_are_30_db_below_the_highest(tmp_path):
    tone = 0.5 * np.sin(0.1 * np.pi * np.arange(16_000))
    found = wave_deviation_per_frequency(stored([tone], tmp_path), "key")
    assert max(found) == found[round(0.1 * 256)]
    assert min(found) == found[-1] == pytest.approx(max(found) / 10**1.5)


def test_silence_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"all 1 training clips are digital silence.*some\.key"):
        wave_deviation_per_frequency(stored([np.zeros(16_000)], tmp_path), "some.key")
