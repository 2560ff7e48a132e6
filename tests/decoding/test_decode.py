"""Any real file decodes to what it holds, whatever its name, in bounded memory; what is wrong is refused with its reason."""

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmill.decoding import decode
from soundmill.decoding.containers import layout
from soundmill.decoding.decode import DecodeError
from tests.decoding.files import FILMS, MAX_SECONDS, VALID, ffmpeg, mpeg_frames, reason_of, whole


def test_a_file_that_becomes_shorter_ends(tmp_path):
    (tmp_path / "x").write_bytes(bytes(100))
    with (tmp_path / "x").open("rb") as file, pytest.raises(DecodeError, match="shorter"):
        decode._joined(file, ((0, 50), (60, 200)))


@pytest.mark.parametrize("name", [*VALID, *FILMS])
def test_every_kind_of_file_gives_its_tone(media, name):
    probed = decode.probe(media / name, MAX_SECONDS)
    rate, wave = whole(media / name)
    assert (rate, len(wave)) == (probed.sample_rate, probed.num_frames)
    assert 0.9 < len(wave) / rate < 1.15
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(np.argmax(spectrum) * rate / len(middle) - 440) < 5
    assert 0.25 < np.abs(middle).max() < 0.75


NAMES = [
    *(b"a b.wav", b'it\'s "quoted".wav', b"new\nline.wav", b"100%d %s.wav"),
    *(b"c:o:lon.wav", b"-leading.wav", b"\xff\xfe\x80.wav", b"pipe:1"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["pcm16.wav", "cbr.mp3", "a.m4a"])
def test_names_never_matter(media, tmp_path, monkeypatch, name, source):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        file.write((media / source).read_bytes())
    expected = decode.probe(media / source, MAX_SECONDS)
    assert decode.probe(path, MAX_SECONDS) == expected
    monkeypatch.chdir(tmp_path)
    assert decode.probe(name, MAX_SECONDS) == expected


def test_flac_whose_samples_are_not_the_ones_it_signed_is_corrupt(media, tmp_path):
    data = bytearray((media / "a.flac").read_bytes())
    data[30] ^= 1  # the signature stands in bytes 26–41
    (tmp_path / "x.flac").write_bytes(data)
    assert reason_of(tmp_path / "x.flac") == "corrupt"


STREAMED = ["streamed.wav", "streamed.w64", "streamed.aiff", "streamed.au", "streamed.caf", "streamed.mka"]


@pytest.mark.parametrize("ending", "flac tta wav rf64 w64 aiff au caf m4a mov 3gp wma voc mka".split() + STREAMED)
def test_joined_files_whose_first_header_counts_one_are_corrupt(tmp_path, ending):
    form = {"rf64": ["-rf64", "always", "-f", "wav"], "3gp": ["-ar", "8000", "-ac", "1"]}.get(ending, [])
    form += ["-seekable", "0"] if ending in STREAMED else []
    ffmpeg("-f", "lavfi", "-i", "sine=440:d=1", *form, tmp_path / f"x.{ending}")
    data = (tmp_path / f"x.{ending}").read_bytes()
    assert len(whole(tmp_path / f"x.{ending}")[1]) > 7000
    for between in (b"", b"\n", bytes(700), b"ID3\4\0\0\0\0\0\x14" + bytes(20)):
        (tmp_path / "two").write_bytes(data + between + data)
        with pytest.raises(DecodeError, match=r"corrupt .*files joined"):
            whole(tmp_path / "two")


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "dir.wav").mkdir()
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "to-fifo.wav").symlink_to(tmp_path / "fifo.wav")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.wav"))
        for path in ("/dev/zero", *(tmp_path / f"{name}.wav" for name in ("fifo", "to-fifo", "dir", "s"))):
            assert reason_of(path) == "not a regular file"
        assert [reason_of(tmp_path / f"{name}.wav") for name in ("dangling", "loop")] == ["dangling link"] * 2
        assert reason_of(tmp_path / "nowhere.wav") == "missing"


def test_empty_and_too_short_files_say_so(tmp_path):
    (tmp_path / "zero.wav").touch()
    assert reason_of(tmp_path / "zero.wav") == "empty"
    for count in (0, 1):
        for form in ("WAV", "AIFF", "AU", *(["FLAC"] if count else [])):
            soundfile.write(tmp_path / "short", np.zeros(count), 16_000, format=form)
            assert reason_of(tmp_path / "short") == "too short", (form, count)
            with pytest.raises(DecodeError, match="too short"):
                decode.probe(tmp_path / "short", MAX_SECONDS)
    (tmp_path / "bare.wav").write_bytes(b"RIFF\x04\0\0\0WAVE")
    assert reason_of(tmp_path / "bare.wav") == "truncated"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path, value):
    wave = np.zeros((1000, 2), dtype=np.float32)
    wave[500, 1] = value
    soundfile.write(tmp_path / "x.wav", wave, 16_000, subtype="FLOAT")
    assert reason_of(tmp_path / "x.wav") == "nan"
    soundfile.write(tmp_path / "x.wav", np.full((1000, 2), 3e38), 16_000, subtype="FLOAT")  # their sum is none
    assert reason_of(tmp_path / "x.wav") == "nan"


def test_a_small_file_that_expands_without_end_is_stopped(tmp_path):
    silence = np.zeros(8000 * 600, dtype=np.int16)
    soundfile.write(tmp_path / "bomb.flac", silence, 8000)
    assert (tmp_path / "bomb.flac").stat().st_size < 100_000
    assert reason_of(tmp_path / "bomb.flac") == "too long"
    ffmpeg("-i", tmp_path / "bomb.flac", tmp_path / "bomb.m4a")
    with pytest.raises(DecodeError, match="too long"):
        decode.probe(tmp_path / "bomb.m4a", MAX_SECONDS)


def declared_flac(data: bytes, total: int) -> bytes:
    """FLAC whose header declares `total` samples (0: it does not know) and signs none of them."""
    info = bytearray(data[:42])
    info[21] = info[21] & 0xF0 | total >> 32
    info[22:26] = (total & 0xFFFFFFFF).to_bytes(4, "big")
    info[26:42] = bytes(16)
    return bytes(info) + data[42:]


def sparse_rf64(path: Path, seconds: int, rate: int) -> None:
    """A WAV of any length that takes no room."""
    size = 2 * seconds * rate
    head = b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<IQQQI", 28, size + 72, size, seconds * rate, 0)
    head += b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16) + b"data\xff\xff\xff\xff"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


LOOK = """
import resource, sys
from soundmill.audio import flac
from soundmill.decoding import decode
def outcome(act):
    try:
        return act()
    except decode.DecodeError as error:
        return error.reason
for path in sys.argv[1:]:
    probed = outcome(lambda: decode.probe(path, 7200.0).num_frames)
    print(probed, outcome(lambda: sum(map(len, decode.decode_blocks(path, 7200.0)[1]))))
# Not ru_maxrss of ourselves: it begins with what the process had that started us.
own = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
def test_hours_of_sound_take_little_memory(tmp_path, root):
    with soundfile.SoundFile(tmp_path / "ten hours.flac", "w", 8000, 1) as file:
        for _ in range(600):
            file.write(np.zeros(8000 * 60, dtype=np.int16))
    data = (tmp_path / "ten hours.flac").read_bytes()
    assert len(data) < 2_000_000
    (tmp_path / "unsaid.flac").write_bytes(declared_flac(data, 0))
    (tmp_path / "understated.flac").write_bytes(declared_flac(data, 8000))
    (tmp_path / "huge.flac").write_bytes(declared_flac(data[:100_000], 2**32))
    sparse_rf64(tmp_path / "200 hours.wav", 200 * 3600, 16_000)
    sparse_rf64(tmp_path / "two hours.wav", 7200, 16_000)
    names = ["ten hours.flac", "unsaid.flac", "understated.flac", "huge.flac", "200 hours.wav", "two hours.wav"]
    command = [sys.executable, "-c", LOOK, *(tmp_path / name for name in names)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=True)
    *lines, memory = done.stdout.splitlines()
    refused, whole = "too long too long", f"{7200 * 16_000} {7200 * 16_000}"
    assert lines == [refused, refused, refused, "truncated truncated", refused, whole]
    assert max(map(int, memory.split())) < 200_000  # KiB, of this process and of ffmpeg


def test_many_channels_count_against_the_bound(tmp_path):
    soundfile.write(tmp_path / "wide.wav", np.zeros((48_000, 200), dtype=np.int16), 48_000)
    assert decode.probe(tmp_path / "wide.wav", 60.0).channels == 200
    assert reason_of(tmp_path / "wide.wav", max_seconds=1.0) == "too long"


def test_an_mp3_whose_frames_hold_noise_is_corrupt_and_one_taken_up_in_the_middle_is_not(media, tmp_path, capfd):
    """libsndfile decodes both without a word."""
    coded = (media / "cbr.mp3").read_bytes()
    frames = mpeg_frames(coded)
    damaged, rng = bytearray(coded), np.random.default_rng(0)
    for start, size in frames[len(frames) // 3 : len(frames) // 2]:
        damaged[start + 4 : start + size] = rng.bytes(size - 4)
    (tmp_path / "noise.mp3").write_bytes(b"ID3\3\0\0\0\0\0\x0aTIT2\0\0\1\0\0\0" + damaged)
    (tmp_path / "cut.mp3").write_bytes(coded[frames[10][0] :])
    with pytest.raises(DecodeError, match="libmpg123") as error:
        decode.read_mono(tmp_path / "noise.mp3", 16_000, MAX_SECONDS)
    assert error.value.reason == "corrupt"
    assert len(decode.read_mono(tmp_path / "cut.mp3", 16_000, MAX_SECONDS)) > 12_000
    os.write(2, b"still open\n")
    assert "still open" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "options"), [("streamed.flac", ["-f", "flac"]), ("a.mka", ["-c:a", "flac"]), ("a.wv", []), ("a.tta", [])]
)
def test_one_wrong_bit_is_told_by_the_formats_own_checksums_through_ffmpeg_too(media, tmp_path, name, options):
    noise = ["-f", "lavfi", "-i", "anoisesrc=d=1:a=0.5:seed=1:r=44100"]
    if name.startswith("streamed"):
        data = ffmpeg(*noise, *options, "-")
    else:
        ffmpeg(*noise, *options, tmp_path / name)
        data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data)
    assert decode.probe(tmp_path / name, MAX_SECONDS).backend == "ffmpeg"
    assert len(whole(tmp_path / name)[1]) == 44_100
    for share in (0.3, 0.5, 0.7):
        damaged = bytearray(data)
        damaged[int(share * len(data))] ^= 0x10
        (tmp_path / name).write_bytes(damaged)
        assert reason_of(tmp_path / name) in ("corrupt", "truncated")


def test_the_mix_is_the_mean_of_the_channels_and_both_backends_give_the_same(media, tmp_path):
    wave = np.stack([np.full(1000, 0.5), np.full(1000, -0.25)], axis=1)
    for subtype in ("PCM_16", "FLOAT"):
        soundfile.write(tmp_path / "x.wav", wave, 16_000, subtype=subtype)
        np.testing.assert_array_equal(whole(tmp_path / "x.wav")[1], np.full(1000, 0.125, dtype=np.float32))
    ffmpeg("-i", media / "pcm16.wav", "-c:a", "alac", tmp_path / "x.m4a")
    np.testing.assert_array_equal(whole(tmp_path / "x.m4a")[1], whole(media / "pcm16.wav")[1])


def test_blocks_are_bounded_and_do_not_share_memory(tmp_path):
    wave = np.random.default_rng(0).integers(-9000, 9000, 700_000).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", wave, 44_100)
    _, blocks = decode.decode_blocks(tmp_path / "x.wav", MAX_SECONDS)
    kept = list(blocks)
    assert max(map(len, kept)) <= layout.BLOCK_SAMPLES
    np.testing.assert_array_equal(np.concatenate(kept), wave / np.float32(32768))


def test_a_decode_error_crosses_processes():
    import pickle

    error = pickle.loads(pickle.dumps(DecodeError("nan", "why")))
    assert (error.reason, error.detail, str(error)) == ("nan", "why", "nan (why)")


@pytest.mark.slow
def test_every_real_recording_is_accepted(shared):
    paths = [*sorted((shared / "data" / "esc10").rglob("*.ogg")), *sorted((shared / "data" / "cc0_samples").rglob("*.flac"))]
    assert len(paths) == 240 + 195
    for path in paths:
        probed = decode.probe(path, MAX_SECONDS)
        rate, wave = whole(path)
        assert (rate, len(wave)) == (probed.sample_rate, probed.num_frames), path
        assert len(wave) == soundfile.info(path).frames, path
