"""Pictures: there and back, loud is bright, the level is kept."""

import math

import pytest
import torch

from soundmill.audio.mel import MelSpec, log_mel
from soundmill.models.ddpm_mel.params import PictureParams
from soundmill.models.ddpm_mel.picture import PictureCodec

SPEC = MelSpec(
    sample_rate=16000, n_fft=1024, win_length=1024, hop_length=313, n_mels=64, f_min=0.0, f_max=8000.0,
    mel_scale="htk", norm="slaney", power=2.0, floor=1e-10, peak=None,
)  # fmt: skip
PARAMS = PictureParams(
    seconds=5.0, height=64, width=256, level="absolute", top_db=24.0, compression="log", range_db=90.0, exponent=0.25,
    min_max=False, polarity="bright", patch=[4, 8], patch_basis="pixels", standardise="channel", whitening=1.0,
)  # fmt: skip


def _params(**changes) -> PictureParams:
    return PictureParams.model_validate(PARAMS.model_dump() | changes)


@pytest.fixture(scope="module")
def sounds() -> torch.Tensor:
    """log-mels [3, 64, 256]: noise that swells, a siren, clicks; at three levels."""
    time = torch.arange(80_000) / 16_000
    rng = torch.Generator().manual_seed(0)
    waves = [
        0.3 * torch.randn(80_000, generator=rng) * time / 5,
        0.03 * torch.sin(2 * math.pi * 800 * time + 300 * torch.sin(2 * math.pi * 0.4 * time))
        + 1e-4 * torch.randn(80_000, generator=rng),
        0.9 * (time % 0.5 < 0.01) * torch.randn(80_000, generator=rng) + 1e-3 * torch.randn(80_000, generator=rng),
    ]
    return torch.from_numpy(log_mel(torch.stack(waves).numpy(), SPEC))


@pytest.mark.parametrize("compression", ["log", "power"])
@pytest.mark.parametrize("level", ["absolute", "clip"])
@pytest.mark.parametrize("basis", ["pixels", "dct"])
@pytest.mark.parametrize("standardise", ["none", "global", "band", "channel"])
def test_round_trip_is_within_a_percent(sounds, compression, level, basis, standardise):
    changes = {"compression": compression, "level": level, "patch_basis": basis, "standardise": standardise}
    codec = PictureCodec(_params(**changes), SPEC)
    codec.fit([sounds[:2], sounds[2:]])
    back = codec.decode(*codec.encode(sounds))
    heard = sounds > sounds.amax((1, 2), keepdim=True) - 60 * math.log(10) / 10  # 60 dB below each clip's maximum
    error = (back.exp() - sounds.exp()).abs() / sounds.exp()
    assert error[heard].max() < 0.01
    power = (back.exp().sum() / sounds.exp().sum()).item()
    assert power == pytest.approx(1, abs=0.01)


def test_loud_is_bright_and_silence_dark():
    codec = PictureCodec(PARAMS, SPEC)
    steps = torch.linspace(-60, 24, 256) * math.log(10) / 10
    picture, _ = codec.to_picture(steps.expand(1, 64, 256))
    assert (picture.diff(dim=-1) > 0).all()
    assert picture.max().item() == pytest.approx(1)
    silence, _ = codec.to_picture(torch.full((1, 64, 256), codec.silence))
    assert silence.max().item() == pytest.approx(-1, abs=1e-3)


def test_clip_level_is_its_maximum_and_the_picture_does_not_hang_on_it(sounds):
    codec = PictureCodec(_params(level="clip", compression="power"), SPEC)
    quiet = sounds - 3.0
    picture, level = codec.to_picture(sounds)
    quiet_picture, quiet_level = codec.to_picture(quiet)
    torch.testing.assert_close(level, sounds.amax((1, 2)))
    torch.testing.assert_close(quiet_level, level - 3.0)
    torch.testing.assert_close(quiet_picture, picture, atol=1e-4, rtol=1e-4)
    assert picture.amax((1, 2, 3)).tolist() == pytest.approx([1, 1, 1])


def test_channels_are_standardised(sounds):
    codec = PictureCodec(PARAMS, SPEC)
    codec.fit([sounds])
    latent, _ = codec.encode(sounds)
    assert latent.shape == (3, *codec.shape) == (3, 32, 16, 32)
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.square().mean((0, 2, 3)), torch.ones(32), atol=1e-3, rtol=0)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_evens_channels_out_and_keeps_unit_variance(sounds, whitening):
    plain = PictureCodec(_params(standardise="none", patch_basis="dct"), SPEC)
    codec = PictureCodec(_params(patch_basis="dct", whitening=whitening), SPEC)
    codec.fit([sounds])
    before, after = plain.encode(sounds)[0], codec.encode(sounds)[0]
    spread, evened = before.std((0, 2, 3)), after.std((0, 2, 3))
    assert after.square().mean().item() == pytest.approx(1, rel=1e-3)
    torch.testing.assert_close(evened / evened[0], (spread / spread[0]) ** (1 - whitening), atol=1e-3, rtol=1e-2)


def test_cosine_basis_is_orthonormal_and_its_first_is_the_mean(sounds):
    pixels, cosines = (PictureCodec(_params(standardise="none", patch_basis=basis), SPEC) for basis in ("pixels", "dct"))
    latent, transformed = pixels.encode(sounds)[0], cosines.encode(sounds)[0]
    torch.testing.assert_close(transformed[:, 0], latent.mean(1) * 32**0.5)
    torch.testing.assert_close(transformed.square().sum(1), latent.square().sum(1))
    flat = torch.ones(1, 1, 64, 256)
    assert cosines.to_latent(flat)[:, 1:].abs().max() < 1e-5


def test_bands_are_standardised(sounds):
    codec = PictureCodec(_params(standardise="band", patch=[1, 1]), SPEC)
    codec.fit([sounds])
    torch.testing.assert_close(codec.encode(sounds)[0].mean((0, 1, 3)), torch.zeros(64), atol=1e-4, rtol=0)


def test_the_papers_small_picture_comes_back_enlarged(sounds):
    codec = PictureCodec(_params(height=16, width=64, compression="power", patch=[1, 1], standardise="none"), SPEC)
    latent, level = codec.encode(sounds)
    assert latent.shape == (3, 1, 16, 64)
    back = codec.decode(latent, level)
    assert back.shape == sounds.shape
    again, _ = codec.encode(back)
    assert (again - latent).abs().mean() < 0.1


def test_a_patch_is_a_place(sounds):
    codec = PictureCodec(_params(standardise="none"), SPEC)
    picture, _ = codec.to_picture(sounds)
    latent = codec.to_latent(picture)
    assert torch.equal(latent[0, 8 + 3, 2, 5], picture[0, 0, 2 * 4 + 1, 5 * 8 + 3])
    assert torch.equal(codec.from_latent(latent), picture)
