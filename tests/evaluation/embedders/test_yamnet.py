"""YAMNet: windows, weights that are missing or not the pinned ones, and the measured baselines on real recordings."""

import numpy as np
import pytest

from soundmill.errors import UserError
from soundmill.evaluation import embedders, features
from soundmill.evaluation.embedders import yamnet


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


def test_unknown_embedder_is_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'yamnet'"):
        embedders.load("yamnett", tmp_path)


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
