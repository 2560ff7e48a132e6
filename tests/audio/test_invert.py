"""Log-mels to sound: magnitudes, phases and speckle; and what becomes of noise, tones, a chirp and a bell."""

import functools
import math

import numpy as np
import pytest
import soundfile
import soxr
import torch

from soundmill import params
from soundmill.audio import mel
from soundmill.audio.invert import griffin_lim, mel_to_linear, mel_to_wave, noisiness, with_speckle
from soundmill.audio.mel import MelSpec, SpectrogramParams, mel_filterbank
from soundmill.errors import UserError
from soundmill.models.components.contracts import GriffinLimParams
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from tests.imports import ROOT
from tests.mels import spec_with

SPEC = spec_with(hop_length=313, n_mels=128, mel_scale="htk", power=2.0, floor=1e-10)
RISE = 1350.0  # Hz per second


def log_mel(waves: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    return torch.from_numpy(mel.log_mel(waves.numpy(), spec))


def spectrogram(wave: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """[1, bins, frames] of one wave [1, T]."""
    return mel.mel_spectrogram(spec).spectrogram(wave)


def sweep(seconds: float = 1.0) -> torch.Tensor:
    t = torch.arange(int(16_000 * seconds)) / 16_000
    return 0.5 * torch.sin(2 * math.pi * (300 * t + 1500 * t**2))[None]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_linear_spectrum_has_the_wanted_mel_bands(power):
    spec = SPEC.model_copy(update={"power": power})
    expected = log_mel(sweep(), spec)
    linear = mel_to_linear(expected, spec)
    result = (mel_filterbank(spec).T @ linear**power).clamp_min(spec.floor).log()
    assert (linear >= 0).all()
    assert float((result - expected).abs()[expected > expected.max() - 7].mean()) < 0.05


def test_griffin_lim_finds_a_wave_with_the_magnitudes():
    spec = SPEC.model_copy(update={"hop_length": 160, "power": 1.0})
    magnitude = spectrogram(sweep(), spec)

    def error(iterations: int, momentum: float) -> float:
        wave = griffin_lim(magnitude, spec, 16_000, iterations, momentum, seed=0)
        return float((spectrogram(wave, spec) - magnitude).norm() / magnitude.norm())

    assert error(0, 0.99) > 0.5 > 0.2 > error(32, 0.0) > error(32, 0.99)


def test_the_way_there_and_back_keeps_pitch_level_and_length():
    wave = 0.3 * torch.sin(2 * math.pi * 1000 * torch.arange(80_000) / 16_000)[None]
    back = mel_to_wave(log_mel(wave, SPEC), SPEC, 80_000, 32, 0.99, seed=0)
    assert back.shape == (1, 80_000)
    spectrum = torch.fft.rfft(back[0]).abs()
    assert abs(int(spectrum.argmax()) / 5 - 1000) < 20  # half a band
    assert float(back.std() / wave.std()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("of_speckle", [False, True])
def test_same_seed_same_wave_whatever_shares_the_batch(of_speckle):
    pictures = log_mel(torch.cat([sweep(), NOISE[:, :16_000], torch.zeros(1, 16_000)]), SPEC)

    def made(some: torch.Tensor, seed: int) -> torch.Tensor:
        return mel_to_wave(some, SPEC, 16_000, 4, 0.99, *((0, seed) if of_speckle else (seed, None)))

    together, alone = made(pictures, 7), made(pictures[1:2], 7)
    assert torch.equal(together, made(pictures, 7))
    assert torch.equal(together[1:2], alone)
    assert (alone - made(pictures[1:2], 8)).abs().max() > 0.01
    plain = griffin_lim(mel_to_linear(pictures, SPEC), SPEC, 16_000, 4, 0.99, 7)
    assert torch.equal(together, plain) != of_speckle


@pytest.mark.parametrize("value", [-1e4, math.log(1e-10), 0.0, 20.0, 1e4])
def test_any_picture_gives_finite_sound(value):
    wave = mel_to_wave(torch.full((1, 128, 20), value), SPEC, 6000, 4, 0.99, seed=0)
    assert wave.isfinite().all()
    if value < -20:
        assert float(wave.abs().max()) < 1e-2


def test_clips_shorter_than_a_window_come_back_and_a_hop_that_leaves_gaps_is_refused():
    wave = mel_to_wave(log_mel(sweep(0.01), SPEC), SPEC, 160, 2, 0.99, seed=0)
    assert wave.shape == (1, 160)
    assert wave.isfinite().all()
    with pytest.raises(UserError, match="hop_length 600"):
        griffin_lim(torch.ones(1, 513, 3), SPEC.model_copy(update={"hop_length": 600}), 1200, 2, 0.99, seed=0)


def test_real_clips_keep_their_spectrogram(shared):
    paths = sorted((shared / "data" / "esc10").glob("0*/*.ogg"))[::60]
    waves = []
    for path in paths:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        wave = soxr.resample(wave.mean(1), rate, 16_000)[:80_000]
        waves.append(np.pad(wave, (0, 80_000 - len(wave))))
    expected = log_mel(torch.from_numpy(np.stack(waves)), SPEC)
    back = log_mel(mel_to_wave(expected, SPEC, 80_000, 32, 0.99, seed=0), SPEC)
    loud = expected > expected.amax((1, 2), keepdim=True) - math.log(1e6)
    assert len(paths) >= 4
    assert float((back - expected).abs()[loud].mean()) < 0.25  # nepers of power: about one decibel


NOISE = 0.1 * torch.randn(1, 80_000, generator=torch.Generator().manual_seed(5))
TONE = 0.3 * torch.sin(2 * math.pi * 440 * torch.arange(80_000) / 16_000)[None]
BANDS = spec_with(hop_length=256, n_mels=80, f_min=20.0, mel_scale="htk", norm="none")


def sidebands(wave: torch.Tensor, away: float) -> float:
    """Energy of one wave [1, 80000] farther than `away` Hz from 440 Hz, in dB of all of it; its ends are left out."""
    inner = wave[0, 8000:-8000].double()
    power = torch.fft.rfft(inner * torch.hann_window(len(inner), dtype=torch.float64)).abs().square()
    far = (torch.fft.rfftfreq(len(inner), 1 / 16_000) - 440).abs() > away
    return 10 * math.log10(float(power[far].sum() / power.sum()))


@pytest.mark.parametrize("spec", [BANDS, SPEC, spec_with(n_fft=512, win_length=400)], ids=["80/256", "128/313", "64/160"])
def test_noise_is_noise_and_tones_are_none(spec):
    """Of any colour and level; what rises or decays evenly is as little noise as what is steady."""
    coloured = torch.nn.functional.conv1d(NOISE[None], torch.tensor([[[0.2, 0.5, 1.0]]]), padding=1)[0]
    values = noisiness(log_mel(torch.cat([NOISE, 0.03 * coloured]), spec), spec)
    assert values.mean(2).min() > 0.75
    assert values.mean() > 0.9
    decaying = TONE * torch.exp(-torch.arange(80_000) / 16_000)
    low = values.new_tensor([0.25])
    bands = (log_mel(TONE, spec)[0].mean(1) - log_mel(TONE, spec)[0].mean(1).max()) > -10
    assert (noisiness(log_mel(torch.cat([TONE, decaying]), spec), spec)[:, bands, 4:-4].mean((1, 2)) < low).all()
    assert torch.equal(noisiness(torch.full((1, spec.n_mels, 2), -3.0), spec), torch.zeros(1, spec.n_mels, 2))


def test_speckle_gives_noise_its_magnitudes_and_keeps_its_bands():
    """Within a band the bins of noise spread as Rayleigh's distribution says: 5.57 dB of deviation."""
    expected = log_mel(NOISE, BANDS)
    plain = mel_to_linear(expected, BANDS)
    speckled = with_speckle(plain, expected, BANDS, seed=0)
    wide = slice(300, 500)  # bins of bands that have several

    def deviation(magnitude: torch.Tensor) -> float:
        return float((20 * magnitude[0, wide, 4:-4].log10()).std(0).mean())

    assert deviation(spectrogram(NOISE, BANDS)) == pytest.approx(5.57, abs=0.2)
    assert deviation(plain) < 2.5
    assert deviation(speckled) == pytest.approx(5.57, abs=0.6)
    result = (mel_filterbank(BANDS).T @ speckled).log()
    assert float((result - expected).abs().mean()) < 0.1  # a decibel


@functools.cache
def inversion(family: str, *choices: str) -> GriffinLim:
    """As conf/ configures it for a family."""
    document = params.compose(ROOT / "conf", choices)
    sampling = document[family]["train"]["sampling"]
    chosen = GriffinLimParams(**{key: value for key, value in sampling.items() if key.startswith("griffin_lim")})
    return GriffinLim(SpectrogramParams(**document["spectrogram"][family]).spec, chosen)


def plain_and_speckled(way: GriffinLim, wave: torch.Tensor) -> list[torch.Tensor]:
    """A wave [1, T] through log-mels and back, without speckle and with it: [1, T] each."""
    picture = log_mel(wave, way.spec)
    ways = (GriffinLim(way.spec, way.params.model_copy(update={"griffin_lim_grain": grain})) for grain in ("none", "speckle"))
    return [one.vocode(picture, seed=3)[0, :, : wave.shape[1]] for one in ways]


# What conf/ inverts with speckle; at least so many dB below a tone's energy is all that is farther than 50 Hz from it.
SPECKLED = {
    "64x1024:640/157": (35, "ddpm_mel", "model=ddpm_mel"),
    "64x1024:800/313": (30, "ddpm_mel", "experiment=esc10_ddpm_mel"),
    "64x1024:640/160": (32, "tango", "model=tango"),
    "64x1024/160": (50, "tango", "model=tango", "scale=gpu"),
}
GRIFFIN_LIM = "tango.train.sampling.griffin_lim"
OTHERS = {
    "80x1024/256": (45, "tango", "experiment=esc10_istft", f"{GRIFFIN_LIM}_iterations=32", f"{GRIFFIN_LIM}_momentum=0.99"),
    "projected_gan": (33, "projected_gan", "model=projected_gan"),
}


@pytest.mark.parametrize(("name", "down", "where"), [(name, *row[:1], row[1:]) for name, row in (SPECKLED | OTHERS).items()])
def test_a_tone_stays_one(name, down, where):
    """Its sidebands stay at least 30 dB down, and are no louder than without speckle."""
    plain, speckled = ([sidebands(wave, away) for away in (5, 20, 50)] for wave in plain_and_speckled(inversion(*where), TONE))
    print(f"{name}: dB beyond 5, 20, 50 Hz: plain {np.round(plain, 1)}, speckle {np.round(speckled, 1)}")
    assert max(plain[-1], speckled[-1]) < -down
    for without, with_it in zip(plain, speckled, strict=True):
        assert with_it < without + 1.5


def off_the_ridge(wave: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Energy of a chirp [1, T] two bands or more from its frequency, in dB of all of it; and each frame's error of the loudest
    frequency, in bands. The first and last 0.1 s are left out."""
    power = torch.stft(wave[0], 512, 128, window=torch.hann_window(512), return_complex=True).abs().square()[:, 13:-13]
    hertz = torch.linspace(0, 8000, 257)
    true = 300 + RISE * (13 + torch.arange(power.shape[1])) * 128 / 16_000
    band = (700 + true) * math.log(1 + 8000 / 700) / 65  # between centres of 64 bands of HTK's scale, at this frequency
    far = (hertz[:, None] - true).abs() > 2 * band
    return 10 * math.log10(float(power[far].sum() / power.sum())), (hertz[power.argmax(0)] - true).abs() / band


@pytest.mark.parametrize("name", SPECKLED)
def test_a_chirp_keeps_its_ridge(name):
    """Without speckle 43.8 to 46.0 dB down; the chirp itself, 47.3."""
    t = torch.arange(32_000).double() / 16_000
    chirp = 0.3 * torch.sin(2 * math.pi * (300 * t + RISE / 2 * t**2)).float()[None]  # from 300 to 3,000 Hz
    plain, speckled = (off_the_ridge(wave) for wave in plain_and_speckled(inversion(*SPECKLED[name][1:]), chirp))
    print(f"{name}: dB off the ridge: plain {plain[0]:.1f}, speckle {speckled[0]:.1f}")
    for down, errors in (plain, speckled):
        assert down < -41
        assert float((errors < 1).float().mean()) > 0.99
    assert speckled[0] < plain[0] + 2.5
