"""Planted duplicates are found, unlike recordings are not, in any order; sounds without features are named."""

import io
import json
import shutil
import tracemalloc
from collections import Counter, defaultdict
from itertools import dropwhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from typer.testing import CliRunner

from soundmill import hashing, manifest, shards
from soundmill.audio import fingerprint, resample
from soundmill.commands import app
from soundmill.corpora import duplicates, fingerprint_index
from soundmill.errors import UserError
from tests.audio.test_fingerprint import noise
from tests.corpora.tiny import write_table
from tests.decoding.files import ffmpeg
from tests.prepared import sound

RATE = fingerprint.SAMPLE_RATE


def indexed(sounds: dict[str, np.ndarray], scratch: Path, owners: dict[str, str] | None = None, threshold: float = 0.4):
    with index_of({name: fingerprint.fingerprint(wave) for name, wave in sounds.items()}, scratch, owners) as index:
        return sorted(index.pairs(threshold)), index.featureless


def index_of(words: dict[str, np.ndarray], scratch: Path, owners: dict[str, str] | None = None) -> fingerprint_index.Index:
    names = [[*words], [(owners or {}).get(name, name) for name in words]]
    index = fingerprint_index.Index(scratch, *(pa.chunked_array([column], pa.string()) for column in names))
    table = pa.Table.from_pylist([fingerprint_index.landmarks(result) for result in words.values()])
    for first in range(0, len(words), 7):
        index.add(first, table.slice(first, 7))
    return index


# ---- the index ----


def test_copies_are_found_among_others_whatever_the_order(tmp_path):
    sounds = {f"{seed:03d}": noise(seed) for seed in range(60)}
    sounds |= {f"{seed:03d}-copy": noise(seed)[4321:] * np.float32(0.5) for seed in range(0, 60, 10)}
    forward, featureless = indexed(sounds, tmp_path)
    assert [(a, b) for a, b, _ in forward] == [(f"{seed:03d}", f"{seed:03d}-copy") for seed in range(0, 60, 10)]
    assert not featureless
    names = list(sounds)
    np.random.default_rng(0).shuffle(names)
    assert indexed({name: sounds[name] for name in names}, tmp_path)[0] == forward


def test_soft_and_uncertain_cuts_of_a_long_recording_are_found_beside_loud_ones(tmp_path):
    """Each stretch has its own floor and its share of the keys, whatever else is in the hour."""
    cuts = [noise(seed, 30.0) * np.float32(1e-3 if seed % 3 else 1.0) for seed in range(8)]
    sounds = {"long": np.concatenate(cuts), **{f"{seed:02d}": cut[12 * RATE : 17 * RATE] for seed, cut in enumerate(cuts)}}
    assert [(a, b) for a, b, _ in indexed(sounds, tmp_path)[0]] == [(f"{seed:02d}", "long") for seed in range(8)]


def test_one_owners_clips_are_not_compared_and_what_has_no_features_is_named(tmp_path):
    sounds = {name: noise(0) for name in ("a", "b", "c")}
    pairs, _ = indexed(sounds, tmp_path, {"a": "x", "b": "x", "c": "y"})
    assert pairs == [("a", "c", 1.0), ("b", "c", 1.0)]
    pairs, featureless = indexed({"silence": np.zeros(RATE, dtype=np.float32), "click": noise(0, 0.02), "a": noise(1)}, tmp_path)
    assert pairs == []
    assert sorted(featureless) == ["click", "silence"]


def test_a_sound_that_one_recording_has_many_times_is_found_beside_every_one(tmp_path):
    """A loop in training, one round of it in test: if only the rounds next to it were paired, the others would stay."""
    sounds = {**{f"loop {number:02d}": noise(0) for number in range(40)}, "loop 20 once": noise(0), "other": noise(1)}
    owners = {name: "loop" if len(name) == 7 else name for name in sounds}
    pairs, _ = indexed(sounds, tmp_path, owners)
    assert [pair[:2] for pair in pairs] == sorted(tuple(sorted((f"loop {number:02d}", "loop 20 once"))) for number in range(40))


def test_many_copies_hang_together_without_being_paired_all_with_all(tmp_path):
    count = 200
    pairs, _ = indexed({f"{number:03d}": noise(0, 2.0) for number in range(count)}, tmp_path)
    assert len(pairs) <= 2 * fingerprint_index.NEIGHBOURS * count
    reached = {"000"}
    for a, b, _ in pairs:  # sorted, so each a is reached before its b
        if a in reached:
            reached.add(b)
    assert len(reached) == count


def test_uncertain_bits_are_looked_up_with_both_values_and_the_most_certain_keys_come_first():
    keys, uncertain, frames = (np.array(values, np.uint32) for values in ([16, 8, 1, 2], [0, 0b101, 0b10, 0xFF], [30, 20, 10, 0]))
    keys, at = fingerprint_index.probes_of(keys, uncertain, frames, 7)
    found = sorted(zip(at.tolist(), keys.tolist(), strict=True))
    assert found == [(10, 1), (10, 3), (20, 8), (20, 9), (20, 12), (20, 13), (30, 16)]
    assert fingerprint_index.probes_of(keys[:0], uncertain[:0], frames[:0], 7)[0].size == 0
    keys, uncertain, frames = fingerprint_index.certain_keys(fingerprint.fingerprint(noise(0)))
    bits = np.bitwise_count(uncertain).astype(int)
    assert len(keys) == len(frames) == len({*frames.tolist()}) > 100
    assert (np.diff(bits) >= 0).all()
    assert bits.max() <= fingerprint_index.MOST_UNCERTAIN


# ---- the parts on disk ----


def _beyond(entries: list[tuple[str, int]], owners: dict[str, str], name: str) -> list[tuple[str, int]]:
    """The next NEIGHBOURS, those of the own recording that stand before them left out."""
    return list(dropwhile(lambda entry: owners[entry[0]] == owners[name], entries))[: fingerprint_index.NEIGHBOURS]


def candidates_by_rule(words: dict[str, np.ndarray], owners: dict[str, str]) -> set[tuple[str, str, int]]:
    """What `Index.candidates` finds, by the rule alone: every key's bucket is a list, every pair's offsets are counted."""
    buckets, offsets = defaultdict(list), defaultdict(Counter)
    ranked = [(name, words[name], fingerprint_index.certain_keys(words[name])) for name in sorted(words)]
    for name, actual, (keys, _, frames) in ranked:
        most = fingerprint_index.KEYS + int(fingerprint_index.KEYS_PER_SECOND * len(actual) / fingerprint.FRAMES_PER_SECOND)
        for key, frame in zip(keys[:most].tolist(), frames[:most].tolist(), strict=True):
            buckets[key].append((name, frame))
    for name, actual, certain in ranked:
        most = fingerprint_index.PROBES + int(fingerprint_index.PROBES_PER_SECOND * len(actual) / fingerprint.FRAMES_PER_SECOND)
        for key, frame in zip(*(column.tolist() for column in fingerprint_index.probes_of(*certain, most)), strict=True):
            before = [entry for entry in reversed(buckets[key]) if entry[0] < name]
            after = [entry for entry in buckets[key] if entry[0] > name]
            for other, at in _beyond(before, owners, name) + _beyond(after, owners, name):
                if owners[name] != owners[other]:
                    offsets[name, other][at - frame] += 1
    result = set()
    for pair, counts in offsets.items():
        crowd = {at: sum(counts[at + shift] for shift in range(fingerprint_index.OFFSET_SLACK + 1)) for at in counts}
        best = max(crowd, key=lambda at: (crowd[at], -at))
        if crowd[best] >= fingerprint_index.MIN_KEYS:
            result.add((*pair, best))
    return result


@pytest.mark.parametrize(("records", "parts"), [(1 << 18, 1 << 9), (500, 64), (7, 2)])
def test_candidates_are_those_of_the_rule_however_finely_they_are_dealt(tmp_path, monkeypatch, records, parts):
    monkeypatch.setattr(fingerprint_index, "RECORDS", records)
    monkeypatch.setattr(fingerprint_index, "PARTS", parts)
    hum = 0.3 * np.sin(2 * np.pi * 120 * np.arange(RATE) / RATE)
    sounds = {f"{seed * 7 % 20:02d}": noise(seed, 1.0) for seed in range(20)}
    sounds |= {f"{seed:02d}-copy": noise(seed, 1.0)[3000:] for seed in range(0, 20, 4)}
    sounds |= {f"same {number:02d}": noise(99, 0.5) for number in range(25)}
    sounds |= {f"hum {number:02d}": (hum + noise(number, 1.0) / 50).astype(np.float32) for number in range(20)}
    words = {name: fingerprint.fingerprint(wave) for name, wave in sounds.items()}
    owners = {name: f"same {number // 2}" if name.startswith("same") else name for number, name in enumerate(sounds)}
    expected = candidates_by_rule(words, owners)
    assert len(expected) > 300
    with index_of(words, tmp_path, owners) as index:
        names = sorted(words)
        assert {(names[first], names[second], offset) for first, second, offset in index.candidates()} == expected


def test_memory_does_not_grow_with_the_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint_index, "RECORDS", 1 << 12)
    monkeypatch.setattr(fingerprint_index, "LOOKING_UP", 1)  # whether the peaks of several threads coincide is luck
    peaks = []
    for count in (100, 800):
        words = {f"{seed:04d}": fingerprint.fingerprint(noise(seed, 1.0)) for seed in range(count)}
        with index_of(words, tmp_path) as index:
            tracemalloc.start()
            list(index.candidates())
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_more_clips_than_can_be_numbered_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint_index, "MOST_CODES", 1)
    names = pa.chunked_array([[f"{number}" for number in range(30)]])
    with pytest.raises(UserError, match="30 clips: at most 22 can be compared"):
        fingerprint_index.Index(tmp_path, names, names)


# ---- a folder ----


def test_planted_duplicates_of_real_recordings_are_found_and_nothing_else(shared, tmp_path):
    """A fifth of ESC-10 and, of each, one copy at 64 kbit/s, 6 dB softer and 0.3 s later."""
    for number, source in enumerate(sorted((shared / "data" / "esc10").glob("*/*.ogg"))[::5]):
        wave, rate = soundfile.read(source, dtype="float32")
        shutil.copy(source, tmp_path / f"{number:03d}.ogg")
        copy = np.concatenate([np.zeros(round(0.3 * rate), dtype=np.float32), wave]) / 2
        soundfile.write(tmp_path / f"{number:03d}-copy.wav", copy, rate, subtype="PCM_16")
    # One ffmpeg for all of them: starting it costs more than its work.
    copies = sorted(tmp_path.glob("*-copy.wav"))
    inputs = [part for copy in copies for part in ("-i", copy)]
    outputs = [
        part
        for number, copy in enumerate(copies)
        for part in ("-map", f"{number}:a", "-c:a", "libmp3lame", "-b:a", "64k", copy.with_suffix(".mp3"))
    ]
    ffmpeg(*inputs, *outputs)
    for copy in copies:
        copy.unlink()
    result, unreadable = duplicates.find_in_folder(tmp_path, workers=2)
    assert not unreadable
    assert result.names.num_rows == 96
    pairs = {(pair["a"], pair["b"]) for pair in result.pairs}
    truth = {(f"{number:03d}-copy.mp3", f"{number:03d}.ogg") for number in range(48)}
    assert len(pairs & truth) >= 0.95 * len(truth)
    assert len(pairs - truth) <= 0.01 * len(truth)
    assert all(0.4 <= pair["score"] <= 1 for pair in result.pairs)


def test_the_command_lists_pairs_and_says_what_it_could_not_read(tmp_path):
    folder, out = tmp_path / "folder", tmp_path / "pairs.json"
    (folder / "sub").mkdir(parents=True)
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", noise(number), RATE)
    soundfile.write(folder / "sub" / "rén 1.flac", resample.resample(noise(1) / 2, RATE, 44_100), 44_100)
    (folder / "sub" / "same\nbytes\\.wav").write_bytes((folder / "2.wav").read_bytes())
    for name in ("silence.wav", "more silence.wav"):
        soundfile.write(folder / name, np.zeros(RATE), RATE)
    soundfile.write(folder / "click.wav", noise(9, 0.03), RATE)
    (folder / "sub" / "click again.wav").write_bytes((folder / "click.wav").read_bytes())
    (folder / "broken.wav").write_bytes((folder / "0.wav").read_bytes()[:500])
    (folder / "empty.wav").touch()
    (folder / "playlist.mp3").write_text("#EXTM3U\nfile:///etc/passwd\n")
    (folder / "notes.txt").write_text("no sound")
    done = CliRunner().invoke(app, ["corpus", "duplicates", str(folder), "--json", str(out), "--workers", "1"])
    assert done.exit_code == 0, done.output
    pairs = json.loads(out.read_text(encoding="utf-8"))
    found = [(pair["a"], pair["b"]) for pair in pairs]
    assert found == [("1.wav", "sub/rén 1.flac"), ("2.wav", "sub/same\nbytes\\.wav"), ("click.wav", "sub/click again.wav")]
    assert [set(pair) for pair in pairs] == [{"a", "b", "score"}] * 3
    assert pairs[0]["score"] > 0.8
    assert [pair["score"] for pair in pairs[1:]] == [1.0, 1.0]
    for name in ("broken.wav: truncated", "empty.wav: empty", "playlist.mp3: playlist"):
        assert f"not read: {name}" in done.output
    assert "3 pairs among 9 files; 4 are too short or too steady, and were compared only byte by byte; 3 not read" in done.output
    (folder / "sub" / "none").mkdir()
    for path, words in ((tmp_path / "absent", "no such directory"), (folder / "sub" / "none", "no audio file in it")):
        done = CliRunner().invoke(app, ["corpus", "duplicates", str(path)])
        assert done.exit_code == 1
        assert words in done.output


# ---- prepared clips ----


def clip(clip_id: str, recording_id: str, start: float, wave: np.ndarray) -> dict:
    return sound(clip_id, wave, RATE, recording_id=recording_id, start=start, digest=hashing.digest(clip_id, wave.tobytes()))


def recording(recording_id: str, group: str | None = None, start_time: float = 0.0) -> dict:
    return {"recording_id": recording_id, "group": group, "start_time": start_time}


def find(rows: list[dict], recordings: list[dict], root: Path, **options) -> duplicates.Duplicates:
    groups = pa.schema([manifest.RECORDINGS.field(name) for name in ("recording_id", "group", "start_time")])
    clips, scratch = root / "clips", root / "scratch"
    root.mkdir(exist_ok=True)
    for number in range(2):
        shards.write_rows(rows[number::2], clips / shards.shard_name(number), manifest.CLIPS)

    def map_shards(function, jobs, output, unit):
        return shards.map_shards(function, jobs, output, workers=1, **options)

    scratch.mkdir(exist_ok=True)
    return duplicates.find(clips, pa.Table.from_pylist(recordings, groups), map_shards, scratch)


def test_how_many_clips_the_index_takes_in_at_once_changes_nothing(tmp_path, monkeypatch):
    rows = [clip(f"{name}_{part}", name, part, noise(ord(name) % 5)[part * 800 :]) for name in "abcdefgh" for part in (0, 3)]
    expected = find(rows, [recording(name) for name in "abcdefgh"], tmp_path / "one")
    assert len(expected.pairs) > 3
    monkeypatch.setattr(duplicates, "CLIPS_AT_ONCE", 1)
    result = find(rows, [recording(name) for name in "abcdefgh"], tmp_path / "other")
    assert (result.pairs, result.names, result.featureless) == (expected.pairs, expected.names, expected.featureless)


@pytest.mark.parametrize("step", ["add", "_look_up"])
def test_what_fails_in_a_thread_is_not_lost(tmp_path, monkeypatch, step):
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(fingerprint_index.Index, step, fail)
    with pytest.raises(OSError, match="no space left"):
        find([clip("a_0", "a", 0, noise(0)), clip("b_0", "b", 0, noise(1))], [recording("a"), recording("b")], tmp_path)


VIDEO, OTHER = "-abcdefghi_", "Yabcdefghij"


def test_windows_of_one_video_are_paired_where_they_overlap(tmp_path):
    recordings = [
        recording(f"{VIDEO}_10", VIDEO, 10.0),
        recording("5f00d5f00d5f00d5", VIDEO, 12.0),  # of another corpus: the id was taken
        recording(f"{VIDEO}_40", VIDEO, 40.0),
        recording(f"{OTHER}_10", OTHER, 10.0),
        recording("cellar door 1", "cellar door", 0.0),  # a group of eleven characters that is no video
        recording("cellar door 2", "cellar door", 0.0),
    ]
    rows = [clip(f"clip{number}", row["recording_id"], 0, noise(number)) for number, row in enumerate(recordings)]
    result = find(rows, recordings, tmp_path)
    assert result.pairs == [{"a": "clip0", "b": "clip1", "score": pytest.approx(1 / 3, abs=1e-3), "kind": "video"}]


def test_fingerprints_of_unchanged_clips_are_taken_over(tmp_path, monkeypatch):
    rows = [clip(f"clip{number}", f"r{number}", 0, noise(number)) for number in range(6)]
    clips, prints = tmp_path / "clips.parquet", [tmp_path / f"{name}.parquet" for name in ("first", "second", "afresh")]

    def keep(output: Path, previous: Path | None) -> None:
        shards.write_report(output, duplicates.fingerprint_shard(clips, output, previous))

    shards.write_rows(rows, clips, manifest.CLIPS)
    keep(prints[0], None)
    rows[2] = clip("clip2", "r2", 0, noise(77))
    shards.write_rows(rows, clips, manifest.CLIPS)
    keep(prints[2], None)
    seen = []
    plain = fingerprint.fingerprint
    monkeypatch.setattr(fingerprint, "fingerprint", lambda wave: (seen.append(len(wave)), plain(wave))[1])
    keep(prints[1], prints[0])
    assert len(seen) == 1
    assert prints[1].read_bytes() == prints[2].read_bytes()


def test_copies_in_a_parquet_table_are_found(tmp_path):
    cells = []
    for number, wave in enumerate([noise(1), noise(2), noise(1)[4321:] / 2]):
        file = io.BytesIO()
        soundfile.write(file, wave, RATE, format="FLAC")
        cells.append({"bytes": file.getvalue(), "path": f"{number}.flac"})
    cells += [{"bytes": b"no sound", "path": "x.wav"}, cells[0]]  # the first once more, for another caption
    write_table(tmp_path / "data/train.parquet", cells)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "data/train.parquet").read_bytes()[:-9])
    soundfile.write(tmp_path / "copy.wav", noise(2), RATE)
    result, unreadable = duplicates.find_in_folder(tmp_path, workers=1)
    table = "data/train.parquet#"
    assert [(pair["a"], pair["b"]) for pair in result.pairs] == [("copy.wav", f"{table}1"), (f"{table}0", f"{table}2")]
    assert [row["path"] for row in unreadable] == ["cut.parquet", f"{table}3"]
