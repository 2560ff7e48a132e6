"""Codecs whose nets are a library's, Oobleck and EnCodec: of published files and of ours."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderOobleck
from transformers import EncodecModel

from soundmill import params
from soundmill.audio.mel import SpectrogramParams
from soundmill.errors import UserError
from soundmill.models.components import encodec, oobleck, registry
from soundmill.models.components.contracts import LoadedParams, save_codec
from soundmill.models.components.encodec import codec as make
from soundmill.models.components.encodec.codec import EncodecCodec
from soundmill.models.components.encodec.codec import build as build_encodec
from soundmill.models.components.oobleck.codec import OobleckCodec, kl_divergence
from soundmill.models.components.oobleck.codec import build as build_oobleck
from soundmill.models.components.oobleck.codec import load_published as load_oobleck
from tests.imports import ROOT

OOBLECK = oobleck.NetworkParams(channels=4, ratios=[2, 4], multiples=[1, 2], latent_channels=3, audio_channels=2, sample_rate=44100)
ENCODEC = encodec.NetworkParams(
    channels=4, ratios=[4, 2], latent_channels=8, codebook_size=16, bandwidths=[4.0, 8.0], causal=False, conv_shortcut=False,
    audio_channels=1, sample_rate=8000,
)  # fmt: skip
STEREO = 0.1 * torch.randn(2, 2, 160, generator=torch.Generator().manual_seed(0))
MONO = 0.1 * torch.randn(2, 1, 800, generator=torch.Generator().manual_seed(0))
SPEC = SpectrogramParams(**params.compose(ROOT / "conf", [])["spectrogram"]["tagger"]).spec


def tiny() -> AutoencoderOobleck:
    torch.manual_seed(0)
    return build_oobleck(OOBLECK).eval()


def publish_oobleck(home: Path) -> AutoencoderOobleck:
    """A directory as Stable Audio Open's."""
    net = tiny()
    net.save_pretrained(home / "vae")
    return net


def publish_encodec(home: Path) -> EncodecModel:
    """A directory as transformers saves it, with codebooks that differ."""
    torch.manual_seed(0)
    net = build_encodec(ENCODEC)
    for layer in net.quantizer.layers:
        layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape))
    net.save_pretrained(home)
    return net


def named(home: Path) -> LoadedParams:
    return LoadedParams(kind="load", name=str(home), revision=None)


def test_the_published_oobleck_has_the_published_rate():
    document = params.compose(ROOT / "conf", ["model=audio_dit", "scale=paper"])
    section = registry.codec_params(document, "audio_dit")
    with torch.device("meta"):
        codec = OobleckCodec(section.network, registry.kind_of("autoencoder", "oobleck").module.network(section, None, 2))
    assert (codec.sample_rate, codec.channels, codec.latent_shape(7)) == (44_100, 2, (64, 7, 1))
    assert codec.metrics["latent_rate"] == pytest.approx(21.533, abs=1e-3)
    assert section.latent_shape(SPEC, document["audio_dit"]["latents"]["num_samples"]) == (64, 1024, 1)


def test_the_sizes_of_conf_are_musicgen_s():
    document = params.compose(ROOT / "conf", ["model=audio_dit", "codec@audio_dit.autoencoder=encodec"])
    section = registry.codec_params(document, "audio_dit")
    with torch.device("meta"):
        net = registry.kind_of("autoencoder", "encodec").module.network(section, None, 1)
    assert sum(weight.numel() for weight in net.parameters()) == 56_884_674
    assert (net.quantizer.num_quantizers, net.quantizer.codebook_size) == (4, 2048)
    codec = EncodecCodec(section.network, section.bandwidth, net)
    assert (codec.sample_rate, codec.channels, codec.metrics["latent_rate"], codec.latent_shape(7)) == (32_000, 1, 50, (128, 7, 1))


def test_oobleck_is_the_library_s(tmp_path):
    net = publish_oobleck(tmp_path)
    codec, facts = load_oobleck(named(tmp_path), OOBLECK, tmp_path)
    assert facts["name"] == str(tmp_path)
    with torch.no_grad():
        posterior = net.encode(STEREO).latent_dist
        torch.testing.assert_close(codec.encode(STEREO), posterior.mean, rtol=0, atol=0)
        torch.testing.assert_close(codec.decode(posterior.mean), net.decode(posterior.mean).sample, rtol=0, atol=0)
        found = codec.posterior([wave.numpy() for wave in STEREO], 160)
    assert found.shape == (2, 2, 3, 20, 1)
    torch.testing.assert_close(found[..., 0], torch.stack([posterior.mean, posterior.logvar], 1))
    padded = codec.posterior([STEREO[0].numpy()[:, :100]], 160)
    silent = torch.nn.functional.pad(STEREO[:1, :, :100], (0, 60)).numpy()
    assert torch.equal(padded, codec.posterior(list(silent), 160))
    with pytest.raises(UserError, match="num_samples 100 must be a multiple of 8, the samples of a latent: 96 or 104"):
        codec.posterior([STEREO[0].numpy()], 100)


@pytest.mark.parametrize("bandwidth", ENCODEC.bandwidths)
def test_a_sound_through_encodec_is_the_library_s(tmp_path, bandwidth):
    publish_encodec(tmp_path)
    theirs = EncodecModel.from_pretrained(tmp_path).eval()
    net, facts = make.load_published(named(tmp_path), ENCODEC, tmp_path)
    assert facts["name"] == str(tmp_path)
    codec = EncodecCodec(ENCODEC, bandwidth, net)
    with torch.no_grad():
        coded = theirs.encode(MONO, bandwidth=bandwidth)
        expected = theirs.decode(coded.audio_codes, coded.audio_scales).audio_values.clamp(-1, 1)
    assert len(coded.audio_codes[0, 0]) == {4.0: 1, 8.0: 2}[bandwidth]
    torch.testing.assert_close(codec.decode(codec.encode(MONO)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["oobleck", "encodec"])
def test_saved_and_loaded_it_sounds_the_same_through_its_sounding(tmp_path, name):
    if name == "oobleck":
        codec, waves, frames, channels = OobleckCodec(OOBLECK, tiny(), scaling_factor=0.5), STEREO, 25, 3
    else:
        codec, waves, frames, channels = EncodecCodec(ENCODEC, 8.0, publish_encodec(tmp_path / "published")), MONO, 101, 8
    save_codec(codec, tmp_path / "codec", {"kind": "train"})
    loaded = registry.load_latent_codec(tmp_path / "codec")
    assert (loaded.digest, loaded.scaling_factor) == (codec.digest, 0.5 if name == "oobleck" else 1.0)
    sounding = loaded.sounding(None, frames, 0.0, torch.device("cpu"))
    latents = sounding.encode(waves)
    assert latents.shape == (2, channels, frames, 1)
    longer = torch.nn.functional.pad(waves, (0, 8 * frames - waves.shape[2]))
    torch.testing.assert_close(latents[..., 0], codec.encode(longer))
    torch.testing.assert_close(sounding.decode(latents), codec.decode(codec.encode(longer)))
    if name == "encodec":
        found = loaded.posterior([wave.numpy() for wave in waves], 800)
        assert (loaded.bandwidth, found.shape) == (8.0, (2, 2, 8, 100, 1))
        torch.testing.assert_close(found[:, 0, ..., 0], codec.encode(waves))
        assert float(found.half()[:, 1].float().exp().max()) < 1e-9  # as stored


def test_a_codec_of_this_project_is_taken_as_it_is(tmp_path):
    codec = EncodecCodec(ENCODEC, 8.0, publish_encodec(tmp_path / "published"))
    save_codec(codec, tmp_path / "model/autoencoder", {"kind": "load"})
    where = LoadedParams(kind="load", name="model/autoencoder", revision=None)
    section = SimpleNamespace(weights=where, network=ENCODEC)
    make.check(section, SPEC, tmp_path)
    net, facts = make.load_published(where, ENCODEC, tmp_path)
    assert facts == {"name": "model/autoencoder", "revision": None, "digest": codec.digest}
    for name, weight in codec.net.state_dict().items():
        assert torch.equal(net.state_dict()[name], weight), name
    again = EncodecCodec(ENCODEC, 8.0, net)
    save_codec(again, tmp_path / "again", {"kind": "load", **facts})
    assert again.digest == codec.digest  # so it is the base's codec for a training that starts from it

    config = json.loads((tmp_path / "model/autoencoder/config.json").read_text())
    (tmp_path / "model/autoencoder/config.json").write_text(json.dumps(config | {"kind": "oobleck"}))
    with pytest.raises(UserError, match=r"autoencoder/config\.json\.kind"):
        make.check(section, SPEC, tmp_path)
    (tmp_path / "model/autoencoder/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"channels is 4, autoencoder\.network has 5; make them agree"):
        make.load_published(where, ENCODEC.model_copy(update={"channels": 5}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_filters": 5}, r"num_filters is 5, autoencoder\.network has 4; make them agree"),
        ({"normalize": True, "chunk_length_s": 1.0}, r"normalize is True, autoencoder\.network has False; chunk_length_s is 1\.0"),
        ({"model_type": "dac"}, r"model_type is dac, autoencoder\.network has encodec"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_stage_runs(tmp_path, changes, message):
    publish_encodec(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    where = named(tmp_path)
    section = SimpleNamespace(weights=where, network=ENCODEC)
    for call in (lambda: make.check(section, SPEC, tmp_path), lambda: make.load_published(where, ENCODEC, tmp_path)):
        with pytest.raises(UserError, match=message):
            call()


def test_its_divergence_is_that_of_normal_distributions():
    posterior = tiny().encode(STEREO).latent_dist
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl_divergence(posterior), expected)


def test_lengths_agree_at_every_even_ratio():
    for ratios in ([2], [4, 6], [8, 10]):
        net = build_oobleck(OOBLECK.model_copy(update={"ratios": ratios, "multiples": [1] * len(ratios)}))
        frames, stride = 5, int(np.prod(ratios))
        latents = net.encode(torch.zeros(1, 2, frames * stride)).latent_dist.mean
        assert latents.shape[2] == frames
        assert net.decode(latents).sample.shape[2] == frames * stride
