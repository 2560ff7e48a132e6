"""The mel autoencoder: sizes, what goes in and out, what is kept on disk, and those of others."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from soundmill.errors import UserError
from soundmill.models.components.contracts import LoadedParams, read_codec, save_codec
from soundmill.models.components.mel_autoencoder import AutoencoderNetParams, AutoencoderParams
from soundmill.models.components.mel_autoencoder import autoencoder as autoencoders
from soundmill.models.components.mel_autoencoder import autoencoder as make
from soundmill.models.components.mel_autoencoder.autoencoder import Autoencoder, build_autoencoder, reconstruction_error, with_grain
from soundmill.params import compose, parse
from tests.mels import spec_with

TINY = AutoencoderNetParams(widths=[8, 16], blocks=1, latent_channels=4, groups=4)
STARTED = AutoencoderNetParams(widths=[8, 16], blocks=1, latent_channels=3, groups=4, pca=True)
SPEC = spec_with(n_mels=16, peak=0.5)


def untrained() -> Autoencoder:
    """With noise for grain, for others' tests."""
    torch.manual_seed(0)
    model = Autoencoder(TINY, SPEC, build_autoencoder(TINY).eval(), mean=-5.0, deviation=3.0, scaling_factor=0.5)
    model.residual = [0.5] * SPEC.n_mels
    return model


@pytest.fixture
def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(TINY, SPEC, build_autoencoder(TINY).eval(), mean=-5.5, deviation=3.0, scaling_factor=0.25)


def publish(home: Path) -> None:
    """A directory as diffusers and transformers write it, with random weights."""
    net = build_autoencoder(TINY)
    net.register_to_config(scaling_factor=0.93)
    net.save_pretrained(home / "vae")


@pytest.fixture
def published(tmp_path) -> Path:
    torch.manual_seed(1)
    publish(tmp_path / "audioldm")
    return tmp_path / "audioldm"


def load(directory: Path, network=TINY):
    expected = LoadedParams(kind="load", name=str(directory), revision=None)
    return make.load_published(expected, network, SPEC, directory.parent)


def test_latents_have_the_published_shape(root):
    document = compose(root / "conf", ["model=tango", "scale=paper"])
    paper = parse(AutoencoderParams, document["tango"]["autoencoder"], "paper")
    with torch.device("meta"):
        posterior = build_autoencoder(paper.network).encode(torch.empty(1, 1, 1024, 64)).latent_dist
    assert posterior.mean.shape == (1, 8, 256, 16)


def test_shapes_and_scale(model):
    log_mel = torch.randn(2, 16, 12)
    mean, log_variance = model.encode(log_mel)
    assert mean.shape == log_variance.shape == (2, *model.latent_shape(12)) == (2, 4, 6, 8)
    rebuilt = model.decode(0.25 * mean)
    assert rebuilt.shape == log_mel.shape
    picture = ((log_mel + 5.5) / 3.0).transpose(1, 2)[:, None]
    with torch.no_grad():
        expected = model.net.decode(model.net.encode(picture).latent_dist.mean).sample[:, 0].transpose(1, 2) * 3.0 - 5.5
    torch.testing.assert_close(rebuilt, expected.clamp_min(math.log(1e-5)))


def started(fitted: bool = True, whitening: float = 1.0) -> Autoencoder:
    torch.manual_seed(0)
    net = build_autoencoder(STARTED).eval()
    if fitted:
        net.pca.fit((net.rows(autoencoders.to_picture(one[None], -5.5, 3.0)) for one in smooth_log_mels()), "", whitening)
    return Autoencoder(STARTED, SPEC, net, mean=-5.5, deviation=3.0, scaling_factor=1.0)


def smooth_log_mels() -> torch.Tensor:
    """[6, 16, 40]: sums of neighbouring normal values."""
    white = torch.randn(6, 1, 18, 42, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.avg_pool2d(white, 3, 1) * 6 - 5)[:, 0]


@pytest.mark.parametrize("whitening", [1.0, 0.5, 0.0])
def test_an_untrained_autoencoder_is_the_closed_form_of_principal_components(whitening):
    """Patches of 2 × 2 become their first three components, of unit variance each or together, and those the nearest patches."""
    model, log_mels = started(whitening=whitening), smooth_log_mels()
    mean, log_variance = model.encode(log_mels)
    patches = log_mels.double().numpy().reshape(6, 8, 2, 20, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4)
    center = patches.mean(0)
    axes = np.linalg.svd(patches - center, full_matrices=False)[2][:3]
    components = (patches - center) @ axes.T
    nearest = (components @ axes + center).reshape(6, 8, 20, 2, 2).transpose(0, 1, 3, 2, 4).reshape(6, 16, 40)
    expected = torch.from_numpy(nearest).float().clamp_min(math.log(1e-5))
    torch.testing.assert_close(model.decode(mean), expected, atol=1e-5, rtol=0)
    spread = components.std(0)
    unit = (
        (components / spread**whitening / np.square(spread ** (1 - whitening)).mean() ** 0.5)
        .reshape(6, 8, 20, 3)
        .transpose(0, 3, 2, 1)
    )
    found = mean.numpy() * np.sign((mean.numpy() * unit).sum((0, 2, 3)))[None, :, None, None]
    np.testing.assert_allclose(found, unit, atol=1e-4)  # [6, 3, 20, 8]
    assert (log_variance == -8).all()


def test_an_autoencoder_that_starts_from_components_learns():
    net = started().net.train()
    optimiser, picture = torch.optim.SGD(net.parameters(), 0.1), torch.randn(2, 1, 8, 16)
    for _ in range(2):  # the first step reaches only the last layers, which are 0
        posterior = net.encode(picture).latent_dist
        loss = (net.decode(posterior.mean).sample - picture).square().mean() + posterior.logvar.mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    assert not [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_components_are_the_same_bytes_and_saved(tmp_path):
    for name in ("one", "other"):
        save_codec(started(), tmp_path / name, {"kind": "train"})
    one, other = (tmp_path / name / "model.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    log_mels = smooth_log_mels()
    loaded, unfitted = autoencoders.load(tmp_path / "one"), started(fitted=False)
    assert torch.equal(loaded.encode(log_mels)[0], started().encode(log_mels)[0])
    assert not torch.equal(loaded.encode(log_mels)[0], unfitted.encode(log_mels)[0])


def test_nothing_is_softer_than_silence(model):
    assert model.decode(torch.full((1, 4, 6, 8), -1e3)).min() >= torch.tensor(math.log(1e-5))


def test_kl_divergence_has_its_known_values():
    zero = torch.zeros(3, 4)
    assert autoencoders.kl_divergence(zero, zero) == 0
    assert autoencoders.kl_divergence(zero + 2, zero) == pytest.approx(2.0)
    assert autoencoders.kl_divergence(zero, zero + math.log(4.0)) == pytest.approx(0.5 * (4 - 1 - math.log(4)))


def test_errors_that_last_cost_more_than_errors_that_cancel():
    picture = torch.zeros(1, 1, 16, 16)
    checkered = torch.ones(16, 16)
    checkered[::2, 1::2] = checkered[1::2, ::2] = -1
    assert reconstruction_error(picture, picture) == 0
    assert reconstruction_error(picture + checkered, picture) == pytest.approx(1.0 + 0.99, abs=1e-3)  # grain: no error of means
    assert reconstruction_error(picture + checkered, picture - checkered) == pytest.approx(2.0)  # as strong, elsewhere
    assert reconstruction_error(picture + 1, picture) == pytest.approx(2.0)


def test_grain_is_noise_of_what_was_lost_in_each_band(model):
    lost = torch.linspace(0.1, 1.6, SPEC.n_mels)
    model.residual = lost.tolist()
    smooth = torch.full((2, SPEC.n_mels, 4000), -4.0)
    grainy = with_grain(smooth, model, 0.5)
    torch.testing.assert_close((grainy - smooth).std(dim=2), (0.5 * lost).expand(2, -1), rtol=0.05, atol=0)
    torch.testing.assert_close(grainy.mean(dim=2), smooth.mean(dim=2), rtol=0, atol=0.05)
    torch.testing.assert_close(grainy[1:], with_grain(smooth[1:], model, 0.5), rtol=0, atol=0)  # whatever came before
    assert with_grain(smooth, model, 0.0) is smooth
    assert with_grain(torch.full_like(smooth, model.silence), model, 1.0).min() >= model.silence


def test_what_is_measured_as_lost_is_the_deviation_of_real_from_rebuilt(model, tmp_path, monkeypatch):
    """Of a decoder that gives every clip back 0.25 too loud, and one band's frames in turn 1 too loud and too soft."""
    log_mels = torch.randn(3, SPEC.n_mels, 20, generator=torch.Generator().manual_seed(0)) - 5
    wrong = torch.full((SPEC.n_mels, 20), 0.25)
    wrong[3] = torch.tensor([1.0, -1.0]).repeat(10)
    heard = iter([*log_mels])
    monkeypatch.setattr(make, "whole_clips", lambda model, log_mels: iter(one[None] for one in log_mels))
    monkeypatch.setattr(Autoencoder, "decode", lambda self, x0: (next(heard) + wrong)[None])
    make.measure(model, log_mels)
    assert model.residual == [1.0 if band == 3 else 0.25 for band in range(SPEC.n_mels)]


def test_what_is_saved_is_loaded_in_diffusers_names(model, tmp_path):
    digest = save_codec(model, tmp_path / "one", {"kind": "train"})["digest"]
    found = autoencoders.load(tmp_path / "one")
    log_mel = torch.randn(1, 16, 8)
    assert all(torch.equal(a, b) for a, b in zip(found.encode(log_mel), model.encode(log_mel), strict=True))
    assert (found.mean, found.deviation, found.scaling_factor, found.spec) == (-5.5, 3.0, 0.25, SPEC)
    assert found.digest == digest == read_codec(tmp_path / "one").digest
    assert set(load_file(tmp_path / "one" / "model.safetensors")) == set(build_autoencoder(TINY).state_dict())
    assert save_codec(model, tmp_path / "same", {"kind": "other words"})["digest"] == digest
    model.scaling_factor = 0.5
    assert save_codec(model, tmp_path / "other", {"kind": "train"})["digest"] != digest


def test_weights_in_the_names_of_their_time_are_loaded(published):
    """AudioLDM's are from before diffusers renamed attention."""
    path = published / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in weights.items():
        for new, former in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        renamed[name] = value
    assert set(renamed) != set(weights)
    save_file(renamed, path, {"format": "pt"})
    model, source = load(published)
    assert (model.scaling_factor, model.mean, model.deviation, source["revision"]) == (0.93, 0.0, 1.0, None)
    found = model.net.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_a_scaling_factor_is_never_guessed(published):
    path = published / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["scaling_factor"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="scaling_factor must be a number above 0, found None"):
        load(published)


def test_a_hub_id_needs_a_commit(tmp_path):
    with pytest.raises(UserError, match="40 hex digits"):
        make.load_published(LoadedParams(kind="load", name="cvssp/audioldm-s-full-v2", revision="main"), TINY, SPEC, tmp_path)
