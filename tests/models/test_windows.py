"""Sounds longer than a model's are as loud as by one window: every family, every length, alike windows and independent ones."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from soundmill import params
from soundmill.audio.mel import MelSpec, SpectrogramParams
from soundmill.decoding import decode
from soundmill.models import registry, sounds
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.mel_autoencoder.autoencoder import padded_log_mel
from soundmill.models.components.mel_autoencoder.codec import MelCodec
from soundmill.models.family import Run
from soundmill.models.projected_gan.model import LoopPicture
from tests.imports import ROOT

RATE = 16_000
LENGTHS = [4.999, 5.0, 5.001, 7.3, 10.0, 12.5]
SAMPLING = SimpleNamespace(
    griffin_lim_iterations=4, griffin_lim_momentum=0.99, griffin_lim_grain="none", vocoder="griffin_lim", grain=0.0
)
RUN = Run(SAMPLING, torch.device("cpu"), "32", 1, Path(), Path())
MATERIAL = ["noise", "002 - Rain", "004 - Baby cry", "007 - Helicopter"]


@pytest.fixture(scope="module")
def materials(shared) -> dict[str, torch.Tensor]:
    """Fifteen seconds of each, [1, T]: recordings forth, back and forth."""
    found = {"noise": 0.1 * torch.randn(1, 15 * RATE, generator=torch.Generator().manual_seed(0))}
    for name in MATERIAL[1:]:
        wave = decode.read_mono(sorted((shared / "data/esc10" / name).iterdir())[0], RATE, 60.0)
        found[name] = torch.from_numpy(np.concatenate([wave, wave[::-1], wave]))[None]
    return found


def decibels(wave: torch.Tensor) -> np.ndarray:
    """Of each second, the last one with what follows it."""
    cuts = range(RATE, wave.shape[1] - RATE + 1, RATE)
    return np.array([10 * float((part.square().mean() + 1e-8).log10()) for part in wave.tensor_split(list(cuts), 1)])


@pytest.mark.parametrize("kind", ["alike", "half", "independent"])
@pytest.mark.parametrize("material", MATERIAL)
def test_windows_of_waves_keep_their_power(kind, material, materials):
    """Identity, and drawings that keep every sample's power: what restyle, upsample, transfer and codecs of waves go through."""
    rng = torch.Generator().manual_seed(1)

    def drawn(part: torch.Tensor, start: int) -> torch.Tensor:
        signs = torch.randint(0, 2, part.shape, generator=rng).float() * 2 - 1
        return part * {"alike": 1, "half": torch.where(torch.rand(part.shape, generator=rng) < 0.5, 1, signs)}.get(kind, signs)

    for size, channels in ((5 * RATE, 1), (RATE // 2, 2)):
        model = SimpleNamespace(num_samples=size, sample_rate=RATE, channels=channels)
        for seconds in LENGTHS:
            wave = materials[material][:, : round(seconds * RATE)].expand(channels, -1)
            output = torch.cat(list(sounds.stream_windows(drawn, wave.split(999, 1), wave.shape[1], model)), 1)
            assert output.shape == wave.shape
            assert np.abs(decibels(output) - decibels(wave)).max() < 0.25
            if kind == "alike":
                torch.testing.assert_close(output, wave)


class Plain:
    """An autoencoder whose latents are the log-mels."""

    factor, scaling_factor, channels, digest = 1, 1.0, 1, ""

    def __init__(self, spec: MelSpec):
        self.spec, self.sample_rate, self.samples_per_frame = spec, spec.sample_rate, spec.hop_length

    def to(self, device):
        return self

    def latent_shape(self, frames):
        return 1, frames, self.spec.n_mels

    def posterior(self, waves, num_samples):
        return torch.from_numpy(np.stack([padded_log_mel(wave, self.spec, num_samples) for wave in waves]))[:, None]

    def decode(self, latents):
        return latents


def of_seconds(name: str, seconds: float, monkeypatch) -> object:
    """A model of the family that makes `seconds` at once, with Griffin-Lim and without a net."""
    document = params.compose(ROOT / "conf", [f"model={name}"])
    train = params.parse(registry.family(name).train_params, document[name]["train"], name)
    spec = params.section(document, "spectrogram.tagger", "") | document["spectrogram"].get(name, {})
    spec = SpectrogramParams(**spec).spec.model_copy(update={"peak": 0.5} if name == "tango" else {})
    module = import_module(registry.family(name).model)
    net, num_samples = torch.nn.Identity(), round(seconds * RATE)
    if name == "ddpm_mel":
        picture = train.picture.model_copy(update={"seconds": seconds, "width": round(train.picture.width * seconds / 5)})
        return module.DdpmMel(train, net, spec, module.PictureCodec(picture, spec), torch.zeros(1), torch.zeros(1, 0))
    if name == "projected_gan":
        picture = LoopPicture(spec, num_samples, num_samples // spec.hop_length - 8, "cut")  # its end is silent
        return module.ProjectedGan(train, net, spec, picture, [], [])
    if name in ("tango", "audio_dit"):
        kind, frames = SimpleNamespace(sound=MelCodec), num_samples // spec.hop_length
        codec = {"params": train, "net": net, "kind": kind, "autoencoder": Plain(spec), "frames": frames}
        return module.Tango(**codec) if name == "tango" else module.AudioDiT(**codec, seconds=seconds, layout=None)
    monkeypatch.setattr(module, "WINDOW_SECONDS", seconds)
    model = module.Vocoding(train, net, RATE) if name == "diffwave" else module.VocodingModel(train, net, 1)
    train.__dict__["mel"] = spec
    monkeypatch.setattr(type(model), "vocoder_for", lambda self, run: GriffinLim(spec, SAMPLING))
    return model


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize("name", ["ddpm_mel", "projected_gan", "tango", "audio_dit", "diffwave", "diffusion_vocoder"])
def test_windows_of_log_mels_are_as_loud_as_one_window(name, materials, monkeypatch):
    for material in ("noise", "004 - Baby cry"):
        for seconds in (5.001, 7.3, 12.5):
            wave = materials[material][:, : round(seconds * RATE)]
            output = []
            for longest in (5.0, 15.0):
                model = of_seconds(name, longest, monkeypatch)
                output.append(torch.cat(list(sounds.reconstructed(model, wave.split(999, 1), wave.shape[1], RUN)), 1))
                assert output[-1].shape == wave.shape
            difference = np.abs(decibels(output[0]) - decibels(output[1])).max()
            assert difference < 0.5, (material, seconds, difference)
