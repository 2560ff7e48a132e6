"""Log-mels: filters and values by their definitions, and shards, which are refused by name where they do not belong together."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchaudio.functional import melscale_fbanks

from soundmill import manifest, shards
from soundmill.audio import log_mels, mel
from soundmill.errors import UserError
from tests.mels import TANGO, spec_with

HTK = TANGO.model_copy(update={"mel_scale": "htk", "norm": "none", "power": 2.0, "n_mels": 40})


def to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    """The two published scales, written down anew."""
    if scale == "htk":
        return 1127.0 * np.log(1.0 + hertz / 700.0)
    linear = hertz * 3 / 200
    return np.where(hertz < 1000, linear, 15 + 27 * np.log(np.maximum(hertz, 1e-9) / 1000) / np.log(6.4))


def triangles(spec: mel.MelSpec) -> np.ndarray:
    """Filters [bins, n_mels] that rise and fall linearly in Hz between edges equally spaced in mel."""
    dense = np.linspace(0, spec.sample_rate / 2, 400_001)
    low, high = to_mel(np.array([spec.f_min, spec.f_max]), spec.mel_scale)
    edges = np.interp(np.linspace(low, high, spec.n_mels + 2), to_mel(dense, spec.mel_scale), dense)
    bins = np.arange(spec.n_fft // 2 + 1)[:, None] * spec.sample_rate / spec.n_fft
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bank = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    return bank * 2 / (right - left) if spec.norm == "slaney" else bank


@pytest.mark.parametrize("num_samples", [1, 400, 513, 5000, 6399, 6400, 6401, 20_000])
@pytest.mark.parametrize("peak", [None, 0.5])
def test_a_wave_in_blocks_has_the_log_mel_of_the_whole(num_samples, peak, monkeypatch):
    monkeypatch.setattr(mel, "FRAMES_AT_ONCE", 20)  # 3,200 samples
    spec = TANGO.model_copy(update={"peak": peak})
    wave = np.random.default_rng(num_samples).normal(0.1, 0.2, num_samples).astype(np.float32)
    values, counted = mel.log_mel_of_blocks(lambda: np.array_split(wave, 1 + num_samples // 777), spec)
    assert counted == num_samples
    np.testing.assert_allclose(values, mel.log_mel(wave, spec), atol=1e-4)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_bands_of_unit_area_are_brought_to_unit_peak(power):
    spec = TANGO.model_copy(update={"power": power, "floor": 1e-20})
    plain = spec.model_copy(update={"norm": "none"})
    wave = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    area, peak = (torch.from_numpy(mel.log_mel(wave, one)) for one in (spec, plain))
    torch.testing.assert_close(mel.of_unit_peak(area, spec), peak, atol=1e-4, rtol=0)
    assert (area - peak).abs().min() > 1
    assert mel.of_unit_peak(peak, plain) is peak


@pytest.mark.parametrize("samples", [1, 100, 512, 513, 1024, 16_000])
def test_shape_follows_num_frames_even_for_clips_shorter_than_a_window(samples):
    waves = np.random.default_rng(0).normal(size=(2, samples))
    result = mel.log_mel(waves, TANGO)
    assert result.dtype == np.float32
    assert result.shape == (2, 64, mel.num_frames(TANGO, samples))
    assert np.isfinite(result).all()
    assert (result[1] == mel.log_mel(waves[1], TANGO)).all()  # whatever shares its batch


@pytest.mark.parametrize(
    "change", [{}, {"win_length": 640}, {"power": 2.0, "mel_scale": "htk", "norm": "none"}, {"hop_length": 313}]
)
def test_values_are_the_definition_s(change):
    """Written down anew: reflected ends, a periodic Hann window in the middle of each frame, |DFT|^power, triangles, logarithm."""
    spec = TANGO.model_copy(update=change)
    wave = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    mirrored = np.pad(wave.astype(np.float64), spec.n_fft // 2, mode="reflect")
    window = np.zeros(spec.n_fft)
    start = (spec.n_fft - spec.win_length) // 2
    window[start : start + spec.win_length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.win_length) / spec.win_length)
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, spec.n_fft)[:: spec.hop_length]
    spectrum = np.abs(np.fft.rfft(frames * window)) ** spec.power
    expected = np.log(np.maximum(spectrum @ triangles(spec), spec.floor)).T
    values = mel.log_mel(wave, spec)
    assert values.shape == expected.shape
    assert np.abs(values - expected).max() < 2e-3


def test_every_clip_comes_to_the_same_peak_where_the_spec_says():
    wave = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    spec = TANGO.model_copy(update={"peak": 0.5})
    centred = wave - wave.mean()
    np.testing.assert_allclose(mel.levelled(wave, spec), 0.5 / np.abs(centred).max() * centred, atol=1e-6)
    quiet = np.stack([wave, 0.01 * wave + 0.2])
    same = mel.log_mel(quiet, spec)
    np.testing.assert_allclose(same[0], same[1], atol=1e-3)
    assert np.abs(mel.log_mel(quiet, TANGO)[0] - mel.log_mel(quiet, TANGO)[1]).max() > 1
    assert np.unique(mel.log_mel(np.full(16_000, 0.1, np.float32), spec)).tolist() == pytest.approx([math.log(1e-5)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"power": 3.0}, "power must be 1"),
        ({"win_length": 2048}, "must not exceed n_fft"),
        ({"f_max": 9000.0}, "sample_rate / 2"),
        ({"f_min": 8000.0}, "f_min"),
        ({"mel_scale": "bark"}, "htk"),
        ({"hop": 160}, "Extra inputs"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ValidationError, match=says):
        mel.MelSpec.model_validate({**TANGO.model_dump(), **change})


def test_bands_narrower_than_a_bin_are_refused():
    with pytest.raises(UserError, match="contain no FFT bin"):
        mel.mel_filterbank(TANGO.model_copy(update={"n_mels": 512}))


@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero values")
@pytest.mark.parametrize("spec", [TANGO, HTK], ids=["slaney", "htk"])
@pytest.mark.parametrize("n_fft", [256, 512, 1024])
@pytest.mark.parametrize("f_min", [0.0, 30.0])
def test_bands_without_a_bin_are_those_that_torchaudio_leaves_empty(spec, n_fft, f_min):
    changes = {"n_fft": n_fft, "win_length": n_fft, "n_mels": 128, "f_min": f_min}
    spec = spec.model_copy(update=changes)
    empty = int((melscale_fbanks(n_fft // 2 + 1, f_min, 8000.0, 128, 16_000, None, spec.mel_scale).amax(0) == 0).sum())
    with pytest.raises(UserError, match=f"{empty} of 128 bands contain no FFT bin") if empty else nullcontext():
        mel.check_bands(spec)


def write(path, clips, spec=TANGO, metadata=True):
    about = {log_mels.SPEC_KEY: spec.model_dump_json().encode()} if metadata else None
    rows = [
        {"clip_id": name, "log_mel": v.astype("<f2").tobytes(), "num_mels": v.shape[0], "num_frames": v.shape[1], "digest": ""}
        for name, v in clips.items()
    ]
    shards.write_rows(rows, path, manifest.SPECTROGRAMS.with_metadata(about))


def test_shards_round_trip(tmp_path):
    clips = {"b": np.full((64, 3), 1.5), "a": np.full((64, 4), -2.0), "c": np.full((64, 3), 0.25)}
    write(tmp_path / "shard-00000.parquet", {k: clips[k] for k in "ba"})
    write(tmp_path / "shard-00001.parquet", {"c": clips["c"]})
    assert log_mels.read_spec(tmp_path) == TANGO
    read = dict(log_mels.iterate_log_mels(tmp_path))
    assert list(read) == ["b", "a", "c"]
    for clip_id, values in read.items():
        assert values.dtype == np.float16
        np.testing.assert_array_equal(values, clips[clip_id])
    index = shards.rows_below(tmp_path, manifest.SPECTROGRAMS, ["clip_id", "num_frames"])
    assert [tuple(row.values()) for row in index] == [("b", 3), ("a", 4), ("c", 3)]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="no shards"):
        log_mels.read_spec(tmp_path)
    write(tmp_path / "shard-00000.parquet", {"a": np.zeros((64, 3)), "b": np.zeros((64, 4))})
    write(tmp_path / "shard-00001.parquet", {"c": np.zeros((64, 3))}, spec=spec_with(mel_scale="htk"))
    with pytest.raises(UserError, match="another mel_spec"):
        log_mels.read_spec(tmp_path)
    write(tmp_path / "shard-00001.parquet", {"c": np.zeros((64, 3))}, metadata=False)
    with pytest.raises(UserError, match="shard-00001"):
        log_mels.read_spec(tmp_path)
