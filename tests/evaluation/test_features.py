"""Embedding many sounds: where their waves come from, what is named when it cannot be scored; and the cache: what is put in comes
back, whoever else reads and writes."""

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from soundmill import hashing, manifest, shards
from soundmill.audio.flac import decode_mono, encode_flac, write_wav
from soundmill.audio.resample import resample
from soundmill.errors import UserError
from soundmill.evaluation import cache, degradations, features, waveforms
from soundmill.evaluation.cache import Facts, facts_of, shares
from soundmill.evaluation.waveforms import fit, log_spectral_distance, multi_resolution_stft
from tests.lost_bits import lose_a_bit
from tests.prepared import sound as clip
from tests.prepared import write_rows
from tests.waves import tone


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard-00000.parquet"
    write_rows([clip(f"clip{index}", tone(100 * (index + 1))) for index in range(4)], path, manifest.CLIPS)
    return path


@pytest.fixture
def config(shared, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    return features.EmbedderConfig("yamnet")


def sound(path, name: str | None = None) -> features.Sound:
    return features.file(name or path.stem, path, hashing.file_digest(path))


def embedded(config, sounds, cache, workers: int = 1) -> SimpleNamespace:
    """Patches and logits by id."""
    features.embed_all([config], sounds, cache, workers)
    view = features.view(config, sounds, cache)
    return SimpleNamespace(frames=dict(view.frames()), logits={name: view.open().logits(key) for name, key in view.keys.items()})


class TextConfig(features.EmbedderConfig):
    """Embeds a text as 1 if its process has one thread, else as 0."""

    weights = "none"
    module = "soundmill.evaluation.embedders.base"

    def load(self):
        one_thread = os.environ.get("OMP_NUM_THREADS") == "1"
        return SimpleNamespace(embed_texts=lambda texts: np.full((len(texts), 1), one_thread, np.float32))


def test_texts_are_embedded_in_a_process_of_one_thread(tmp_path, pool, monkeypatch):
    """More threads change last bits, which the cache would keep."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    view = features.embed_texts(TextConfig("texts"), {"b": "rain", "a": "wind", "c": "rain"}, tmp_path)
    assert {name: frames.item() for name, frames in view.frames()} == {"a": 1, "b": 1, "c": 1}


def test_clips_of_a_shard(shard, tmp_path):
    result = {name: (wave, rate) for name, wave, rate in features.clips_of(shard, {"clip1", "clip3"})}
    assert list(result) == ["clip1", "clip3"]
    np.testing.assert_allclose(result["clip3"][0], tone(400)[None], atol=1e-4)
    assert result["clip3"][1] == 16_000
    with pytest.raises(UserError, match="no such shard"):
        list(features.clips_of(tmp_path / "shard-00009.parquet", {"clip1"}))


def test_synthetic_waves_are_as_long_as_a_sound_and_depend_on_the_id():
    facts = Facts(20_000, 16_000, False, False, "", 1)
    report = shards.Report()
    noises = [features.synthetic("noise", name, facts, 1) for name in "ab"]
    waves = {sound.clip_id: wave for sound, wave, _ in features.waves(noises, None, report)}
    assert {len(wave) for wave in waves.values()} == {20_000}
    assert waves["a"].std() == pytest.approx(features.NOISE_LEVEL, rel=0.05)
    assert not np.array_equal(waves["a"], waves["b"])
    ((_, alone, rate),) = features.waves(noises[1:], None, report)
    np.testing.assert_array_equal(alone, waves["b"])
    assert rate == 16_000
    assert noises[0].key != noises[1].key != features.synthetic("noise", "b", facts, 2).key
    ((_, silence, _),) = features.waves([features.synthetic("silence", "a", facts, 0)], None, report)
    assert len(silence) == 20_000
    assert not silence.any()


def test_a_stereo_embedder_hears_both_channels(shard, tmp_path):
    left, right, more = (tone(hertz) for hertz in (300, 400, 500))
    report = shards.Report()
    for name, channels in (("mono", [left]), ("stereo", [left, right]), ("three", [left, right, more])):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.stack(channels, axis=1), 16_000, subtype="FLOAT")
        ((_, wave, rate),) = features.waves([sound(path)], None, report, channels=2)
        assert rate == 16_000
        np.testing.assert_array_equal(wave, np.stack(channels[:2] if len(channels) > 1 else [left, left]))
        ((_, mixed, _),) = features.waves([sound(path)], None, report)
        np.testing.assert_allclose(mixed, np.mean(channels, axis=0), atol=1e-6)
        ((_, resampled, rate),) = features.waves([sound(path)], 8_000, report, channels=2)
        assert (rate, resampled.shape) == (8_000, (2, len(left) // 2))
        np.testing.assert_allclose(resampled[0], resample(left, 16_000, 8_000), atol=1e-6)
    ((_, wave, _),) = features.waves([features.clip("clip3", shard, "digest")], None, report, channels=2)
    np.testing.assert_array_equal(wave[0], wave[1])
    facts = Facts(20_000, 16_000, False, False, "", 1)
    ((_, wave, _),) = features.waves([features.synthetic("noise", "a", facts, 1)], None, report, channels=2)
    assert wave.shape == (2, 20_000)
    assert not report.quarantine


def test_a_protocol_may_set_the_level():
    wave = np.array([[0.1, -0.2, 0.4], [0.3, 0.0, 0.1]], np.float32)
    peak = features.set_level(wave, "peak")
    assert np.abs(peak).max() == pytest.approx(10 ** (-1 / 20))
    np.testing.assert_allclose(peak[0, 0] / wave[0, 0] * wave, peak, rtol=1e-5)
    np.testing.assert_allclose(features.set_level(wave, "centred").mean(axis=1), 0, atol=1e-7)
    assert features.set_level(wave, "unchanged") is wave
    for level in ("peak", "centred"):
        silence = np.zeros(5, np.float32)
        np.testing.assert_array_equal(features.set_level(silence, level), silence)
        assert features.set_level(np.zeros(0, np.float32), level).shape == (0,)


def test_degraded_sounds_come_from_files_and_shards_and_are_decoded_once(shard, tmp_path, monkeypatch):
    write_wav(tmp_path / "a.wav", tone(440), 16_000)
    originals = [sound(tmp_path / "a.wav"), features.clip("clip1", shard, "digest")]
    for original, wave in zip(originals, (tone(440), tone(200)), strict=True):
        versions = [original, *(features.degraded(original, kind, 3) for kind in ("bits_8", "pieces_50ms"))]
        assert len({one.key for one in (*versions, features.degraded(original, "bits_8", 4))}) == 4
        opened = []
        read = features._unchanged
        monkeypatch.setattr(features, "_unchanged", lambda one, read=read, opened=opened: opened.append(one) or read(one))
        found = {
            one.degradation: features.prepared(one, part, rate, "unchanged", 16_000)
            for one, part, rate in features.waves(versions, None, shards.Report())
        }
        monkeypatch.setattr(features, "_unchanged", read)
        assert len(opened) == (not original.in_shard)
        assert list(found) == ["", "bits_8", "pieces_50ms"]
        np.testing.assert_allclose(found[""], wave, atol=1e-4)
        for kind in ("bits_8", "pieces_50ms"):
            np.testing.assert_array_equal(found[kind], degradations.degrade(kind, found[""], 16_000, original.clip_id, 3))
    every = [features.degraded(one, kind, 3) for kind in degradations.DEGRADATIONS for one in originals]
    tasks = features._tasks(every)
    assert features._tasks(every[::-1]) == tasks  # rows of the cache's files have one order
    assert [[one.clip_id for one in task] for task in tasks] == [["a"] * 8, ["clip1"] * 8]


def test_each_of_several_files_of_the_same_bytes_is_named_and_one_that_changes_meanwhile(config, tmp_path):
    paths = [tmp_path / f"{number}.wav" for number in range(6)]
    for path in paths:
        path.write_bytes(b"no sound at all\0")
    others = [tmp_path / "a.wav", tmp_path / "b.wav"]  # and of these one is not named twice
    for path in others:
        path.write_bytes(b"RIFF\0")
    sounds = [features.file(path.stem, path, hashing.file_digest(path)) for path in paths + others]
    with pytest.raises(UserError, match="8 sounds cannot be scored") as error:
        features.embed_all([config], sounds, tmp_path / "cache", 1)
    assert all(str(error.value).count(f"{path}: cannot be scored") == 1 for path in paths + others)
    write_wav(tmp_path / "a.wav", tone(300), 16_000)
    before = sound(tmp_path / "a.wav")
    write_wav(tmp_path / "a.wav", tone(500), 16_000)
    with pytest.raises(UserError, match=r"a\.wav: cannot be scored: changed"):
        features.embed_all([config], [before], tmp_path / "cache", 1)


def test_clips_and_files_are_heard_at_the_embedders_rate(config, shard, tmp_path):
    soundfile.write(tmp_path / "stereo.flac", np.stack([tone(440, 1.0, 44_100)] * 2, axis=1), 44_100)
    clips = [features.clip(f"clip{index}", shard, "digest") for index in (0, 2)]
    result = embedded(config, [*clips, sound(tmp_path / "stereo.flac")], tmp_path / "cache")
    assert {name: part.shape for name, part in result.frames.items()} == dict.fromkeys(("clip0", "clip2", "stereo"), (1, 1024))
    assert result.logits["clip2"].shape == (521,)
    by_8_khz = embedded(features.EmbedderConfig("yamnet", intermediate_rate=8_000), clips, tmp_path / "cache")
    assert by_8_khz.frames["clip0"].shape == (1, 1024)
    assert not np.array_equal(by_8_khz.frames["clip0"], result.frames["clip0"])
    view = features.view(config, clips, tmp_path / "cache")
    np.testing.assert_allclose(dict(view.means())["clip2"], result.frames["clip2"].mean(axis=0), rtol=1e-6)
    with pytest.raises(UserError, match="clip clip9 missing, but listed in"):
        features.embed_all([config], [features.clip("clip9", shard, "digest")], tmp_path / "cache", 1)


def test_cached_embeddings_are_not_computed_again(config, tmp_path, monkeypatch):
    for index in range(3):
        write_wav(tmp_path / f"{index}.wav", tone(200 + 100 * index), 16_000)
    sounds = [sound(tmp_path / f"{index}.wav") for index in range(3)]
    first = embedded(config, sounds, tmp_path / "cache")
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))  # nothing can be loaded now
    monkeypatch.setattr(shards, "map_values", None)
    counted = []
    features.embed_all([config], sounds, tmp_path / "cache", 1, counted.append)
    assert sum(counted) == 3
    # Another name for the same content is known too; another content of a known name is not.
    shutil.copy(tmp_path / "0.wav", tmp_path / "other.wav")
    renamed = embedded(config, [sound(tmp_path / "other.wav")], tmp_path / "cache")
    np.testing.assert_array_equal(renamed.frames["other"], first.frames["0"])
    write_wav(tmp_path / "0.wav", tone(900), 16_000)
    with pytest.raises(UserError, match="as weights are missing:\n  yamnet: yamnet"):
        features.embed_all([config], [sound(tmp_path / "0.wav")], tmp_path / "cache", 1)
    # So is another front end, or other weights.
    for other in ({"intermediate_rate": 16_000}, {"options": (("hop", 1),)}, {"level": "peak"}):
        assert features.EmbedderConfig("yamnet", **other).directory(tmp_path) != config.directory(tmp_path)


def test_embeddings_are_not_known_once_sounds_are_read_otherwise(config, monkeypatch):
    digested = set()
    monkeypatch.setattr(hashing, "files_digest", lambda root, files: digested.update(path.name for path in files) or "")
    features._code.__wrapped__(config.module)
    assert {"decode.py", "flac.py", "resample.py", "features.py", "cache.py", "yamnet.py"} <= digested
    assert not {"report.py", "scorer.py", "vggish.py"} & digested


def test_nothing_depends_on_order_batch_or_workers(config, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for index in range(5):
        write_wav(tmp_path / f"{index}.wav", random.uniform(-0.3, 0.3, 16_000 + 9_000 * index).astype(np.float32), 16_000)
    sounds = [sound(tmp_path / f"{index}.wav") for index in range(5)]
    first = embedded(config, sounds, tmp_path / "first")
    monkeypatch.setattr(features, "TASK_SIZE", 2)
    monkeypatch.setattr(features, "BATCH", 1)
    second = embedded(config, sounds[::-1], tmp_path / "second", workers=2)
    assert list(first.frames) == list(second.frames) == sorted(first.frames)
    for name, part in first.frames.items():
        np.testing.assert_allclose(second.frames[name], part, atol=1e-6)


def test_batches_are_bounded_by_samples():
    items = [(None, np.zeros(size), 1) for size in (1, 1, features.BATCH_SAMPLES, 1, *[1] * 20)]
    sizes = [len(batch) for batch in features._batches(items)]
    assert sizes == [2, 1, 16, 5]


def test_a_cache_that_is_emptied_meanwhile_is_named(config, tmp_path):
    view = features.View(tmp_path / "gone", {"a": "key"})
    with pytest.raises(UserError, match="embedding of a has disappeared"):
        dict(view.means())
    assert not os.path.exists(tmp_path / "gone")


def test_facts_of_a_wave_and_shares_of_sounds_that_count_every_copy_but_the_first():
    wave = tone(250)
    peak = wave.copy()
    peak[5] = 1.0  # one sample at full scale is no clipping
    assert facts_of(wave, 16_000).num_samples == 16000
    waves = {
        "plain": wave,
        "peak": peak,
        "faint": wave * 0.001,
        "nothing": np.zeros(100, np.float32),
        "cut": np.clip(wave * 10, -1, 1),
    }
    assert {name for name, one in waves.items() if facts_of(one, 16_000).silent} == {"faint", "nothing"}
    assert {name for name, one in waves.items() if facts_of(one, 16_000).clipped} == {"cut"}
    wave = tone(500, 0.0625)
    sounds = [facts_of(one, 16_000) for one in (wave, wave, wave, np.zeros(1000, np.float32))]
    assert shares(sounds) == {"silent": 0.25, "clipped": 0.0, "duplicate": 0.5}
    assert facts_of(wave, 16_000).digest == facts_of(decode_mono(encode_flac(wave, 16000)), 16_000).digest  # equal as 16-bit sound
    assert shares([]) == {"silent": 0.0, "clipped": 0.0, "duplicate": 0.0}


def embedding(key: str, patches: int) -> cache.Embedding:
    frames = np.full((patches, 3), int(key), np.float32)
    return cache.Embedding(key, Facts(100 * patches, 8_000, False, True, f"d{key}"), frames, np.arange(2, dtype=np.float32))


def test_embeddings_come_back(tmp_path):
    cache.add(tmp_path, [embedding(str(index), index % 4) for index in range(40)])  # of several row groups
    cache.add(tmp_path, [embedding(str(index), 1) for index in (40, 41)])
    result = cache.Embedded(tmp_path, {"3", "37", "41", "99"})
    assert set(result.facts) == {"3", "37", "41"}
    np.testing.assert_array_equal(result.frames("37"), np.full((1, 3), 37))
    np.testing.assert_array_equal(result.frames("3"), np.full((3, 3), 3))
    np.testing.assert_array_equal(result.logits("41"), [0, 1])
    assert result.facts["3"] == Facts(300, 8_000, False, True, "d3", 3)
    assert result.facts["3"].seconds == 300 / 8000
    assert cache.Embedded(tmp_path, {"0"}).frames("0").shape == (0, 0)  # too short for a patch
    assert not cache.Embedded(tmp_path / "none", {"0"}).facts


def test_two_writers_of_one_file_and_a_reader_disturb_nobody(tmp_path):
    rows = [embedding(str(index), 2) for index in range(20)]
    keys = {row.key for row in rows}

    def write_and_read(number: int) -> bool:
        cache.add(tmp_path, rows)
        result = cache.Embedded(tmp_path, keys)
        return all((result.frames(row.key) == row.frames).all() for row in rows)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write_and_read, range(24)))
    assert [path.stem for path in tmp_path.iterdir()] == [hashing.file_digest(path) for path in tmp_path.iterdir()]
    assert len(list(tmp_path.iterdir())) == 1  # the same rows have the same bytes


def test_what_killed_runs_left_is_removed_when_nobody_adds(tmp_path):
    (tmp_path / ".adding-killed").mkdir()
    (tmp_path / ".adding-killed" / "a.parquet").write_bytes(b"half")

    def while_it_is_added():
        yield embedding("1", 1)
        cache.remove_unfinished(tmp_path)
        assert len(list(tmp_path.glob(".adding-*"))) == 2
        yield embedding("2", 1)

    cache.add(tmp_path, while_it_is_added())
    cache.remove_unfinished(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]
    assert set(cache.Embedded(tmp_path, {"1", "2"}).facts) == {"1", "2"}


def test_a_failed_addition_leaves_nothing_and_a_torn_file_is_dropped(tmp_path):
    def rows():
        yield embedding("1", 1)
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        cache.add(tmp_path, rows())
    cache.add(tmp_path, [])
    assert not list(tmp_path.iterdir())
    (tmp_path / "c.parquet").write_bytes(b"PAR1 torn")
    cache.add(tmp_path, [embedding("1", 1)])
    assert cache.drop_damaged(tmp_path, 1) == ["c.parquet"]
    assert "1" in cache.Embedded(tmp_path, {"1"})


def test_a_file_with_any_lost_bit_is_dropped_and_the_others_stay(tmp_path):
    rows = [embedding(str(index), index % 4) for index in range(40)]
    cache.add(tmp_path, rows[:20])
    cache.add(tmp_path, rows[20:])
    files = sorted(tmp_path.iterdir())
    whole = {path: path.read_bytes() for path in files}
    size = len(whole[files[0]])
    metadata = size - int.from_bytes(whole[files[0]][-8:-4], "little") - 8
    rng = random.Random(3)
    places = [0, *(rng.uniform(4, metadata) for _ in range(60)), *(rng.uniform(metadata, size) for _ in range(60))]
    for place in places:  # magic number, pages, and metadata with footer
        lose_a_bit(files[0], place / size)
        assert cache.drop_damaged(tmp_path, 2) == [files[0].name]
        assert cache.drop_damaged(tmp_path, 2) == []
        assert files[1].read_bytes() == whole[files[1]]
        files[0].write_bytes(whole[files[0]])
    assert set(cache.Embedded(tmp_path, {row.key for row in rows}).facts) == {row.key for row in rows}


def noise(seed: int, channels: int = 1, samples: int = 20_000) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((channels, samples))).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 20_000), (2, 44_100), (1, 800), (1, 1), (3, 2_049)])
def test_a_wave_is_at_no_distance_from_itself(shape):
    wave = noise(0, *shape)
    assert log_spectral_distance(wave, wave) == 0
    assert multi_resolution_stft(wave, wave) == 0


@pytest.mark.parametrize("gain_db", [-12.0, -1.0, 6.0])
def test_a_gain_is_a_distance_of_as_many_decibels(gain_db):
    wave = noise(1, 2).astype(np.float64)
    gain = 10 ** (gain_db / 20)
    assert log_spectral_distance(gain * wave, wave) == pytest.approx(abs(gain_db), rel=1e-3)
    # the spectral convergence is |g − 1|, and the log magnitudes are |ln g| apart
    assert multi_resolution_stft(gain * wave, wave) == pytest.approx(abs(gain - 1) + abs(np.log(gain)), rel=1e-3)


def test_what_is_below_the_floor_does_not_count():
    wave = noise(2)
    assert log_spectral_distance(wave + 1e-4 * 1e-4 * noise(3), wave) < 0.01
    assert log_spectral_distance(1e-9 * wave, wave) == pytest.approx(log_spectral_distance(0 * wave, wave))
    levels = 20 * np.log10(waveforms._magnitudes(wave))
    below = np.maximum(levels - (levels.max() - waveforms.FLOOR_DB), 0)  # silence is at the floor everywhere
    assert log_spectral_distance(0 * wave, wave) == pytest.approx(np.sqrt((below**2).mean(axis=1)).mean(), rel=1e-6)


def test_one_frame_by_hand():
    wave, other = noise(4, samples=2_048), noise(5, samples=2_048)
    levels = []
    for signal in (other, wave):
        padded = np.pad(signal[0].astype(np.float64), 1024, mode="reflect")
        frames = np.stack([padded[start : start + 2048] for start in range(0, len(padded) - 2047, 512)])
        levels.append(np.abs(np.fft.rfft(frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)), axis=1)))
    floor = levels[1].max() * 1e-4
    first, second = (20 * np.log10(np.maximum(level, floor)) for level in levels)
    expected = np.sqrt(((first - second) ** 2).mean(axis=1)).mean()
    assert log_spectral_distance(other, wave) == pytest.approx(expected, rel=1e-9)


def test_mrstft_is_auraloss_as_it_is_by_default():
    from auraloss.freq import MultiResolutionSTFTLoss

    output, original = noise(6, 2), noise(7, 2)
    expected = MultiResolutionSTFTLoss()(torch.from_numpy(output)[None], torch.from_numpy(original)[None])
    assert multi_resolution_stft(output, original) == pytest.approx(float(expected), rel=1e-4)


def test_waves_of_other_rates_channels_and_lengths_are_fitted_to_the_original():
    output, original = fit(noise(8, 2, 44_100), 44_100, noise(9, 1, 16_500), 16_000)
    assert output.shape == original.shape == (1, 16_000)
    stereo, same = fit(noise(8, 2, 300), 22_050, noise(9, 2, 200), 22_050)
    assert stereo.shape == same.shape == (2, 200)


def test_pairs_of_files(tmp_path):
    original, output = noise(10, 2, 22_050), noise(10, 2, 22_050) / 2
    sounds = {}
    for name, wave in (("original", original), ("made", output), ("short", output[:, :11_025]), ("silent", 0 * original)):
        soundfile.write(tmp_path / f"{name}.wav", wave.T, 22_050, subtype="FLOAT")
        path = tmp_path / f"{name}.wav"
        sounds[name] = features.file(name, path, hashing.file_digest(path))
    pairs = {"whole": ("made", "original"), "cut": ("short", "original"), "silent": ("made", "silent")}
    whole, cut, silent = waveforms.measure((name, *(sounds[one] for one in both)) for name, both in pairs.items())
    assert whole["lsd"] == pytest.approx(20 * np.log10(2), rel=1e-3)
    assert (whole["cut"], cut["cut"], silent["cut"]) == (False, True, False)
    assert cut["lsd"] == pytest.approx(whole["lsd"], rel=0.05)
    assert "lsd" not in silent  # nothing is at a distance from silence
