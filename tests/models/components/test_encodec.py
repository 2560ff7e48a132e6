"""EnCodec: the library's net as a codec, of directories that the library wrote."""

import json
from pathlib import Path

import pytest
import torch
from transformers import EncodecModel

from soundmill import params
from soundmill.audio.mel import SpectrogramParams
from soundmill.errors import UserError
from soundmill.models.components import registry
from soundmill.models.components.contracts import save_codec
from soundmill.models.components.encodec import NetworkParams, make
from soundmill.models.components.encodec import codec as codecs
from soundmill.models.components.encodec.codec import EncodecCodec
from soundmill.models.components.loaded import LoadedParams
from tests.imports import ROOT

TINY = NetworkParams(
    channels=4, ratios=[4, 2], latent_channels=8, codebook_size=16, bandwidths=[4.0, 8.0], causal=False, conv_shortcut=False,
    audio_channels=1, sample_rate=8000,
)  # fmt: skip
WAVES = 0.1 * torch.randn(2, 1, 800, generator=torch.Generator().manual_seed(0))


def publish(home: Path) -> EncodecModel:
    """A directory as transformers saves it, with codebooks that differ."""
    torch.manual_seed(0)
    net = codecs.build(TINY)
    for layer in net.quantizer.layers:
        layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape))
    net.save_pretrained(home)
    return net


def named(home: Path) -> LoadedParams:
    return LoadedParams(kind="load", name=str(home), revision=None)


def test_the_sizes_of_conf_are_musicgen_s():
    document = params.compose(ROOT / "conf", ["model=audio_dit", "codec@audio_dit.autoencoder=encodec"])
    section = registry.codec_params(document, "audio_dit")
    with torch.device("meta"):
        net = registry.codec("encodec").network(section, {})
    assert sum(weight.numel() for weight in net.parameters()) == 56_884_674
    assert (net.quantizer.num_quantizers, net.quantizer.codebook_size) == (4, 2048)
    codec = EncodecCodec(section.network, section.bandwidth, net)
    assert (codec.sample_rate, codec.channels, codec.latent_rate, codec.latent_shape(7)) == (32_000, 1, 50, (128, 7, 1))


@pytest.mark.parametrize("bandwidth", TINY.bandwidths)
def test_a_sound_through_it_is_the_library_s(tmp_path, bandwidth):
    publish(tmp_path)
    theirs = EncodecModel.from_pretrained(tmp_path).eval()
    net, facts = make.load_published(named(tmp_path), TINY, tmp_path)
    assert facts["name"] == str(tmp_path)
    codec = EncodecCodec(TINY, bandwidth, net)
    with torch.no_grad():
        coded = theirs.encode(WAVES, bandwidth=bandwidth)
        expected = theirs.decode(coded.audio_codes, coded.audio_scales).audio_values.clamp(-1, 1)
    assert len(coded.audio_codes[0, 0]) == {4.0: 1, 8.0: 2}[bandwidth]
    torch.testing.assert_close(codec.decode(codec.encode(WAVES)), expected, rtol=0, atol=0)


def test_saved_and_loaded_it_sounds_the_same_through_its_sounding(tmp_path):
    codec = EncodecCodec(TINY, 8.0, publish(tmp_path / "published"))
    save_codec(codec, tmp_path / "codec", {"kind": "load"})
    kind, loaded = registry.load_latent_codec(tmp_path / "codec")
    assert (loaded.digest, loaded.bandwidth, loaded.scaling_factor) == (codec.digest, 8.0, 1.0)
    sounding = kind.sound(loaded, None, 101, 0.0, torch.device("cpu"))
    longer = torch.nn.functional.pad(WAVES, (0, 8))
    latents = sounding.encode(WAVES)
    torch.testing.assert_close(latents[..., 0], codec.encode(longer))
    torch.testing.assert_close(sounding.decode(latents), codec.decode(codec.encode(longer)))
    found = loaded.posterior([wave.numpy() for wave in WAVES], 800)
    assert found.shape == (2, 2, 8, 100, 1)
    torch.testing.assert_close(found[:, 0, ..., 0], codec.encode(WAVES))
    assert float(found.half()[:, 1].float().exp().max()) < 1e-9  # as stored


def test_a_codec_of_this_project_is_taken_as_it_is(tmp_path):
    codec = EncodecCodec(TINY, 8.0, publish(tmp_path / "published"))
    save_codec(codec, tmp_path / "model/autoencoder", {"kind": "load"})
    where = LoadedParams(kind="load", name="model/autoencoder", revision=None)
    spec = SpectrogramParams(**params.compose(ROOT / "conf", [])["spectrogram"]["tagger"]).spec
    make.check(where, TINY, spec, tmp_path)
    net, facts = make.load_published(where, TINY, tmp_path)
    assert facts == {"name": "model/autoencoder", "revision": None, "digest": codec.digest}
    for name, weight in codec.net.state_dict().items():
        assert torch.equal(net.state_dict()[name], weight), name
    again = EncodecCodec(TINY, 8.0, net)
    save_codec(again, tmp_path / "again", {"kind": "load", **facts})
    assert again.digest == codec.digest  # so it is the base's codec for a training that starts from it

    config = json.loads((tmp_path / "model/autoencoder/config.json").read_text())
    (tmp_path / "model/autoencoder/config.json").write_text(json.dumps(config | {"kind": "oobleck"}))
    with pytest.raises(UserError, match=r"autoencoder/config\.json\.kind"):
        make.check(where, TINY, spec, tmp_path)
    (tmp_path / "model/autoencoder/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"channels is 4, autoencoder\.network has 5; make them agree"):
        make.load_published(where, TINY.model_copy(update={"channels": 5}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_filters": 5}, r"num_filters is 5, autoencoder\.network has 4; make them agree"),
        ({"normalize": True, "chunk_length_s": 1.0}, r"normalize is True, autoencoder\.network has False; chunk_length_s is 1\.0"),
        ({"model_type": "dac"}, r"model_type is dac, autoencoder\.network has encodec"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_stage_runs(tmp_path, changes, message):
    publish(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = SpectrogramParams(**params.compose(ROOT / "conf", [])["spectrogram"]["tagger"]).spec
    where = named(tmp_path)
    for call in (lambda: make.check(where, TINY, spec, tmp_path), lambda: make.load_published(where, TINY, tmp_path)):
        with pytest.raises(UserError, match=message):
            call()
