"""Sounds of log-mels by a vocoder of any kind, and what is no log-mel of its spec."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
import torch

from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.models import vocoding
from soundmill.models.components.diffwave import vocoder as diffwave
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.diffwave.params import NetworkParams, NoiseParams, SamplingParams
from soundmill.models.components.diffwave.vocoder import DiffWave
from soundmill.models.components.hifigan import vocoder as hifigan
from soundmill.models.components.hifigan.vocoder import HifiGan, build_vocoder
from tests.mels import spec_with
from tests.models.components.test_hifigan import VOICE
from tests.models.components.test_mel_autoencoder import SPEC

NETWORK = NetworkParams(layers=2, channels=4, dilation_cycle=2)
NOISE = NoiseParams(num_timesteps=50, beta_start=1e-4, beta_end=0.05)


@pytest.fixture
def waves(tmp_path):
    """The directory of a DiffWave that samples by three steps of its own."""
    torch.manual_seed(0)
    net = DiffWaveNet(NETWORK, SPEC)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    diffwave.save(DiffWave(NETWORK, NOISE, SamplingParams(betas=[1e-4, 0.1, 0.4], seed=3), SPEC, net), tmp_path / "voice", {})
    return tmp_path / "voice"


@pytest.fixture
def one_step(tmp_path):
    torch.manual_seed(0)
    net = build_vocoder(VOICE, SPEC.n_mels, SPEC.sample_rate)
    hifigan.save(HifiGan(VOICE, SPEC, net), tmp_path / "hifigan", {})
    return tmp_path / "hifigan"


def test_only_the_schedule_differs(waves):
    betas = {
        name: vocoding.load(waves, None, steps, fast).sampling
        for name, steps, fast in (("own", None, False), ("fast", None, True), ("few", 4, False), ("all", 50, False))
    }
    assert {sampling.seed for sampling in betas.values()} == {3}
    assert betas["own"].betas == [1e-4, 0.1, 0.4]
    assert betas["fast"].betas == [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5]
    assert len(betas["few"].betas) == 4
    mel = torch.full((1, SPEC.n_mels, 4), -3.0)
    everything, own = vocoding.load(waves, None, 50, False), vocoding.load(waves, SPEC, None, False)
    trained = DiffWave(NETWORK, NOISE, SamplingParams(betas="trained", seed=3), SPEC, own.net)
    torch.testing.assert_close(everything.vocode(mel), trained.vocode(mel))
    assert not torch.allclose(own.vocode(mel), trained.vocode(mel))


def test_steps_that_a_vocoder_has_not_are_refused(waves, one_step):
    with pytest.raises(UserError, match="trained on 50 timesteps: --steps 51 is too many"):
        vocoding.load(waves, None, 51, False)
    for steps, fast in ((6, False), (None, True)):
        with pytest.raises(UserError, match=r"hifigan: this vocoder makes sound in one step.* leave --fast and --steps out"):
            vocoding.load(one_step, None, steps, fast)
    assert vocoding.load(one_step, None, None, False).spec == SPEC
    with pytest.raises(UserError, match=r"hop_length 160, not 256"):
        vocoding.load(waves, spec_with(**SPEC.model_dump() | {"hop_length": 256}), None, False)


def test_sounds_are_as_long_as_what_they_are_made_of(waves, tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    given = [vocoding.LogMel("a", log_mel(wave, SPEC), 1000), vocoding.LogMel("b", np.full((SPEC.n_mels, 5), -2.0, np.float16))]
    vocoder = vocoding.load(waves, None, None, True)
    paths, timing = vocoding.write_sounds(vocoder, given, tmp_path / "out" / "deep")
    assert [path.name for path in paths] == ["a.wav", "b.wav"]
    made = [soundfile.read(path) for path in paths]
    assert [(len(samples), rate) for samples, rate in made] == [(1000, 16_000), (800, 16_000)]
    assert timing.sound == 1800 / 16_000
    assert timing.real_time_factor == timing.work / timing.sound > 0
    for samples, _ in made:
        assert np.abs(samples).max() > 0.01


def test_damaged_weights_make_no_sound(waves, tmp_path):
    vocoder = vocoding.load(waves, None, None, False)
    vocoder.net.last.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="a: the vocoder's sound is not finite"):
        vocoding.write_sounds(vocoder, [vocoding.LogMel("a", np.zeros((SPEC.n_mels, 2), np.float32))], tmp_path)
    assert list(tmp_path.glob("*.wav")) == []


def test_a_log_mel_is_read_from_an_array(tmp_path):
    values = np.random.default_rng(0).uniform(-11, 1, (SPEC.n_mels, 7)).astype(np.float16)
    np.save(tmp_path / "rain.npy", values)
    read = vocoding.read_log_mel(tmp_path / "rain.npy", SPEC)
    assert (read.name, read.num_samples) == ("rain", None)
    np.testing.assert_array_equal(read.values, values)


def archive() -> bytes:
    content = io.BytesIO()
    np.savez(content, np.zeros((16, 3)))
    return content.getvalue()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((40, 3)), r"its shape is \(40, 3\).* n_mels must be 16"),
        (np.zeros((3, 16)), r"its shape is \(3, 16\)"),
        (np.zeros((1, 16, 3)), r"its shape is \(1, 16, 3\).* one sound in a file"),
        (np.zeros((16, 0)), r"its shape is \(16, 0\)"),
        (np.zeros((16, 3), np.int16), "no array of floating-point numbers"),
        (np.full((16, 3), np.nan), "values that are no numbers"),
        (np.linspace(0, 1, 48).reshape(16, 3), "lie between 0 and 1.* natural logarithm"),
        (np.array([{"a": 1}]), "cannot be read as an array .*allow_pickle=False"),
        (b"", "cannot be read as an array"),
        (b"\x93NUMPY\x01\x00", "cannot be read as an array"),
        (archive(), "no array of floating-point numbers"),
    ],
)
def test_what_is_no_log_mel_of_the_spec_is_refused(tmp_path, values, message):
    path = tmp_path / "mel.npy"
    path.write_bytes(values) if isinstance(values, bytes) else np.save(path, values)
    with pytest.raises(UserError, match=rf"mel\.npy: .*{message}"):
        vocoding.read_log_mel(path, SPEC)
