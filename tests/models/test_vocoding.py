"""Sounds of log-mels by a vocoder of any kind, and what is no log-mel of its spec."""

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from soundmill import params
from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.models import transforming as vocoding
from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.diffwave import NetworkParams, NoiseParams, SamplingParams
from soundmill.models.components.diffwave import vocoder as diffwave
from soundmill.models.components.diffwave.vocoder import DiffWave, DiffWaveNet
from soundmill.models.components.hifigan.vocoder import HifiGan, build_vocoder
from soundmill.models.components.istft import NetworkParams as IstftSizes
from soundmill.models.components.istft.vocoder import Istft, build
from soundmill.models.components.melgan import NetworkParams as MelGanSizes
from soundmill.models.components.melgan.vocoder import MelGan, MelGanNet
from soundmill.models.components.registry import chosen_vocoder
from soundmill.models.components.unet1d.params import SamplingParams as DiffusionSampling
from soundmill.models.components.unet1d.vocoder import vocoder as unet1d
from soundmill.models.components.unet1d.vocoder.vocoder import DiffusionVocoder, VocoderNet
from soundmill.training.seeds import BLOCK, noise_at
from tests.imports import ROOT
from tests.mels import spec_with
from tests.models.components.test_mel_autoencoder import SPEC
from tests.models.components.test_unet1d import SMALL
from tests.models.components.test_vocoders import VOICE

NETWORK = NetworkParams(layers=2, channels=4, dilation_cycle=2)
NOISE = NoiseParams(num_timesteps=50, beta_start=1e-4, beta_end=0.05)
MELGAN = MelGanSizes(channels=2, rates=[5, 4, 4, 2], residual_layers=2)
FRAMES = IstftSizes(head="wave", layers=2, width=8, hidden=16)
LEVELS = SMALL.model_copy(update={"attention": [False, False], "text_attention": [False, False]})


@pytest.fixture
def waves(tmp_path):
    """The directory of a DiffWave that samples by three steps of its own."""
    torch.manual_seed(0)
    net = DiffWaveNet(NETWORK, SPEC)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    save_vocoder(DiffWave(NETWORK, NOISE, SamplingParams(betas=[1e-4, 0.1, 0.4], seed=3), SPEC, net), tmp_path / "voice", {})
    return tmp_path / "voice"


def test_only_the_schedule_differs(waves):
    betas = {
        name: vocoding.load_vocoder(waves, None, steps, fast).sampling
        for name, steps, fast in (("own", None, False), ("fast", None, True), ("few", 4, False), ("all", 50, False))
    }
    assert {sampling.seed for sampling in betas.values()} == {3}
    assert betas["own"].betas == [1e-4, 0.1, 0.4]
    assert betas["fast"].betas == [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5]
    assert len(betas["few"].betas) == 4
    mel = torch.full((1, SPEC.n_mels, 4), -3.0)
    everything, own = vocoding.load_vocoder(waves, None, 50, False), vocoding.load_vocoder(waves, SPEC, None, False)
    trained = DiffWave(NETWORK, NOISE, SamplingParams(betas="trained", seed=3), SPEC, own.net)
    torch.testing.assert_close(everything.vocode(mel), trained.vocode(mel))
    assert not torch.allclose(own.vocode(mel), trained.vocode(mel))
    noise = NoiseParams(num_timesteps=200, beta_start=1e-4, beta_end=0.02)
    save_vocoder(DiffWave(NETWORK, noise, own.sampling, SPEC, own.net), waves.parent / "large", {})
    assert vocoding.load_vocoder(waves.parent / "large", None, None, True).sampling.betas == [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.7]


def test_steps_that_a_vocoder_has_not_are_refused(waves, tmp_path):
    with pytest.raises(UserError, match="trained on 50 timesteps: --steps 51 is too many"):
        vocoding.load_vocoder(waves, None, 51, False)
    net = build_vocoder(VOICE, SPEC.n_mels, SPEC.sample_rate)
    save_vocoder(HifiGan(VOICE, SPEC, net), one_step := tmp_path / "hifigan", {})
    for steps, fast in ((6, False), (None, True)):
        with pytest.raises(UserError, match=r"hifigan: this vocoder makes sound in one step.* leave --fast and --steps out"):
            vocoding.load_vocoder(one_step, None, steps, fast)
    assert vocoding.load_vocoder(one_step, None, None, False).spec == SPEC
    with pytest.raises(UserError, match=r"hop_length 160, not 256"):
        vocoding.load_vocoder(waves, spec_with(**SPEC.model_dump() | {"hop_length": 256}), None, False)


def test_sounds_are_as_long_as_what_they_are_made_of(waves, tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    given = [vocoding.LogMel("a", log_mel(wave, SPEC), 1000), vocoding.LogMel("b", np.full((SPEC.n_mels, 5), -2.0, np.float16))]
    vocoder = vocoding.load_vocoder(waves, None, None, True)
    paths, timing = vocoding.write_sounds(vocoder, given, tmp_path / "out" / "deep")
    assert [path.name for path in paths] == ["a.wav", "b.wav"]
    output = [soundfile.read(path) for path in paths]
    assert [(len(samples), rate) for samples, rate in output] == [(1000, 16_000), (800, 16_000)]
    assert timing.sound == 1800 / 16_000
    assert timing.real_time_factor == timing.work / timing.sound > 0
    for samples, _ in output:
        assert np.abs(samples).max() > 0.01


def voices() -> dict[str, tuple[Any, str, int]]:
    """Vocoders, and the constants that limit how much they take at once."""
    torch.manual_seed(0)
    deep = NetworkParams(layers=6, channels=8, dilation_cycle=5)
    sampling = SamplingParams(betas=vocoding.FAST, seed=3)
    net = DiffWaveNet(deep, SPEC)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    loud = build_vocoder(VOICE, SPEC.n_mels, SPEC.sample_rate).eval()
    for weight in loud.parameters():  # as it is initialised, it is all but silent
        torch.nn.init.normal_(weight, std=0.1)
    return {
        "diffwave": (DiffWave(deep, NOISE, sampling, SPEC, net), "diffwave.vocoder.PIECE_SAMPLES", 2000),
        "hifigan": (HifiGan(VOICE, SPEC, loud), "vocoding.PIECE_FRAMES", 9),
        "melgan": (MelGan(MELGAN, SPEC, MelGanNet(MELGAN, SPEC.n_mels).eval()), "vocoding.PIECE_FRAMES", 9),
        "istft": (Istft(FRAMES, SPEC, build(FRAMES, SPEC).eval(), None), "vocoding.PIECE_FRAMES", 9),
    }


@pytest.mark.parametrize(("first", "length"), [(0, BLOCK + 1), (BLOCK - 1, 2), (BLOCK, BLOCK)])
def test_noise_of_some_samples_is_that_of_all(first, length):
    assert torch.equal(noise_at(first, length, 2, "a"), noise_at(0, 3 * BLOCK, 2, "a")[:, first : first + length])


@pytest.mark.parametrize("kind", ["diffwave", "hifigan", "istft", "melgan"])
@pytest.mark.parametrize("frames", [1, 9, 60, 101])
def test_a_sound_in_pieces_is_that_in_one(kind, frames, monkeypatch):
    vocoder, limit, size = voices()[kind]
    log_mels = torch.randn(2, SPEC.n_mels, frames, generator=torch.Generator().manual_seed(1)) - 3
    whole = vocoder.vocode(log_mels)
    monkeypatch.setattr(f"soundmill.models.components.{limit}", size)
    parts = list(vocoder.pieces(log_mels))
    assert len(parts) == -(-frames // (size // SPEC.hop_length if kind == "diffwave" else size))
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-5, rtol=0)
    assert whole.shape == (2, 1, frames * SPEC.hop_length)
    assert whole.std() > 1e-3


def test_windows_of_the_diffusion_vocoder_fade_into_one_another(monkeypatch):
    vocoder = DiffusionVocoder(LEVELS, DiffusionSampling(num_steps=2, seed=0), SPEC, VocoderNet(LEVELS, SPEC).eval())
    hop, log_mels = SPEC.hop_length, torch.randn(2, SPEC.n_mels, 50)
    monkeypatch.setattr(unet1d, "WINDOW_SECONDS", 20 * hop / SPEC.sample_rate)
    monkeypatch.setattr(unet1d, "FADE_SECONDS", 3 * hop / SPEC.sample_rate)
    output = torch.cat(list(vocoder.pieces(log_mels)), 2)
    assert output.shape == (2, 1, 50 * hop)
    assert output.std() > 0.1
    for start, first, stop in ((0, 0, 17), (17, 20, 30), (30, 37, 50)):  # the frames of a window that no other has
        alone = vocoder.vocode(log_mels[..., start : start + 20])
        part = slice((first - start) * hop, (stop - start) * hop)
        torch.testing.assert_close(output[..., first * hop : stop * hop], alone[..., part])
    (short,) = vocoder.pieces(log_mels[..., :20])
    assert torch.equal(short, vocoder.vocode(log_mels[..., :20]))


def test_the_first_piece_of_a_sound_is_done_before_the_last_is_begun(monkeypatch):
    vocoder, limit, size = voices()["diffwave"]
    monkeypatch.setattr(f"soundmill.models.components.{limit}", size)
    drawn = []
    monkeypatch.setattr(
        "soundmill.models.components.diffwave.vocoder.noise_at", lambda *given: drawn.append(given) or noise_at(*given)
    )
    next(vocoder.pieces(torch.zeros(1, SPEC.n_mels, 2000)))
    begun = max(first + length for first, length, _, _, step in drawn if step == "start")
    assert begun <= 7 * (size + vocoder.network.context + SPEC.hop_length) < 0.1 * 2000 * SPEC.hop_length


def test_as_many_steps_are_taken_as_there_are(monkeypatch):
    """More than Python nests generators, in groups that do not change what comes out."""
    vocoder, _, _ = voices()["diffwave"]
    log_mels = torch.randn(1, SPEC.n_mels, 2)
    noise = NoiseParams(num_timesteps=600, beta_start=1e-4, beta_end=0.02)
    every = replace(vocoder, noise=noise, sampling=SamplingParams(betas="trained", seed=3))
    assert every.vocode(log_mels).isfinite().all()
    fast = vocoder.vocode(log_mels)
    monkeypatch.setattr(diffwave, "STEPS_AT_ONCE", 2)
    assert torch.equal(vocoder.vocode(log_mels), fast)


def test_a_sound_that_is_too_loud_is_turned_down_whole(tmp_path, monkeypatch):
    vocoder, _, _ = voices()["hifigan"]
    monkeypatch.setattr("soundmill.models.components.vocoding.PIECE_FRAMES", 9)
    log_mels = torch.randn(SPEC.n_mels, 60)
    expected = vocoder.vocode(log_mels[None])[0, 0, :9000]
    loud = replace(vocoder, net=lambda given: 3 / expected.abs().max() * vocoder.net(given))
    loud.to = lambda device: loud
    (path,), _ = vocoding.write_sounds(loud, [vocoding.LogMel("a", log_mels.numpy(), 9000)], tmp_path)
    np.testing.assert_allclose(soundfile.read(path)[0], expected.detach() / expected.abs().max(), atol=1e-4)


def test_damaged_weights_make_no_sound(waves, tmp_path):
    vocoder = vocoding.load_vocoder(waves, None, None, False)
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
        (np.zeros((1, 16, 3)), r"its shape is \(1, 16, 3\).* one sound per file"),
        (np.zeros((16, 0)), r"its shape is \(16, 0\)"),
        (np.zeros((16, 3), np.int16), "not an array of floating-point numbers"),
        (np.full((16, 3), np.nan), "values that are not finite"),
        (np.linspace(0, 1, 48).reshape(16, 3), "lie between 0 and 1.* natural logarithm"),
        (np.array([{"a": 1}]), "cannot be read as an array .*allow_pickle=False"),
        (b"", "cannot be read as an array"),
        (b"\x93NUMPY\x01\x00", "cannot be read as an array"),
        (b"PK\x03\x04", "cannot be read as an array"),
        (
            b"\x93NUMPY\x01\x00v\x00%-118b" % b"{'descr': '<f4', 'fortran_order': False, 'shape': (16, 100000000000000)}",
            "cannot be read as",
        ),
        (archive(), "not an array of floating-point numbers"),
    ],
)
def test_what_is_no_log_mel_of_the_spec_is_refused(tmp_path, values, message):
    path = tmp_path / "mel.npy"
    path.write_bytes(values) if isinstance(values, bytes) else np.save(path, values)
    with pytest.raises(UserError, match=rf"mel\.npy: .*{message}"):
        vocoding.read_log_mel(path, SPEC)


@pytest.mark.parametrize(("choice", "asked"), [("griffin_lim", "griffin_lim"), ("hifigan_laptop", "trained")])
def test_a_vocoder_that_an_earlier_choice_left_is_not_taken(tmp_path, choice, asked):
    document = params.compose(ROOT / "conf", ["model=ddpm_mel", "ddpm_mel=captions", f"vocoder={choice}"])
    assert document["ddpm_mel"]["train"]["sampling"]["vocoder"] == asked
    found = {}
    for there in (False, True):  # a directory without a vocoder says whether it was opened
        for vocoder in ("griffin_lim", "trained", None):  # earlier checkpoints name none
            try:
                found[there, vocoder] = chosen_vocoder(SimpleNamespace(vocoder=vocoder), tmp_path, SPEC)
            except UserError:
                found[there, vocoder] = "opened"
        (tmp_path / "vocoder").mkdir(exist_ok=True)
    assert [key for key, value in found.items() if value == "opened"] == [(False, "trained"), (True, "trained"), (True, None)]
