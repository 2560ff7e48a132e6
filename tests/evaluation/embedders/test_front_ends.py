"""What embedders of others do to sounds before their nets: windows, levels, channels; files with anything but tensors; YAMNet."""

import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchaudio.compliance import kaldi

from soundmill.errors import UserError
from soundmill.evaluation import embedders, features
from soundmill.evaluation.embedders import openl3, passt, vggish, yamnet
from soundmill.evaluation.embedders.panns import NUMPY, Cnn14Embedder
from soundmill.training import torch_weights
from tests import recorded


@pytest.mark.parametrize("seconds", [0.00003, 0.2, 0.5, 0.75, 1.0, 1.9, 2.1])
@pytest.mark.parametrize("hop", [0.1, 0.5])
def test_windows_are_torchopenl3s(seconds, hop):
    wave = np.arange(1, 1 + round(seconds * openl3.SAMPLE_RATE), dtype=np.float32)
    cut = recorded.thinned(openl3.windows(wave, int(hop * openl3.SAMPLE_RATE)), 50)
    np.testing.assert_array_equal(cut, recorded.said("openl3_env")[f"windows of {seconds} s every {hop}"])


class Harmful:
    """Would write a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("format", [True, False])
def test_a_file_with_anything_but_tensors_is_refused(tmp_path, format):
    path, touched = tmp_path / "cnn14.pth", tmp_path / "touched"
    for thing in (Harmful(touched), datetime.date(2020, 1, 1), print, np.array([Harmful(touched)])):
        torch.save({"model": {}, "sampler": thing}, path, _use_new_zipfile_serialization=format)
        with pytest.raises(UserError, match=r"cannot be read as weights .* fetch it again"):
            Cnn14Embedder("panns_cnn14_16k", path)
    assert not touched.exists()
    torch.save({"model": np.arange(3)}, path, _use_new_zipfile_serialization=format)
    with pytest.raises(UserError, match="cannot be read as weights"):
        torch_weights.read_checkpoint(path)  # arrays of numpy only where they are allowed
    content = path.read_bytes()
    random = np.random.default_rng(0)
    flipped = [bytes(random.integers(256) if random.random() < 0.2 else byte for byte in content) for _ in range(20)]
    for damaged in (b"", content[: len(content) // 2], b"\x80" + content, bytes(1000), *flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read as weights"):
            torch_weights.read_checkpoint(path, NUMPY)


def test_the_filters_are_kaldis():
    expected, _ = kaldi.get_mel_banks(128, 1024, 32_000, 0.0, 15_000.0, 100.0, -500.0, 1.0)
    np.testing.assert_allclose(passt.mel_filters(), nn.functional.pad(expected, (0, 1)), atol=2e-5)


@pytest.mark.parametrize(
    ("front_end", "seconds", "starts", "lengths"),
    [
        ("hear21passt", 1, [0], [1]),
        ("hear21passt", 10, [0], [10]),
        ("stable-audio-metrics", 1, [0], [1]),
        ("stable-audio-metrics", 1.5, [0], [1.5]),
        ("stable-audio-metrics", 2, [0], [10]),
        ("stable-audio-metrics", 10, [0], [10]),
        ("stable-audio-metrics", 12, [0, 5], [10, 10]),
        ("stable-audio-metrics", 20, [0, 5, 10], [10] * 3),
        ("stable-audio-metrics", 21, [0, 5, 10, 15], [10] * 4),
        ("av-benchmark", 1, [0], [10]),
        ("av-benchmark", 12, [0], [10]),
    ],
)
def test_every_tool_has_its_own_windows(front_end, seconds, starts, lengths):
    wave = np.arange(1, 1 + round(seconds * passt.SAMPLE_RATE), dtype=np.float32)
    cut = passt.FRONT_ENDS[front_end](wave)
    assert [(window[0] - 1) / passt.SAMPLE_RATE for window in cut] == starts
    assert [len(window) / passt.SAMPLE_RATE for window in cut] == lengths
    assert sum(np.count_nonzero(window) for window in cut) == sum(
        min(len(window), len(wave) - round(start * passt.SAMPLE_RATE)) for start, window in zip(starts, cut, strict=True)
    )


def test_a_long_scene_is_reflected_at_its_ends():
    """As in hear21passt."""
    cut = passt.scene(recorded.sound("noise", 11.0, passt.SAMPLE_RATE))
    np.testing.assert_array_equal(recorded.thinned(np.stack(cut)), recorded.said("passt")["windows"])
    assert [window[passt.WINDOW // 2] / passt.SAMPLE_RATE for window in passt.scene(np.arange(12.0 * passt.SAMPLE_RATE))] == [
        0,
        2.5,
        5,
        7.5,
        10,
    ]


def test_no_sound_has_no_window():
    for windows in passt.FRONT_ENDS.values():
        assert sum(map(len, windows(np.zeros(0, np.float32)))) == 0


@pytest.mark.parametrize(
    ("num_samples", "count"), [(0, 0), (1, 0), (15_599, 0), (15_600, 1), (30_959, 1), (30_960, 2), (160_000, 10), (160_240, 10)]
)
def test_an_incomplete_patch_is_dropped(num_samples, count):
    result = vggish.patches(np.zeros(num_samples, np.float32), vggish.FRONT_ENDS["torchvggish"])
    assert result.shape == (count, 96, 64)
    np.testing.assert_array_equal(result, np.float32(np.log(np.float32(0.01))))


@pytest.mark.parametrize(("num_samples", "count"), [(15_999, 0), (16_000, 1), (23_999, 1), (24_000, 2), (160_000, 19)])
def test_google_wants_whole_seconds_every_half(num_samples, count):
    assert len(vggish.patches(np.zeros(num_samples, np.float32), vggish.FRONT_ENDS["google-fad"])) == count


@pytest.mark.parametrize("seconds", [0.975, 2.5])
def test_log_mels_are_torchvggishs(seconds):
    result = vggish.patches(recorded.sound("noise", seconds, 16_000), vggish.FRONT_ENDS["torchvggish"])
    assert result.dtype == np.float32
    recorded.check("vggish", f"log-mels of {seconds} s", result, 1e-6)


@pytest.mark.parametrize("loudness", [0.05, 4.0])  # below the least peak that is divided by, and above full scale
def test_log_mels_of_google_are_of_one_second_each(loudness):
    wave = recorded.sound("noise", 3.3, 16_000) * np.float32(loudness)
    recorded.check("vggish", f"google at {loudness}", vggish.patches(wave, vggish.FRONT_ENDS["google-fad"]), 1e-6)


def test_an_unknown_embedder_or_front_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="passt: unknown front end 'hear21pass'; did you mean 'hear21passt'"):
        passt.PasstEmbedder(tmp_path, front_end="hear21pass")
    with pytest.raises(UserError, match="did you mean 'google-fad'"):
        vggish.VggishEmbedder(tmp_path, front_end="google_fad")
    with pytest.raises(UserError, match="did you mean 'yamnet'"):
        embedders.load("yamnett", tmp_path)
    with pytest.raises(UserError, match="yamnet: unknown option 'front_end'; it has none"):
        embedders.load("yamnet", tmp_path, front_end="google-fad")


@pytest.mark.parametrize(
    ("num_samples", "count"), [(1, 1), (15_599, 1), (15_600, 1), (23_279, 1), (23_280, 2), (80_000, 9), (160_000, 19)]
)
def test_incomplete_last_window_is_dropped_and_a_short_wave_padded(num_samples, count):
    wave = np.arange(1, num_samples + 1, dtype=np.float32)
    result = list(yamnet.windows(wave))
    assert len(result) == count
    for index, window in enumerate(result):
        assert window.shape == (15_600,)
        held = min(num_samples, 15_600)
        np.testing.assert_array_equal(window[:held], wave[index * 7_680 : index * 7_680 + held])
        assert not window[held:].any()


@pytest.fixture(scope="module")
def network(shared):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
        return embedders.load("yamnet", shared)


def test_values_are_dequantised(network):
    wave = features.synthetic_wave("noise", "any", 80_000, 0)
    result = network.embed([wave, wave[:4_000]])
    assert [part.shape for part in result.frames] == [(9, 1024), (1, 1024)]
    assert result.logits.shape == (2, 521)
    for part in result.frames:
        assert part.min() == 0  # rectified and pooled
        assert 0.5 < part.max() < 6
        steps = part / np.float32(0.0223283507)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert -80 < result.logits.min() < result.logits.max() < 10  # logits, not the sigmoid of them


def test_another_quantisation_is_refused(network, shared, monkeypatch):
    monkeypatch.setattr(yamnet, "EMBEDDING", yamnet.EMBEDDING._replace(scale=0.5))
    with pytest.raises(UserError, match="quantised as"):
        yamnet.YamnetEmbedder(shared / "models" / "yamnet.tflite")
    monkeypatch.setattr(yamnet, "EMBEDDING", yamnet.EMBEDDING._replace(suffix="/layer99/nothing"))
    with pytest.raises(UserError, match="0 tensors"):
        yamnet.YamnetEmbedder(shared / "models" / "yamnet.tflite")


def test_one_wave_does_not_depend_on_the_others(network):
    waves = [features.synthetic_wave("noise", name, 40_000, 0) * scale for name, scale in (("a", 1.0), ("b", 0.1), ("c", 0.01))]
    together, alone = network.embed(waves), network.embed(waves[1:2])
    np.testing.assert_array_equal(together.frames[1], alone.frames[0])
    np.testing.assert_array_equal(together.logits[1], alone.logits[0])


@pytest.mark.parametrize("num_samples", [4_000, 23_280, 40_000, 80_000])  # of 1, 2, 4 and 9 windows
def test_the_parts_say_what_the_whole_graph_says(network, shared, num_samples):
    """Bit by bit: no frame of the spectrogram depends on the window that it was made in."""
    from ai_edge_litert.interpreter import Interpreter

    with pytest.warns(UserWarning, match="debugging purposes"):
        whole = Interpreter(str(shared / "models" / "yamnet.tflite"), experimental_preserve_all_tensors=True, num_threads=1)
    whole.allocate_tensors()
    named = {tensor["name"]: tensor for tensor in whole.get_tensor_details()}
    frames, logits = (
        next(tensor for name, tensor in named.items() if name.endswith(tensor_spec.suffix))
        for tensor_spec in (yamnet.EMBEDDING, yamnet.LOGITS)
    )
    wave = features.synthetic_wave("noise", "any", num_samples, 0) * np.linspace(0.01, 1, num_samples, dtype=np.float32)
    expected = []
    for window in yamnet.windows(wave):
        whole.set_tensor(whole.get_input_details()[0]["index"], window)
        whole.invoke()
        real = []
        for tensor in (frames, logits):
            scale, zero_point = tensor["quantization"]
            values = whole.get_tensor(tensor["index"]).ravel().astype(np.int32)
            real.append(((values - zero_point) * np.float64(scale)).astype(np.float32))
        expected.append(real)
    result = network.embed([wave])
    np.testing.assert_array_equal(result.frames[0], np.stack([real[0] for real in expected]))
    mean = np.stack([real[1] for real in expected]).mean(axis=0, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(result.logits[0], mean)
