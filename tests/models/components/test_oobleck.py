"""Oobleck: the library's net as a codec, of published files and of ours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderOobleck

from soundmill import params
from soundmill.audio.mel import SpectrogramParams
from soundmill.errors import UserError
from soundmill.models.components import registry
from soundmill.models.components.contracts import save_codec
from soundmill.models.components.loaded import LoadedParams
from soundmill.models.components.oobleck import NetworkParams, make
from soundmill.models.components.oobleck import codec as codecs
from soundmill.models.components.oobleck.codec import OobleckCodec
from soundmill.models.components.oobleck.make import kl_divergence
from tests.imports import ROOT

TINY = NetworkParams(channels=4, ratios=[2, 4], multiples=[1, 2], latent_channels=3, audio_channels=2, sample_rate=44_100)
WAVES = 0.1 * torch.randn(2, 2, 160, generator=torch.Generator().manual_seed(0))


def tiny(seed: int = 0) -> AutoencoderOobleck:
    torch.manual_seed(seed)
    return codecs.build(TINY).eval()


def publish(home: Path, seed: int = 0) -> AutoencoderOobleck:
    """A directory as Stable Audio Open's."""
    net = tiny(seed)
    net.save_pretrained(home / "vae")
    return net


def named(home: Path) -> LoadedParams:
    return LoadedParams(kind="load", name=str(home), revision=None)


def test_the_published_one_has_the_published_size_and_rate():
    document = params.compose(ROOT / "conf", ["model=audio_dit", "scale=paper"])
    section = registry.codec_params(document, "audio_dit")
    with torch.device("meta"):
        net = registry.codec("oobleck").network(section, {})
    assert sum(weight.numel() for weight in net.parameters()) == 156_112_514
    codec = OobleckCodec(section.network, net)
    assert (codec.sample_rate, codec.channels, codec.latent_shape(7)) == (44_100, 2, (64, 7, 1))
    assert codec.latent_rate == pytest.approx(21.533, abs=1e-3)
    spec = SpectrogramParams(**document["spectrogram"]["tagger"]).spec
    assert section.latent_shape(spec, document["audio_dit"]["latents"]["num_samples"]) == (64, 1024, 1)


def test_it_is_the_library_s(tmp_path):
    net = publish(tmp_path)
    codec, facts = make.load_published(named(tmp_path), TINY, tmp_path)
    assert facts["name"] == str(tmp_path)
    with torch.no_grad():
        posterior = net.encode(WAVES).latent_dist
        torch.testing.assert_close(codec.encode(WAVES), posterior.mean, rtol=0, atol=0)
        torch.testing.assert_close(codec.decode(posterior.mean), net.decode(posterior.mean).sample, rtol=0, atol=0)
        found = codec.posterior([wave.numpy() for wave in WAVES], 160)
    assert found.shape == (2, 2, 3, 20, 1)
    torch.testing.assert_close(found[..., 0], torch.stack([posterior.mean, posterior.logvar], 1))
    padded = codec.posterior([WAVES[0].numpy()[:, :100]], 160)
    silent = torch.nn.functional.pad(WAVES[:1, :, :100], (0, 60)).numpy()
    assert torch.equal(padded, codec.posterior(list(silent), 160))
    with pytest.raises(UserError, match="num_samples 100 must be a multiple of 8, the samples of a latent: 96 or 104"):
        codec.posterior([WAVES[0].numpy()], 100)


def test_saved_and_loaded_it_sounds_the_same_through_its_sounding(tmp_path):
    codec = OobleckCodec(TINY, tiny(), scaling_factor=0.5)
    save_codec(codec, tmp_path / "codec", {"kind": "train"})
    kind, loaded = registry.load_latent_codec(tmp_path / "codec")
    assert (loaded.digest, loaded.scaling_factor) == (codec.digest, 0.5)
    sounding = kind.sound(loaded, None, 25, 0.0, torch.device("cpu"))
    latents = sounding.encode(WAVES)
    assert latents.shape == (2, 3, 25, 1)
    short = torch.nn.functional.pad(WAVES, (0, 40))
    torch.testing.assert_close(latents[..., 0], codec.encode(short))
    assert sounding.decode(latents).shape == (2, 2, 200)
    torch.testing.assert_close(sounding.decode(latents), codec.decode(codec.encode(short)))
    assert (sounding.sample_rate, sounding.channels, sounding.latent_rate) == (44_100, 2, 44_100 / 8)


def test_its_divergence_is_that_of_normal_distributions():
    posterior = tiny().encode(WAVES).latent_dist
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl_divergence(posterior), expected)


def test_lengths_agree_at_every_even_ratio():
    for ratios in ([2], [4, 6], [8, 10]):
        net = codecs.build(TINY.model_copy(update={"ratios": ratios, "multiples": [1] * len(ratios)}))
        frames, stride = 5, int(np.prod(ratios))
        latents = net.encode(torch.zeros(1, 2, frames * stride)).latent_dist.mean
        assert latents.shape[2] == frames
        assert net.decode(latents).sample.shape[2] == frames * stride
