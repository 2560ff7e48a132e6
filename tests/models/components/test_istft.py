"""The vocoder with an inverse STFT: where it starts, what it learns, what is drawn; and Vocos, which it must equal."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from soundmill.audio.invert import corrected, griffin_lim, mel_to_linear, speckle
from soundmill.audio.mel import MelSpec, log_mel
from soundmill.errors import UserError
from soundmill.models.components.contracts import LoadedParams, save_vocoder
from soundmill.models.components.istft import IstftParams, NetworkParams, SamplingParams
from soundmill.models.components.istft import vocoder as make
from soundmill.models.components.istft.vocoder import SPECKLE_MEDIAN, SPECKLE_SPREAD, Istft, MagnitudeNet, build, drawn, load
from soundmill.models.components.making import size
from soundmill.params import compose, parse
from soundmill.training.loader import Batch
from tests import recorded
from tests.lost_bits import Code
from tests.mels import TANGO, spec_with

SMALL = NetworkParams(head="magnitude", layers=2, width=16, hidden=32)
WAVES = SMALL.model_copy(update={"head": "wave"})
PLAIN, GRAINY = (SamplingParams(iterations=4, momentum=0.9, grain=grain) for grain in (0.0, 1.0))
NOISE = 0.1 * np.random.default_rng(0).standard_normal((2, 16_000)).astype(np.float32)
VOCOS = MelSpec(
    sample_rate=24_000, n_fft=1024, win_length=1024, hop_length=256, n_mels=100, f_min=0.0, f_max=12_000.0, mel_scale="htk",
    norm="none", power=1.0, floor=1e-7, peak=None,
)  # fmt: skip


def pictures(spec: MelSpec = TANGO) -> torch.Tensor:
    return torch.from_numpy(log_mel(NOISE, spec))[..., :60]


def untrained(spec: MelSpec = TANGO, sampling: SamplingParams = PLAIN) -> Istft:
    torch.manual_seed(0)
    return Istft(SMALL, spec, build(SMALL, spec).eval(), sampling)


@pytest.mark.parametrize("spec", [TANGO, spec_with(power=2.0, floor=1e-10, hop_length=313), spec_with(win_length=400, n_fft=512)])
def test_untrained_it_is_griffin_lim(spec):
    vocoder = untrained(spec)
    mel = pictures(spec)
    median, spread = vocoder.net(mel)
    assert torch.equal(median, mel_to_linear(mel, spec))
    assert (spread == SPECKLE_SPREAD).all()
    mel = torch.cat([mel, mel[..., -1:]], 2)
    magnitude = corrected(mel_to_linear(mel, spec), mel, spec)  # which is one more step of the same least squares
    wave = griffin_lim(magnitude, spec, (mel.shape[2] - 1) * spec.hop_length, PLAIN.iterations, PLAIN.momentum, 0)
    torch.testing.assert_close(vocoder.vocode(mel[..., :-1])[:, 0], wave, atol=1e-6, rtol=0)


def test_what_is_drawn_has_the_median_and_the_spread():
    """Of noise it is noise's own speckle, and twice as wide where the spread is."""
    median, spread = torch.full((2, 513, 400), 2.0), torch.full((2, 513, 400), SPECKLE_SPREAD)
    spread[1] *= 2
    values = drawn(median, spread, TANGO, seed=3)
    once, twice = (values / 2.0).log()
    torch.testing.assert_close(once, speckle(TANGO, 400, 3).log() - SPECKLE_MEDIAN, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(twice, 2 * once, atol=1e-4, rtol=1e-4)
    inner = once[8:-8, 8:-8]
    assert float(inner.median()) == pytest.approx(0.0, abs=0.01)
    assert float(inner.abs().mean()) == pytest.approx(SPECKLE_SPREAD, rel=0.02)


def test_grain_is_drawn_by_the_seed():
    grainy, mel = untrained(sampling=GRAINY), pictures()[:1]
    assert torch.equal(grainy.vocode(mel, 1), grainy.vocode(mel, 1))
    assert (grainy.vocode(mel, 1) - grainy.vocode(mel, 2)).abs().max() > 0.01
    assert torch.equal(untrained().vocode(mel, 1), untrained().vocode(mel, 2))
    (whole,) = grainy.pieces(mel)
    assert torch.equal(whole, grainy.vocode(mel))


def test_a_long_sound_goes_through_the_net_in_pieces(monkeypatch):
    vocoder = untrained(sampling=GRAINY)
    torch.nn.init.normal_(vocoder.net.head.out.weight, std=0.05)
    whole = vocoder.vocode(pictures())
    monkeypatch.setattr("soundmill.models.components.vocoding.PIECE_FRAMES", 9)
    torch.testing.assert_close(vocoder.vocode(pictures()), whole, atol=1e-4, rtol=0)


def weights_of(conf: str, root: Path, *more: str) -> IstftParams:
    document = compose(root / "conf", ["model=tango", f"vocoder={conf}", *more])
    return parse(IstftParams, document["vocoder"], "vocoder")


def batch(waves: np.ndarray = NOISE) -> Batch:
    return Batch(0, np.arange(2), (torch.from_numpy(log_mel(waves, TANGO))[..., :60], torch.from_numpy(waves[:, : 60 * 160])))


def test_the_loss_is_that_of_laplaces_distribution(root):
    module = make.LikelihoodModule(weights_of("istft_laptop", root).weights, MagnitudeNet(SMALL, TANGO), TANGO)
    real = module.spectrogram(torch.from_numpy(NOISE[:, : 60 * 160]))[..., 4:-5]
    median, spread = (values[..., 4:-4] for values in module.net(pictures()))
    heard = median > 0  # all but bins outside the filters
    assert 0.99 < heard.float().mean() < 1
    laplace = torch.distributions.Laplace(median[heard].log(), spread[heard])
    expected = -laplace.log_prob(real[heard].log()).mean() - np.log(2)
    assert float(module.loss(0, batch()).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_a_few_steps_lower_the_loss_and_silence_has_none(root):
    module = make.LikelihoodModule(weights_of("istft_laptop", root).weights, MagnitudeNet(SMALL, TANGO), TANGO)
    optimiser = torch.optim.AdamW(module.net.parameters(), 0.01)
    losses, tones = [], batch((NOISE / 10 + np.sin(np.arange(16_000) / 7)).astype(np.float32))
    for _ in range(12):
        loss = module.loss(0, tones)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    silent = Batch(0, np.arange(2), (torch.full((2, 64, 60), -11.5), torch.zeros(2, 60 * 160)))
    assert float(module.loss(0, silent).detach()) == 0.0


def test_vocos_trains_against_discriminators(root):
    params = weights_of("vocos", root, "vocoder.weights.discriminator_width=4").weights
    torch.manual_seed(0)
    net = build(WAVES, TANGO)
    module = make.VocoderModule(params, Istft(WAVES, TANGO, net, None), norms=False)
    before = module.valid_loss(0, batch())
    optimiser = torch.optim.AdamW(net.parameters(), 0.01)
    for _ in range(4):
        losses = module.losses(0, batch(), ["discriminator", "net"])
        next(losses)
        optimiser.zero_grad()
        next(losses).backward()
        optimiser.step()
    assert module.valid_loss(0, batch()) < 0.9 * before


CONFIG = """
feature_extractor:
  class_path: vocos.feature_extractors.MelSpectrogramFeatures
  init_args: {sample_rate: 24000, n_fft: 1024, hop_length: 256, n_mels: 100, padding: center}
backbone:
  class_path: vocos.models.VocosBackbone
  init_args: {input_channels: 100, dim: 512, intermediate_dim: 1536, num_layers: 8}
head:
  class_path: vocos.heads.ISTFTHead
  init_args: {dim: 512, n_fft: 1024, hop_length: 256, padding: center}
"""


def fetch(directory: Path, root: Path, spec: MelSpec = VOCOS, **network: int) -> Istft:
    (directory / "config.yaml").write_text(CONFIG)
    expected = LoadedParams(kind="load", name=str(directory), revision=None)
    sizes = weights_of("vocos_mel_24khz", root).network.model_copy(update=network)
    return make.load_published(expected, sizes, spec, directory.parent)[0]


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_it_equals_vocos(tmp_path, root, file):
    """From its own files, and from ours; log-mels are the same, too."""
    write = torch.save if file.endswith("bin") else save_file
    write(recorded.state("vocos"), tmp_path / file)
    model = fetch(tmp_path, root)
    assert size(model.net) == 13_531_650
    features = torch.from_numpy(log_mel(recorded.sound("noise", 0.6, 24_000)[None], VOCOS))
    recorded.check("vocos", "features", features)
    with torch.no_grad():
        waves = model.net(features)
    assert 0.05 < waves.std() < 1
    recorded.check("vocos", "waves", waves, 1e-5)
    output = model.vocode(features)
    assert output.shape == (1, 1, features.shape[2] * 256)
    inner = slice(0, waves.shape[1] - 40 * 256)  # the last frame, which is once more there, is seen by 27 others
    torch.testing.assert_close(output[0, :, inner], waves[:, inner], atol=1e-5, rtol=0)
    save_vocoder(model, tmp_path / "ours", {"kind": "load"})
    assert torch.equal(load(tmp_path / "ours", VOCOS).vocode(features), output)


def test_what_is_no_vocos_of_the_parameters_is_refused(tmp_path, root):
    with pytest.raises(UserError, match=r"has no model\.safetensors or pytorch_model\.bin.* vocoder\.weights\.name"):
        fetch(tmp_path, root)
    state = recorded.state("vocos", blank=True)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"sample_rate 24000, not 16000; hop_length 256, not 160; n_mels 100, not 64"):
        fetch(tmp_path, root, TANGO)
    with pytest.raises(UserError, match=r"layers is 8, vocoder\.network has 7"):
        fetch(tmp_path, root, layers=7)
    torch.save({**state, "head.out.bias": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: not the weights of VocosNet .*head\.out\.bias.*`vocoder=vocos`"):
        fetch(tmp_path, root)
    torch.save({**state, make.FILTERS: state[make.FILTERS] * 2}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"mel_scale\.fb differs from that of the spectrogram"):
        fetch(tmp_path, root)
    torch.save({"harm": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read as weights"):
        fetch(tmp_path, root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("padding: center}\nbackbone", "padding: same}\nbackbone"), "only a Vocos for log-mels with centred windows"),
        (("MelSpectrogramFeatures", "EncodecFeatures"), "only a Vocos for log-mels"),
        (("dim: 512, n_fft", "dim: 256, n_fft"), "only a Vocos for log-mels"),
        (("num_layers: 8", "depth: 8"), r"config\.yaml: no configuration of Vocos \(KeyError: 'num_layers'\)"),
        (("init_args: {sample", "args: {sample"), r"no configuration of Vocos \(KeyError: 'init_args'\)"),
    ],
)
def test_another_configuration_is_refused(tmp_path, root, monkeypatch, change, message):
    (tmp_path / "pytorch_model.bin").touch()
    monkeypatch.setattr("tests.models.components.test_istft.CONFIG", CONFIG.replace(*change))
    with pytest.raises(UserError, match=message):
        fetch(tmp_path, root)


def test_what_is_saved_is_loaded(tmp_path):
    model = untrained(sampling=GRAINY)
    save_vocoder(model, tmp_path / "one", {"kind": "train"})
    again = load(tmp_path / "one", TANGO)
    assert (again.network, again.sampling) == (SMALL, GRAINY)
    assert torch.equal(again.vocode(pictures(), 5), model.vocode(pictures(), 5))
