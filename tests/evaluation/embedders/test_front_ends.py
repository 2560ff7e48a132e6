"""What embedders of others do to sounds before their nets: windows, levels, channels; files with anything but tensors; YAMNet; and
texture statistics: each kind against sounds whose statistics are known, and what they hear of real recordings."""

import datetime
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchaudio.compliance import kaldi

from bench.distances import frechet_of_rows
from soundmill.decoding.decode import read_mono
from soundmill.errors import UserError
from soundmill.evaluation import degradations, embedders, features
from soundmill.evaluation.embedders import openl3, passt, texture, vggish, yamnet
from soundmill.evaluation.embedders.base import mel_filters
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
    filters = mel_filters(np.linspace(0, 16_000, 513), 0, 15_000, 128)
    np.testing.assert_allclose(filters.T, nn.functional.pad(expected, (0, 1)), atol=2e-5)


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
    middles = [window[passt.WINDOW // 2] / passt.SAMPLE_RATE for window in passt.scene(np.arange(12.0 * passt.SAMPLE_RATE))]
    assert middles == [0, 2.5, 5, 7.5, 10]


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
    with pytest.raises(UserError, match="no front end of passt 'hear21pass'; did you mean 'hear21passt'"):
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


RATE = texture.SAMPLE_RATE


def noise(seconds: float = 5.0, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))


def time(seconds: float = 5.0) -> np.ndarray:
    return np.arange(round(seconds * RATE)) / RATE


def means(wave: np.ndarray) -> dict[str, np.ndarray]:
    """Every kind of statistics, averaged over the windows."""
    kinds = texture.of_envelopes(texture.envelopes(texture.windows(wave)))
    return {name: values.mean(axis=0) for name, values in kinds.items()}


@pytest.mark.parametrize(("size", "count"), [(1, 1), (31_999, 1), (32_000, 1), (47_999, 1), (48_000, 2), (80_000, 4), (160_000, 9)])
def test_statistics_are_of_whole_windows_and_a_short_wave_is_padded(size, count):
    result = texture.statistics(noise()[:1].repeat(size))
    assert result.shape == (count, texture.SIZE)
    assert result.dtype == np.float32
    assert np.isfinite(result).all()


def test_it_needs_no_weights(tmp_path):
    assert embedders.unavailable("texture") is None
    found = embedders.load("texture", None).embed([noise(), noise(1.0), np.zeros(RATE), np.zeros(0)])
    assert [part.shape for part in found.frames] == [(4, texture.SIZE), (1, texture.SIZE), (1, texture.SIZE), (0, texture.SIZE)]
    assert all(part.dtype == np.float32 for part in found.frames)
    assert found.logits.shape == (4, 0)
    assert embedders.find("texture").digest(None) == "none"


def test_other_waves_and_the_length_of_a_sound_change_nothing(monkeypatch):
    waves = [noise(6.0, 1), noise(3.0, 2)]
    together = texture.TextureEmbedder().embed(waves).frames
    for wave, rows in zip(waves, together, strict=True):
        np.testing.assert_array_equal(texture.statistics(wave), rows)
    monkeypatch.setattr(texture, "AT_ONCE", 2)  # as the parts of a long sound
    np.testing.assert_allclose(texture.statistics(waves[0]), together[0], atol=1e-5)


@pytest.mark.parametrize("hertz", [150.3, 440.0, 3_000.7])
def test_a_sine_is_in_one_place_and_constant(hertz):
    found = means(np.sin(2 * np.pi * hertz * time()))
    loud = np.flatnonzero(found["level"] > -55)
    steps = np.linspace(*(21.4 * np.log10(1 + 0.00437 * np.array([texture.LOWEST, texture.HIGHEST]))), texture.BANDS + 2)
    centres = (10 ** (steps[1:-1] / 21.4) - 1) / 0.00437
    below = int(np.searchsorted(centres, hertz)) - 1
    assert set(loud) == {below, below + 1}  # between the centres of two bands
    assert found["level"].max() == pytest.approx(3, abs=3)  # dB: its amplitude relative to its root mean square
    assert found["variation"].max() < -5  # 3 %, of its beginning and end
    for kind in ("across", "phase"):
        assert np.abs(found[kind]).max() < 0.05, kind


@pytest.mark.parametrize("hertz", [2, 8, 32])
def test_a_modulation_is_found_at_its_frequency(hertz):
    """In every band that is wide enough to hold it."""
    plain, modulated = means(noise()), means(noise() * (1 + np.sin(2 * np.pi * hertz * time())))
    risen = (modulated["modulation"] - plain["modulation"])[1:]
    assert (risen.argmax(axis=1) == texture.MODULATIONS.index(hertz)).all()
    assert (modulated["variation"] > plain["variation"] + 0.5)[4:].all()
    across = modulated["across"][:, texture.MODULATIONS.index(hertz)]
    assert (across > 0.6).all()  # all bands are modulated alike
    assert (modulated["correlation"][:, 1:] > 0.6).all()
    assert np.abs(plain["correlation"]).max() < 0.4  # neighbouring bands overlap


def test_reversing_time_turns_the_phases_of_modulations_round_and_nothing_else():
    """Sounds that decay are not sounds that swell (McDermott & Simoncelli's C2)."""
    decaying = noise(8.0) * np.exp(-((time(8.0) * 4) % 1) * 6)
    forwards, backwards = means(decaying), means(decaying[::-1])
    np.testing.assert_allclose(backwards["phase"][0], forwards["phase"][0], atol=0.05)
    np.testing.assert_allclose(backwards["phase"][1], -forwards["phase"][1], atol=0.05)
    assert np.abs(forwards["phase"][1]).max() > 0.3
    for kind in ("level", "variation", "modulation", "correlation", "across"):
        np.testing.assert_allclose(backwards[kind], forwards[kind], atol=0.15, err_msg=kind)


def test_what_they_hear_of_real_recordings(shared):
    """Of a quarter of ESC-10. With all of it the real clips of fold 3 are 7.0 from the others, pieces of 200 ms 75, of 50 ms 106,
    random phases 275, noise 331, silence 465."""
    waves = {path.stem: read_mono(path, RATE, 10) for path in sorted((shared / "data" / "esc10").rglob("*.ogg"))[::4]}
    test = {name: wave for name, wave in waves.items() if name.startswith("3-")}
    reference = np.concatenate([texture.statistics(wave) for name, wave in waves.items() if name not in test])

    def distance(degraded: Mapping[str, np.ndarray]) -> float:
        return frechet_of_rows(np.concatenate([texture.statistics(wave) for wave in degraded.values()]), reference)

    steps = [distance(test)]
    for kind in ("pieces_200ms", "pieces_50ms", "random_phases"):
        steps.append(distance({name: degradations.degrade(kind, wave, RATE, name, 0) for name, wave in test.items()}))
    steps.append(distance({name: features.synthetic_wave("noise", name, 80_000, 0) for name in test}))
    steps.append(distance({"silence": np.zeros(80_000)}))
    assert steps == sorted(steps)
    np.testing.assert_allclose(np.array(steps[1:]) / steps[0], [4.9, 6.1, 13.9, 16, 21.6], rtol=0.2)
