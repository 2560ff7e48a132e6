"""Embedders with published weights, at random ones: each against what its original said, and files that are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import references
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import audiobox, clap, msclap, openl3, panns
from tests import clap_weights, recorded

TOO_SHORT = {"vggish": 15_599, "passt": 4_800}  # samples; of others, none are
C, O, T = "panns_cnn14_16k", "openl3_env", "clap_music_speech"


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """$SOUNDMILL_WEIGHTS with the files of `clap`, whose tokenizer knows few words, and a tokenizer that has no merges."""
    directory = tmp_path_factory.mktemp("weights")
    clap_weights.write(directory / clap.NAME)
    references.write_gpt2_tokenizer(directory / msclap.TOKENIZER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDMILL_WEIGHTS", str(directory))
        yield directory


@pytest.fixture(scope="module", params=references.ORIGINALS)
def ours(request, place):
    path = recorded.write(request.param, place / "published")
    yield embedders.find(request.param).load(path)
    path.unlink()  # up to 800 MB


@pytest.mark.slow(minutes=0.3)
def test_it_says_what_its_original_says(ours, request):
    """Of each sound, whatever else it is asked about; nothing of one that is too short."""
    name = request.node.callspec.params["ours"]
    short = np.zeros(TOO_SHORT.get(name, 0), np.float32)
    if name in references.CNN14:  # they hear silence after it
        short = np.zeros(2 * ours.sample_rate, np.float32)
    waves = [short, *recorded.sounds(name)]
    result = ours.embed(waves)
    recorded.check(name, "frames", np.concatenate(result.frames[1:]))
    assert len(result.frames[0]) == (name in references.CNN14)
    assert np.std(np.concatenate(result.frames[1:]), axis=0).max() > 0.01 or len(waves) == 2  # it hears a difference
    assert len(result.logits) == len(waves)
    if "logits" in recorded.said(name):
        recorded.check(name, "logits", result.logits[1:])
    else:
        assert result.logits.shape[1] == 0
    nothing = ours.embed([])
    assert (nothing.frames, nothing.logits.shape) == ([], (0, result.logits.shape[1]))
    if name in recorded.TEXTS:
        recorded.check(name, "texts", ours.embed_texts(recorded.TEXTS[name]))
        assert ours.embed_texts([]).shape == (0, result.frames[1].shape[1])


@pytest.mark.parametrize("ours", ["audiobox"], indirect=True)
def test_windows_are_weighted_by_their_length(ours, monkeypatch):
    """Sounds of a frame, of nearly a window, of one and of more, by windows of two seconds to be short."""
    assert audiobox.WINDOW == 10 * audiobox.SAMPLE_RATE
    monkeypatch.setattr(audiobox, "WINDOW", 2 * audiobox.SAMPLE_RATE)
    frames = ours.embed([*recorded.sounds("audiobox_short"), np.zeros(0, np.float32)]).frames
    assert [part.shape for part in frames] == [(1, 4)] * 4 + [(0, 4)]
    recorded.check("audiobox", "by short windows", np.concatenate(frames))


@pytest.mark.parametrize("ours", ["msclap"], indirect=True)
def test_a_long_sound_has_several_windows_and_a_long_text_is_cut(ours):
    wave = recorded.sound("noise", 8, msclap.SAMPLE_RATE)
    whole, first, last = ours.embed([wave, wave[: 7 * msclap.SAMPLE_RATE], wave[-7 * msclap.SAMPLE_RATE :]]).frames
    np.testing.assert_allclose(whole, np.concatenate([first, last]), atol=1e-5)
    assert not np.allclose(first, last, atol=1e-3)
    assert ours.embed_texts(["rain " * 500]).shape == (1, 1024)  # longer than GPT-2's input, which msclap cannot embed


@pytest.mark.parametrize("ours", ["openl3_env"], indirect=True)
def test_the_hop_and_the_channels_are_options(ours, place):
    path = place / "published"
    stereo = openl3.OpenL3Embedder("openl3_env", path, hop=0.25, channels=2)
    left, right = recorded.sound("noise", 0.5, openl3.SAMPLE_RATE), recorded.sound("noise", 1.0, openl3.SAMPLE_RATE)[24_000:]
    both, mono = stereo.embed([np.stack([left, right]), np.stack([left, left])]).frames
    np.testing.assert_allclose(mono[:, :512], mono[:, 512:], atol=1e-6)
    np.testing.assert_allclose(both[:, :512], mono[:, :512], atol=1e-4)
    recorded.check("openl3_env", "left", both[:, :512])
    recorded.check("openl3_env", "right", both[:, 512:])
    (hum,) = ours.embed([recorded.sound("hum", 0.5, openl3.SAMPLE_RATE)]).frames
    recorded.check("openl3_env", "hum", hum)  # which has bands without sound: there torchopenl3 hears its own rounding
    with pytest.raises(UserError, match=r"openl3_env: 3 channels; it has 1 .* or 2"):
        openl3.OpenL3Embedder("openl3_env", path, channels=3)
    with pytest.raises(UserError, match="openl3_env: a hop of 0 seconds"):
        openl3.OpenL3Embedder("openl3_env", path, hop=0)


@pytest.mark.parametrize("ours", ["panns_cnn14_16k"], indirect=True)
def test_silence_after_a_short_sound_and_a_constant_change_nothing(ours):
    """Other tools subtract the mean, which makes no difference."""
    wave = recorded.sound("noise", 1.0, ours.sample_rate)
    longer = np.pad(wave, (0, ours.sample_rate))
    short, padded, shifted, long, other = ours.embed([wave, longer, longer + np.float32(0.1), *[np.tile(wave, 3)] * 2]).frames
    np.testing.assert_array_equal(short, padded)
    np.testing.assert_allclose(shifted, padded, atol=1e-4)
    np.testing.assert_array_equal(long, other)
    assert not np.allclose(long, short, atol=0.01)


def without(state: dict, part: str) -> dict:
    return {key: values for key, values in state.items() if part not in key}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vggish", lambda state: state | {"pproc.means": torch.zeros(1)}, r"Unexpected key.*pproc\.means"),
        ("vggish", lambda state: without(state, "features.0.bias"), r"Missing key.*features\.0\.bias"),
        ("vggish", lambda state: state | {"features.0.bias": torch.zeros(1)}, "size mismatch"),
        (C, lambda state: without(state, "melW"), "not the weights of Cnn14 .*Missing key.*melW"),
        (
            C,
            lambda state: state | dict.fromkeys([panns.TRANSFORM[0]], torch.zeros(257, 1, 512)),
            "conv_real.weight: not the Fourier",
        ),
        (O, lambda state: without(state, "dft_imag"), "dft_imag_kernels: not the Fourier transform of 2048 samples"),
        (O, lambda state: state | {"speclayer.mel_basis": torch.zeros(128, 1025)}, "not the weights of OpenL3"),
        (O, lambda state: without(state, "conv2d_3.bias"), r"Missing key.*conv2d_3\.bias"),
        ("passt", lambda state: {"norm.weight": state["norm.weight"]}, "not the weights of Passt"),
        (T, lambda state: without(state, ".layers."), "not the weights of ClapModel .*Missing key"),
        ("msclap", lambda state: without(state, ".layers."), "not the weights of MsClap .*Missing key.*audio_model"),
        ("audiobox", lambda state: {"layer_weights.CE": torch.zeros(13)}, "not the weights of ModuleDict .*Missing key"),
    ],
)
def test_weights_of_other_networks_are_refused(tmp_path, name, change, message):
    references.write_published(name, change(recorded.state(name, blank=True)), tmp_path / "other")
    with pytest.raises(UserError, match=f"/other: .*{message}"):
        embedders.find(name).load(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vggish", "not the weights of Vggish"),
        (C, "it has no 'model'"),
        ("openl3_env", "not a checkpoint of torchopenl3"),
        ("passt", "not a checkpoint of PaSST"),
        (T, "not a checkpoint of laion_clap"),
        ("msclap", "not a checkpoint of msclap"),
        ("audiobox", "weights cannot be read"),
    ],
)
def test_other_files_are_refused(tmp_path, name, message):
    torch.save([torch.zeros(1)], tmp_path / "other")
    with pytest.raises(UserError, match=f"/other: .*{message}"):
        embedders.find(name).load(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "repository", "file"),
    [("clap_music_speech", clap.NAME, "preprocessor_config.json"), ("msclap", msclap.TOKENIZER, "tokenizer.json")],
)
def test_missing_files_are_named(tmp_path, monkeypatch, name, repository, file):
    weights = embedders.find(name).weights.file
    assert f"{weights} is not in" in embedders.unavailable(name)
    assert f"run `soundmill weights fetch {name}`" in embedders.unavailable(name)
    (tmp_path / weights).touch()
    (tmp_path / repository).mkdir(parents=True)
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    assert f"has no {file}" in embedders.unavailable(name)
    assert f"into the directory $SOUNDMILL_WEIGHTS/{repository}" in embedders.unavailable(name)


def test_other_tokenizers_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    (tmp_path / "CLAP_weights_2023.pth").touch()
    directory = tmp_path / msclap.TOKENIZER
    directory.mkdir(parents=True)
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        msclap.load_tokenizer(directory)
    content = Path(place / msclap.TOKENIZER / "tokenizer.json").read_text()
    (directory / "tokenizer.json").write_text(content.replace("50256", "50255").replace("unused 50255", "unused"))
    with pytest.raises(UserError, match=r"tokenizer\.json: "):
        msclap.load_tokenizer(directory)
    assert embedders.unavailable("msclap") is None  # whether it is the right one shows when it is loaded
