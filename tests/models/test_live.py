"""RAVE exported and played: blocks as the whole, in plain torch, as nn~ reads it, and its decoder in onnxruntime."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from soundmill.audio.pieces import Sound, window_starts
from soundmill.errors import UserError
from soundmill.models import live, streaming, transforming
from soundmill.models.components.contracts import save_codec
from soundmill.models.components.rave import NetworkParams
from soundmill.models.components.rave import codec as codecs
from soundmill.models.components.rave.codec import RaveCodec
from soundmill.models.components.rave.network import RaveNet
from soundmill.models.streaming import Live, even, scripted
from tests import recorded
from tests.commands.running import soundmill, works
from tests.models.components import test_rave

V2, V1, STARTED = (one.model_copy(update={"latent_channels": 8}) for one in (test_rave.SMALL, test_rave.FIRST, test_rave.STARTED))
RATIO, RATE = 32, 16_000


def codec(sizes: NetworkParams, rank: int = 8, phase: int = 2, causal: bool = False) -> RaveCodec:
    """Of weights that pass sound on, and batch norms that have seen some."""
    torch.manual_seed(0)
    sizes = sizes.model_copy(update={"causal": causal})
    net = RaveNet(sizes).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.1), module.running_var.uniform_(0.5, 2)
        for weight in net.parameters():
            weight.mul_(1.3)
        net.rotation.copy_(torch.linalg.qr(torch.randn(8, 8))[0]), net.center.normal_(), net.spread[:rank].uniform_(0.5, 2)
    return RaveCodec(net=net, network=sizes, sample_rate=RATE, phase=phase, fidelity=0.95, rank=rank)


def sound(length: int = 8192) -> torch.Tensor:
    return 0.3 * torch.randn(1, 1, length, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sizes", [V1, V2, STARTED], ids=["v1", "v2", "pca"])
@pytest.mark.parametrize("causal", [False, True])
def test_blocks_give_what_the_whole_does(sizes, causal):
    """With latents left out, and noise."""
    model = codec(sizes, rank=3, causal=causal)
    given, whole = sound(4096), scripted(model, 4)(sound(4096))
    for size in (RATIO, 2048):
        again = scripted(model, 4)
        torch.testing.assert_close(torch.cat([again(block) for block in given.split(size, 2)], 2), whole, atol=3e-5, rtol=0)
    assert (whole[..., 1000:] - scripted(model, 4)(0 * given)[..., 1000:]).abs().max() > 1e-3


@pytest.mark.parametrize("sizes", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("causal", [False, True])
def test_live_it_is_the_codec_itself(sizes, causal):
    """Where nothing is drawn: what the codec makes of the sound after silence, later by what is told."""
    model = codec(sizes, phase=1, causal=causal)
    played, parts = scripted(model, 8), Live(model, 8)
    given, silence = sound(), 64 * RATIO
    at_once = model.decode(model.encode(torch.cat([torch.zeros(1, 1, silence + parts.offset), given], 2)))[..., silence:]
    length = 8192 - parts.lag - 1000  # the codec sees zeros behind the sound
    output = torch.cat([played(block) for block in given.split(2048, 2)], 2)
    torch.testing.assert_close(output[..., parts.lag : parts.lag + length], at_once[..., :length], atol=1e-5, rtol=0)
    assert output.std() > 1e-3
    assert played.get_latency() == parts.offset + parts.lag
    assert played.get_latency() == 4 * 23 if causal else played.get_latency() > 4 * 23  # the filter bank's alone: 23 frames of 4


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("causal", [False, True])
def test_components_are_encoded_and_decoded_in_time(version, causal, monkeypatch):
    """With the same constant for all that is drawn, the stream is the codec itself."""
    model = codec(STARTED.model_copy(update={"version": version}), causal=causal)
    clips = sound(64 * 512).reshape(64, 1, 1, 512) * torch.linspace(0.01, 1, 64)[:, None, None, None]
    model.net.start_from_components(iter(clips), "pca")
    for weight in model.net.parameters():  # silent layers speak again
        weight.data += 0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(streaming, "even", lambda first, count: torch.full((count,), 0.75, dtype=torch.float64))
    monkeypatch.setattr(model.net, "draw_noise", lambda latents, rng: torch.full((1, latents.shape[2] * 2, 4, 4), 0.5))
    parts, silence, given = Live(model, 8), 64 * RATIO, sound() * torch.linspace(0, 1, 8192)
    parts(torch.zeros(1, 1, silence))
    at_once = model.decode(model.encode(torch.cat([torch.zeros(1, 1, silence + parts.offset), given], 2)))[..., silence:]
    made = torch.cat([parts(block) for block in given.split(2048, 2)], 2)
    length = 8192 - parts.lag - 1000
    torch.testing.assert_close(made[..., parts.lag : parts.lag + length], at_once[..., :length], atol=1e-5, rtol=0)
    assert made.std() > 1e-3


def test_what_is_drawn_is_even_of_its_place_and_after_hours_still_a_number():
    drawn = even(-5, 100_000)
    assert torch.equal(even(1000, 50), drawn[1005:1055])
    assert 0 < drawn.min() < 1e-3
    assert 0.999 < drawn.max() < 1
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(drawn.var()) == pytest.approx(1 / 12, rel=0.02)
    spectrum = torch.fft.rfft(drawn - 0.5).abs().square()
    assert spectrum.max() < 30 * spectrum.mean()
    drawn = even(-(1 << 40) + 61_824_160, 3)
    assert 0 < drawn.min() < drawn.max() < 1
    model = scripted(codec(V1, rank=3), 4)
    model.position = 61_824_161 // 4  # four are left out
    assert torch.isfinite(model.decode(torch.zeros(1, 4, 2))).all()


@pytest.mark.parametrize("size", [1, 31, 33, 2000])
def test_a_block_that_the_ratio_does_not_divide_is_refused(size):
    model = scripted(codec(V2), 8)
    lower = max(32, size // 32 * 32)
    with pytest.raises(Exception, match=rf"a block of {size} samples: .* multiples of 32, such as {lower} and {lower + 32}"):
        model(torch.zeros(1, 1, size))


def test_items_of_a_batch_do_not_mix():
    model, given = codec(V2), torch.cat([sound(1024), 0 * sound(1024)])
    together, alone = scripted(model, 8)(given), scripted(model, 8)(given[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A codec on disk, of rank 3."""
    path = tmp_path_factory.mktemp("codec") / "rave"
    save_codec(codec(V1, rank=3), path, {})
    return path


def test_exports_what_plain_torch_plays(tmp_path, directory):
    done = works("export", str(directory), "--streaming", "--output", "live.ts", cwd=tmp_path)
    assert "latency 376 samples (23.5 ms at 16000 Hz) plus a block, a multiple of 32 (2.0 ms)" in done.stdout
    code = """
import sys, torch
sys.path = [path for path in sys.path if path]  # not where Soundmill lies
model = torch.jit.load("live.ts").eval()
assert not any(name.startswith("soundmill") for name in sys.modules)
rate, wave = model.get_sample_rate(), torch.linspace(-1, 1, 4096)[None, None]
made = torch.cat([model(block) for block in wave.split(2048, 2)], 2)
coded = model.encode(wave)
torch.save([rate, made, coded, model.decode(coded)], "made.pt")
"""
    plain = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin"})
    assert plain.returncode == 0, plain.stderr
    rate, output, coded, decoded = torch.load(tmp_path / "made.pt", weights_only=True)
    assert (rate, output.shape, coded.shape, decoded.shape) == (RATE, (1, 1, 4096), (1, 4, 128), (1, 1, 4096))
    model = scripted(codecs.load(directory), 4)
    torch.testing.assert_close(model(torch.linspace(-1, 1, 4096)[None, None]), output, atol=1e-5, rtol=0)
    with zipfile.ZipFile(tmp_path / "live.ts") as parts:
        (about,) = (json.loads(parts.read(name)) for name in parts.namelist() if name.endswith(live.ABOUT))
    assert (about["latency"], about["latents"], about["phase"]) == (376, 4, 2)


def test_nn_tilde_would_register_the_same():
    """Its methods with their numbers and labels, and its attributes, of a module with the same signatures."""
    theirs, ours = recorded.said("nn_tilde"), scripted(codec(V1, rank=3), 4)
    assert ours.get_methods() == list(theirs["methods"]) == ["forward", "encode", "decode"]
    assert ours.get_attributes() == list(theirs["attributes"]) == []
    assert ours.get_sample_rate() == theirs["rate"]
    for name in ours.get_methods():
        numbers = getattr(ours, f"{name}_params")
        assert numbers.numpy().dtype == theirs[f"{name}_params"].dtype
        assert numbers.tolist() == theirs[f"{name}_params"].tolist()
        for labels in (f"{name}_input_labels", f"{name}_output_labels"):
            assert getattr(ours, labels) == list(theirs[labels])
        channels, ratio, output, made_ratio = numbers.tolist()
        for batch in (1, 4):  # what it tests of a method that is registered
            answer = getattr(ours, name)(torch.zeros(batch, channels, 8192 // ratio))
            assert answer.shape == (batch, output, 8192 // made_ratio)
            assert answer.dtype == torch.float32


@pytest.mark.slow(minutes=1)
def test_onnxruntime_decodes_the_same(tmp_path, directory):
    onnxruntime = pytest.importorskip("onnxruntime")
    done = works("export", str(directory), "--output", "decoder.onnx", cwd=tmp_path)
    told = "latents: 1 × 4 × frames\nleft_out: 1 × 4 × frames\nnoise: 1 × 2 · frames × 4 × 4\ndecoder.onnx"
    assert done.stdout.strip() == told
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx")
    model = codecs.load(directory)
    for frames in (1, 11):  # another length than it was traced with
        latents = torch.randn(1, 8, frames)
        noise = model.net.draw_noise(latents, None)
        given = {"latents": latents[:, :4], "left_out": latents[:, 4:], "noise": noise}
        (output,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        with torch.no_grad():
            expected = live.Decoder(model.net)(**given)
        assert output.shape == (1, 1, 32 * frames)
        np.testing.assert_allclose(output, expected.numpy(), atol=1e-5)


def write(path: Path, channels: int, rate: int, seconds: float = 0.5) -> Path:
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels)), rate)
    return path


def test_transfers_any_recording(tmp_path, directory):
    """Stereo, another rate, shorter than a latent; a latent moved on the way."""
    write(tmp_path / "voice.wav", 2, 44_100), write(tmp_path / "click.wav", 1, RATE, 0.001)
    soundfile.write(tmp_path / "silence.wav", np.zeros(3000), RATE)
    names = ["voice", "click", "silence"]
    common = [*(f"{name}.wav" for name in names), "--checkpoint", str(directory)]
    works("transfer", *common, cwd=tmp_path)
    works("transfer", *common, "--latent", "0=+3", "--output", "moved", cwd=tmp_path)
    plain = {name: soundfile.read(tmp_path / f"transferred/{name}.wav") for name in names}
    assert {name: len(wave) for name, (wave, _) in plain.items()} == {"voice": 8000, "click": 16, "silence": 3000}
    assert {rate for _, rate in plain.values()} == {RATE}
    assert np.abs(soundfile.read(tmp_path / "moved/voice.wav")[0] - plain["voice"][0]).max() > 0.001
    assert (tmp_path / "transferred/spectrograms.png").exists()
    wrong = soundmill("transfer", "voice.wav", "--checkpoint", str(directory), "--latent", "3=1", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "latents 0 to 2" in wrong.stderr


def test_what_is_not_finite_is_refused(tmp_path, directory):
    source = live.Trained(codecs.load(directory), ["0=*1e38", "0=*1e38"])
    with pytest.raises(UserError, match="voice: the model's output is not finite; use smaller latent edits"):
        transforming.transfer(source, {"voice": Sound(RATE, 1, 1000, lambda: [sound(1000)[0].T.numpy()])}, tmp_path / "out")


def test_a_seed_chooses_what_is_drawn(directory):
    first, again, other = (live.Trained(codecs.load(directory), [], seed).process(sound()) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3


def test_a_long_sound_goes_through_in_windows(directory, monkeypatch):
    from soundmill.models.sounds import overlap_of

    monkeypatch.setattr(live, "WINDOW_SECONDS", 0.25)
    source = live.Trained(codecs.load(directory), [])
    source.codec.phase = 1
    source.codec.rank = 8
    given = sound(16_384)[0]
    output = torch.cat(list(source.stream([given], 16_384)), 1)
    whole = source.process(given[None])[0]
    assert output.shape == whole.shape
    starts = window_starts(16_384, source.num_samples, overlap_of(source))
    assert starts == [0, 3000, 6000, 9000, 12_000, 12_384]  # between latents, but for the first and last
    difference = (output - whole).abs()[0]
    for start in starts[:-2]:  # a window knows nothing beyond its ends, and fades into the next over its last 1,000 samples
        assert difference[start + 1000 : start + 3000].max() < 1e-6
        assert difference[start + 3000 : start + 4000].max() < 0.1 * whole.abs().max()


def test_a_published_file_is_run_only_if_trusted(tmp_path, directory, monkeypatch):
    """Ours as one; and it gives what the codec does, with its latency taken away."""
    write(tmp_path / "voice.wav", 1, RATE)
    live.export_streaming(tmp_path / "model.ts", codecs.load(directory))
    refused = soundmill("transfer", "voice.wav", "--checkpoint", "model.ts", cwd=tmp_path)
    assert refused.returncode == 1
    assert "a TorchScript file runs code when loaded; add --trust" in refused.stderr
    assert not (tmp_path / "transferred").exists()
    works("transfer", "voice.wav", "--checkpoint", "model.ts", "--trust", "--latent", "1=*0.5", cwd=tmp_path)
    assert soundfile.info(tmp_path / "transferred/voice.wav").frames == 8000
    source = live.read(tmp_path / "model.ts", [], True, None)
    model, offset = scripted(codecs.load(directory), 4), 376
    given = sound(4096)
    expected = model(torch.nn.functional.pad(given, (0, 384)))[..., offset : offset + 4096]
    torch.testing.assert_close(streamed(source, given), expected, atol=1e-5, rtol=0)
    streamed(source, sound(2048).flip(2))  # another sound in between
    torch.testing.assert_close(streamed(source, given), expected, atol=1e-5, rtol=0)
    monkeypatch.setattr(live, "BLOCK", 500)
    torch.testing.assert_close(streamed(source, given), expected, atol=1e-5, rtol=0)


def streamed(source: live.Published, waves: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(source.stream(waves[0].split(1000, 1), waves.shape[2])), 1)[None]


class Drawing(torch.nn.Module):
    """A model of nn~'s kind that adds noise of torch's own generator."""

    def __init__(self):
        super().__init__()
        self.register_buffer("forward_params", torch.tensor([1, 1, 1, 1]))

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        return waves + 0.1 * torch.randn_like(waves)


def test_a_published_model_that_draws_gives_the_same_for_a_seed(tmp_path):
    torch.jit.script(Drawing()).save(str(tmp_path / "drawing.ts"))
    first, other = (live.read(tmp_path / "drawing.ts", [], True, RATE, seed) for seed in (0, 1))
    state = torch.random.get_rng_state()
    output = streamed(first, sound())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(streamed(first, sound()), output)
    assert not torch.equal(streamed(other, sound()), output)


def test_the_same_codec_is_exported_to_the_same_bytes(tmp_path, directory):
    for name in ("one.ts", "other.ts"):
        live.export_streaming(tmp_path / name, codecs.load(directory))
    assert (tmp_path / "one.ts").read_bytes() == (tmp_path / "other.ts").read_bytes()


def test_what_cannot_be_a_codec_is_refused(tmp_path, directory):
    with pytest.raises(UserError, match="no RAVE codec here; name data/rave/autoencoder"):
        live.read(tmp_path / "nothing", [], False, None)
    for config, said in (
        ({"kind": "unet1d", "scaling_factor": 1.0}, "codec of kind 'unet1d'"),
        ({"kind": "istft"}, "vocoder of kind"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"a {said}.*; only kind 'rave' is supported here"):
            live.read(tmp_path, [], False, None)
    (tmp_path / "broken.ts").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as TorchScript"):
        live.read(tmp_path / "broken.ts", [], True, None)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / "other.ts"))
    with pytest.raises(UserError, match="does not state its sample rate; give --sample-rate"):
        live.read(tmp_path / "other.ts", [], True, None)
    with pytest.raises(UserError, match="no nn~ method `forward` or `encode`"):
        live.read(tmp_path / "other.ts", [], True, 48_000)


def test_an_export_of_phase_1_is_told(tmp_path):
    save_codec(codec(V2, phase=1), tmp_path / "rave", {})
    done = works("export", "rave", "--streaming", cwd=tmp_path)
    assert "trained in phase 1 only" in done.stdout
    assert (tmp_path / "rave.ts").exists()
