"""Any real file decodes to what it holds; every damaged, lying or hostile one is refused with its reason, and nothing hangs."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soundmill.audio import flac
from soundmill.decoding import containers, decode
from soundmill.decoding import ffmpeg as ffmpeg_module
from soundmill.decoding.containers import layout, ogg, sniffing, tags
from soundmill.decoding.containers.frames import mpeg_frame
from soundmill.decoding.decode import DecodeError
from soundmill.errors import UserError
from tests.processes import assert_nothing_is_left, marked, new_mark, wait_for

ROOT = Path(__file__).resolve().parents[2]

MAX_SECONDS = 60.0

# name → ffmpeg's output options; all hold one second of a 440 Hz tone.
VALID = {
    "pcm16.wav": [],
    "u8.wav": ["-c:a", "pcm_u8"],
    "s24.wav": ["-c:a", "pcm_s24le"],
    "s32.wav": ["-c:a", "pcm_s32le"],
    "f32.wav": ["-c:a", "pcm_f32le"],
    "f64.wav": ["-c:a", "pcm_f64le"],
    "alaw.wav": ["-c:a", "pcm_alaw"],
    "mulaw.wav": ["-c:a", "pcm_mulaw"],
    "ms.wav": ["-c:a", "adpcm_ms"],
    "ima.wav": ["-c:a", "adpcm_ima_wav"],
    "yamaha.wav": ["-c:a", "adpcm_yamaha"],
    "g726.wav": ["-c:a", "g726", "-ar", "8000", "-ac", "1"],
    "mp3.wav": ["-c:a", "libmp3lame"],
    "rf64.wav": ["-rf64", "always"],
    "a.w64": [],
    "a.aiff": [],
    "a.aifc": ["-c:a", "pcm_f32be", "-f", "aiff"],
    "a.au": [],
    "a.caf": [],
    "alac.caf": ["-c:a", "alac"],
    "a.flac": [],
    "s24.flac": ["-sample_fmt", "s32"],
    "a.ogg": ["-c:a", "libvorbis"],
    "flac.ogg": ["-c:a", "flac"],
    "a.opus": [],
    "cbr.mp3": [],
    "vbr.mp3": ["-q:a", "4"],
    "uncounted.mp3": ["-write_xing", "0"],
    "tagged.mp3": ["-metadata", "title=x", "-write_id3v1", "1"],
    "a.mp2": [],
    "a.m4a": [],
    "fast.m4a": ["-movflags", "faststart"],
    "fragments.mp4": ["-movflags", "frag_keyframe+empty_moov"],
    "alac.m4a": ["-c:a", "alac"],
    "a.mov": [],
    "a.3gp": ["-c:a", "aac"],
    "a.mka": [],
    "a.webm": [],
    "a.wma": [],
    "a.aac": [],
    "a.ac3": [],
    "a.eac3": [],
    "a.dts": ["-c:a", "dca", "-strict", "-2"],
    "a.amr": ["-c:a", "libopencore_amrnb", "-ar", "8000", "-ac", "1"],
    "a.avi": [],
    "a.flv": [],
    "a.ts": [],
    "a.mpg": [],
    "a.wv": [],
    "a.tta": [],
    "a.rm": ["-c:a", "ac3"],
    "a.voc": [],
    "a.nut": [],
    "low.wav": ["-ar", "8000"],
    "high.wav": ["-ar", "192000"],
    "odd.flac": ["-ar", "12345"],
    "surround.flac": ["-af", "pan=5.1|c0=c0|c1=c0|c2=c0|c3=c0|c4=c0|c5=c0"],
    "surround.m4a": ["-af", "pan=5.1|c0=c0|c1=c0|c2=c0|c3=c0|c4=c0|c5=c0"],
}
FILMS = ["film.mp4", "film.mkv", "film.avi", "film.webm", "film.mpg", "film.flv", "film.wmv"]


def ffmpeg(*arguments: str | Path) -> bytes:
    command = [decode.ffmpeg_executable(), "-nostdin", "-loglevel", "error", "-y", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one file of every kind above, and films with and without sound."""
    directory = tmp_path_factory.mktemp("made")
    tone = ["-f", "lavfi", "-i", "aevalsrc=0.5*sin(440*2*PI*t)|0.5*sin(440*2*PI*t):s=44100:d=1"]
    for name, options in VALID.items():
        ffmpeg(*tone, *options, directory / name)
    picture = ["-f", "lavfi", "-i", "testsrc=d=2:s=64x64:r=25"]
    for name in FILMS:
        ffmpeg(*tone, *picture, directory / name)
        ffmpeg(*picture, directory / f"mute-{name}")
    return directory


def whole(path: bytes | str | Path, max_seconds: float = MAX_SECONDS) -> tuple[int, np.ndarray]:
    rate, blocks = decode.decode_blocks(path, max_seconds)
    return rate, np.concatenate(list(blocks))


def reason_of(path: bytes | str | Path, max_seconds: float = MAX_SECONDS) -> str:
    with pytest.raises(DecodeError) as refused:
        whole(path, max_seconds)
    return refused.value.reason


@pytest.mark.parametrize("name", [*VALID, *FILMS])
def test_every_kind_of_file_gives_its_tone(made, name):
    probed = decode.probe(made / name, MAX_SECONDS)
    rate, wave = whole(made / name)
    assert (rate, len(wave)) == (probed.sample_rate, probed.num_frames)
    assert 0.9 < len(wave) / rate < 1.15
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(np.argmax(spectrum) * rate / len(middle) - 440) < 5
    assert 0.25 < np.abs(middle).max() < 0.75


def test_extensions_mean_nothing(made, tmp_path):
    for name in ("a.m4a", "a.flac", "cbr.mp3"):
        (tmp_path / "x.wav").write_bytes((made / name).read_bytes())
        assert decode.probe(tmp_path / "x.wav", MAX_SECONDS) == decode.probe(made / name, MAX_SECONDS)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x80000000, 0x7FFFF000])
def test_streamed_wav_headers_are_valid(made, tmp_path, size):
    data = (made / "pcm16.wav").read_bytes()
    at = data.index(b"data") + 4
    (tmp_path / "x.wav").write_bytes(data[:at] + struct.pack("<I", size) + data[at + 4 :])
    np.testing.assert_array_equal(whole(tmp_path / "x.wav")[1], whole(made / "pcm16.wav")[1])


@pytest.mark.parametrize("form", ["wav", "flac", "au", "caf", "w64", "aiff", "ogg", "mp3", "matroska", "avi", "mpegts"])
def test_what_ffmpeg_wrote_to_a_pipe_is_valid(tmp_path, form):
    (tmp_path / "x").write_bytes(ffmpeg("-f", "lavfi", "-i", "sine=440:r=44100:d=1", "-f", form, "pipe:1"))
    rate, wave = whole(tmp_path / "x")
    assert 0.98 < len(wave) / rate < 1.1


def test_mp3_whose_length_can_only_be_guessed_is_not_cut(tmp_path):
    # Loud, then almost silent: an estimate from the first frames' bit rate is far too short.
    source = "aevalsrc=random(0)*lt(t\\,1)+0.00001*random(1):d=20:s=44100"
    ffmpeg("-f", "lavfi", "-i", source, "-q:a", "0", "-write_xing", "0", tmp_path / "x.mp3")
    rate, wave = whole(tmp_path / "x.mp3")
    assert 20 <= len(wave) / rate < 20.1


NAMES = [
    b"a b.wav",
    b'it\'s "quoted".wav',
    b"new\nline.wav",
    b"100%d %s.wav",
    b"c:o:lon.wav",
    b"-leading.wav",
    b"\xff\xfe\x80.wav",
    b"pipe:1",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["pcm16.wav", "cbr.mp3", "a.m4a"])
def test_names_never_matter(made, tmp_path, monkeypatch, name, source):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        file.write((made / source).read_bytes())
    expected = decode.probe(made / source, MAX_SECONDS)
    assert decode.probe(path, MAX_SECONDS) == expected
    monkeypatch.chdir(tmp_path)
    assert decode.probe(name, MAX_SECONDS) == expected


# Cutting these short leaves no trace in the file: nothing in them declares a length, or it ends on a packet.
UNMARKED = {"a.nut", "a.tta", "a.mpg", "a.rm", "a.ts", "tagged.mp3", "film.mpg"}


@pytest.mark.parametrize("name", sorted({*VALID, *FILMS}))
def test_a_file_cut_in_the_middle_is_refused(made, tmp_path, name):
    data = (made / name).read_bytes()
    (tmp_path / "x").write_bytes(data[: int(len(data) * 0.613) + 1])
    assert reason_of(tmp_path / "x") in ("truncated", "corrupt")


@pytest.mark.parametrize("name", sorted({*VALID, *FILMS} - UNMARKED))
def test_a_file_without_its_last_bytes_is_refused(made, tmp_path, name):
    (tmp_path / "x").write_bytes((made / name).read_bytes()[:-7])
    assert reason_of(tmp_path / "x") in ("truncated", "corrupt")


@pytest.mark.parametrize(
    "name",
    [
        "a.flac",
        "s24.flac",
        "a.ogg",
        "flac.ogg",
        "a.opus",
        "cbr.mp3",
        "vbr.mp3",
        "uncounted.mp3",
        "a.m4a",
        "a.webm",
        "a.wma",
        "a.aac",
    ],
)
def test_noise_in_the_middle_is_refused(made, tmp_path, name):
    data = bytearray((made / name).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = random.Random(0).randbytes(600)
    (tmp_path / "x").write_bytes(data)
    assert reason_of(tmp_path / "x") in ("truncated", "corrupt")


def test_flac_whose_samples_are_not_the_ones_it_signed_is_corrupt(made, tmp_path):
    data = bytearray((made / "a.flac").read_bytes())
    data[30] ^= 1  # the signature stands in bytes 26–41
    (tmp_path / "x.flac").write_bytes(data)
    assert reason_of(tmp_path / "x.flac") == "corrupt"


def test_one_wrong_bit_in_an_ogg_page_is_corrupt(made, tmp_path):
    data = bytearray((made / "a.ogg").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.ogg").write_bytes(data)
    assert reason_of(tmp_path / "x.ogg") == "corrupt"


def test_ogg_checksum_is_the_one_in_the_page(made):
    data = (made / "a.ogg").read_bytes()
    end = data.index(b"OggS", 4)
    page = data[:22] + b"\0\0\0\0" + data[26:end]
    assert ogg.ogg_checksum(page) == int.from_bytes(data[22:26], "little")
    assert ogg.ogg_checksum(b"123456789") == 0x89A1897F  # CRC-32 without reflection and inversion


def test_checksums_of_pages_are_made_once_for_the_same_bytes(made, tmp_path, monkeypatch):
    """Whoever probed a file, and knows its bytes again, decodes it without: libogg leaves out a page with a wrong one, and its
    samples are missed."""
    data = bytearray((made / "a.ogg").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.ogg").write_bytes(data)

    def found(path: Path, **told: bool) -> list[int] | str:
        with closing(decode.open_all([decode.open_regular(path)], MAX_SECONDS, **told)) as opened:
            try:
                recording = next(opened)
                if isinstance(recording, decode.DecodeError):
                    raise recording
                return [len(block) for block in recording.blocks]
            except decode.DecodeError as error:
                return str(error)

    assert found(tmp_path / "x.ogg").startswith("corrupt (wrong checksum of the Ogg page at byte ")
    assert found(tmp_path / "x.ogg", sums_checked=True).startswith(("corrupt", "truncated"))
    whole_sound = found(made / "a.ogg")
    monkeypatch.setattr(ogg, "ogg_checksum", lambda page: pytest.fail("made again"))
    assert found(made / "a.ogg", sums_checked=True) == whole_sound
    with pytest.raises(pytest.fail.Exception):
        found(made / "a.ogg")


def opus_with_shifted_pages(tmp_path: Path, by: int) -> Path:
    """One second of Opus whose pages, but for the last, tell a position that is `by` samples off their packets'."""
    ffmpeg("-f", "lavfi", "-i", "sine=440:d=1:r=48000", "-c:a", "libopus", "-page_duration", "100000", tmp_path / "even.opus")
    data = bytearray((tmp_path / "even.opus").read_bytes())
    starts = [found.start() for found in re.finditer(b"OggS", data)]
    for number, (at, end) in enumerate(itertools.pairwise([*starts, len(data)])):
        position = int.from_bytes(data[at + 6 : at + 14], "little")
        if 3 <= number < len(starts) - 1:
            data[at + 6 : at + 14] = (position + by).to_bytes(8, "little")
        data[at + 22 : at + 26] = bytes(4)
        data[at + 22 : at + 26] = ogg.ogg_checksum(bytes(data[at:end])).to_bytes(4, "little")
    (tmp_path / "odd.opus").write_bytes(data)
    return tmp_path / "odd.opus"


@pytest.mark.parametrize("by", [-312, 312])
def test_opus_whose_pages_disagree_with_their_packets_is_read_whole(tmp_path, by):
    """ffmpeg writes such files where its source has gaps or overlaps, as 15 % of ESC-10 have; libsndfile stops in the middle."""
    odd = opus_with_shifted_pages(tmp_path, by)
    rate, wave = whole(odd)
    assert decode.probe(odd, MAX_SECONDS).num_frames == len(wave)
    assert abs(len(wave) / rate - 1) < 0.01
    even_rate, even = whole(tmp_path / "even.opus")
    assert np.abs(wave[4800:40000] - even[4800:40000]).max() < 1e-3
    assert even_rate == rate == 48000


def test_the_length_of_an_opus_packet_is_in_its_first_two_bytes():
    """Against RFC 6716: SILK 10–60 ms, hybrid 10–20 ms, CELT 2.5–20 ms, one frame, two, or as many as the second byte says."""
    assert [ogg.opus_samples(bytes([config << 3])) for config in (0, 3, 12, 15, 16, 31)] == [480, 2880, 480, 960, 120, 960]
    assert [ogg.opus_samples(bytes([31 << 3 | code, 5])) for code in range(4)] == [960, 1920, 1920, 4800]
    assert ogg.opus_samples(b"") == 0


def test_chained_ogg_is_read_to_its_end(made, tmp_path):
    (tmp_path / "x.ogg").write_bytes((made / "a.ogg").read_bytes() * 2)
    rate, wave = whole(tmp_path / "x.ogg")
    assert 1.95 < len(wave) / rate < 2.1


@pytest.mark.parametrize("name", FILMS)
def test_a_film_without_sound_has_no_audio_stream(made, name):
    assert reason_of(made / f"mute-{name}") == "no audio stream"


PLAYLISTS = {
    "list.mp3": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
    "list.wav": "ffconcat version 1.0\nfile '{other}'\n",
    "list.ogg": "[playlist]\nFile1={other}\nNumberOfEntries=1\n",
    "list.flac": '<?xml version="1.0"?>\n<playlist version="1"><trackList/></playlist>',
    "list.m4a": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
}
TEXTS = {
    "page.mp3": "<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "rows.wav": "file_name,caption\na.wav,a dog barks\n",
    "data.flac": '{"caption": "a dog barks"}',
    "paths.wav": "/etc/passwd\n/etc/hostname\n",
    "word.ogg": "x",
    "umlaut.wav": "ein Hund bellt — äöü\n" * 50,
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("name", "reason"), [*((name, "playlist") for name in PLAYLISTS), *((name, "text") for name in TEXTS)])
def test_text_is_refused_before_any_decoder_sees_it(made, tmp_path, monkeypatch, name, reason, encoding):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was started on text")

    monkeypatch.setattr(ffmpeg_module.subprocess, "Popen", never)
    monkeypatch.setattr(decode.soundfile, "SoundFile", never)
    text = {**PLAYLISTS, **TEXTS}[name].format(other=made / "pcm16.wav") if reason == "playlist" else TEXTS[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert reason_of(tmp_path / name) == reason


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_dressed_as_binary_reads_no_other_file(made, tmp_path, name):
    text = PLAYLISTS[name].format(other=made / "pcm16.wav").encode()
    for dressed in (text + b"\0" * 100, b"\0" + text, b"ID3\x04\0\0\0\0\0\x0a" + b"\0" * 10 + text, b"\x01\x02" + text):
        (tmp_path / name).write_bytes(dressed)
        assert reason_of(tmp_path / name) in ("playlist", "text", "unknown format", "corrupt", "truncated")


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "dir.wav").mkdir()
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "to-fifo.wav").symlink_to(tmp_path / "fifo.wav")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.wav"))
        started = time.monotonic()
        assert reason_of(tmp_path / "fifo.wav") == "not a regular file"
        assert reason_of(tmp_path / "to-fifo.wav") == "not a regular file"
        assert reason_of(tmp_path / "dir.wav") == "not a regular file"
        assert reason_of(tmp_path / "s.wav") == "not a regular file"
        assert reason_of(tmp_path / "dangling.wav") == "dangling link"
        assert reason_of(tmp_path / "loop.wav") == "dangling link"
        assert reason_of(tmp_path / "nowhere.wav") == "missing"
        assert reason_of("/dev/zero") == "not a regular file"
        assert time.monotonic() - started < 5


def test_a_file_that_goes_on_as_gigabytes_of_zeros_is_refused_unread(made, tmp_path):
    """Sparse files, which take no room. Decoders read some to the end, which takes minutes, and of others only the sound."""
    unwalked = {"a.nut", "a.voc"}  # nothing tells where their sound ends
    for name in sorted({*VALID, *FILMS} - unwalked):
        path = tmp_path / name
        shutil.copy(made / name, path)
        os.truncate(path, 2 << 30)
        assert reason_of(path) == "corrupt", name
        path.unlink()


def test_padding_and_silence_at_the_end_are_no_damage(made, tmp_path):
    sound = np.concatenate([np.full(8000, 0.1), np.zeros(2 << 20)])  # seconds of plain zeros
    for form in ("WAV", "AIFF", "AU", "W64", "CAF", "FLAC"):
        soundfile.write(tmp_path / "silence", sound, 48_000, format=form)
        assert len(whole(tmp_path / "silence")[1]) == len(sound), form
    for name in ("a.ogg", "cbr.mp3", "pcm16.wav", "a.m4a"):
        (tmp_path / name).write_bytes((made / name).read_bytes() + bytes(4096))
        assert len(whole(tmp_path / name)[1]) == len(whole(made / name)[1])


def test_gigabytes_of_anything_behind_the_sound_are_refused(made, tmp_path):
    for name, detail in (("a.ogg", "behind the last Ogg page"), ("cbr.mp3", "more than 1048576 zeros from byte")):
        shutil.copy(made / name, tmp_path / name)
        os.truncate(tmp_path / name, 2 << 30)
        with open(tmp_path / name, "ab") as file:
            file.write(b"end")
        with pytest.raises(DecodeError, match=detail):
            whole(tmp_path / name)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_wav_that_promises_too_many_seconds_is_refused_by_its_header(tmp_path, streamed):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.zeros(16_000), 16_000, subtype="PCM_16")
    os.truncate(path, 4 << 30)
    with path.open("r+b") as file:
        file.seek(40)
        file.write(struct.pack("<I", 0xFFFFFFFF if streamed else (4 << 30) - 44))
    with pytest.raises(DecodeError, match="too long"):
        decode.check_header(path, 7200.0)
    decode.check_header(path, 200_000.0)


def test_a_link_to_a_recording_is_that_recording(made, tmp_path):
    (tmp_path / "link.wav").symlink_to(made / "a.m4a")
    assert decode.probe(tmp_path / "link.wav", MAX_SECONDS) == decode.probe(made / "a.m4a", MAX_SECONDS)


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


def test_binary_that_is_no_audio_is_refused(tmp_path):
    junk = {
        "picture.wav": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "archive.mp3": b"PK\x03\x04" + bytes(200),
        "zeros.flac": bytes(100_000),
        "noise.ogg": random.Random(1).randbytes(5000),
    }
    for name, data in junk.items():
        (tmp_path / name).write_bytes(data)
        assert reason_of(tmp_path / name) in ("no audio stream", "unknown format", "corrupt", "truncated"), name


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
def told(act):
    try:
        return act()
    except decode.DecodeError as error:
        return error.reason
for path in sys.argv[1:]:
    print(told(lambda: decode.probe(path, 7200.0).num_frames), told(lambda: sum(map(len, decode.decode_blocks(path, 7200.0)[1]))))
# Not ru_maxrss of ourselves: it begins with what the process had that started us.
own = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


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
    assert lines == [refused, refused, "8000 8000", refused, refused, whole]
    assert max(map(int, memory.split())) < 200_000  # KiB, of this process and of ffmpeg


def test_many_channels_count_against_the_bound(tmp_path):
    soundfile.write(tmp_path / "wide.wav", np.zeros((48_000, 200), dtype=np.int16), 48_000)
    assert decode.probe(tmp_path / "wide.wav", 60.0).channels == 200
    assert reason_of(tmp_path / "wide.wav", max_seconds=1.0) == "too long"


@pytest.mark.parametrize("declared", [10**6, 2**31 - 1, 2**32 - 2])
def test_a_wav_header_that_lies_about_its_length_is_truncated(made, tmp_path, declared):
    data = (made / "pcm16.wav").read_bytes()
    at = data.index(b"data") + 4
    (tmp_path / "x.wav").write_bytes(data[:at] + struct.pack("<I", declared) + data[at + 4 :])
    assert reason_of(tmp_path / "x.wav") == "truncated"


def test_millions_of_empty_chunks_are_not_walked_for_ever(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"RIFF\0\0\0\1WAVE" + b"junk\0\0\0\0" * (layout.MAX_CHUNKS + 1))
    assert reason_of(tmp_path / "x.wav") == "corrupt"


def test_an_mp3_whose_frames_hold_noise_is_corrupt_and_one_taken_up_in_the_middle_is_not(made, tmp_path, capfd):
    """libsndfile decodes both without a word."""
    coded = (made / "cbr.mp3").read_bytes()
    frames, at = [], 10 + sum(byte << 7 * (3 - n) for n, byte in enumerate(coded[6:10])) if coded[:3] == b"ID3" else 0
    while at + 7 < len(coded) and (frame := mpeg_frame(coded[at : at + 7])):
        frames.append((at, frame[0]))
        at += frame[0]
    damaged, rng = bytearray(coded), np.random.default_rng(0)
    for start, size in frames[len(frames) // 3 : len(frames) // 2]:
        damaged[start + 4 : start + size] = rng.bytes(size - 4)
    (tmp_path / "noise.mp3").write_bytes(damaged)
    (tmp_path / "cut.mp3").write_bytes(coded[frames[10][0] :])
    with pytest.raises(DecodeError, match="libmpg123") as error:
        decode.read_mono(tmp_path / "noise.mp3", 16_000, MAX_SECONDS)
    assert error.value.reason == "corrupt"
    assert len(decode.read_mono(tmp_path / "cut.mp3", 16_000, MAX_SECONDS)) > 12_000
    os.write(2, b"still open\n")
    assert "still open" in capfd.readouterr().err


def test_mpeg_audio_whose_rate_or_channels_change_is_not_cut_there(made, tmp_path):
    """libmpg123 ends at such a frame, and libsndfile says nothing of it."""
    for name, options in {"mono": ["-ac", "1"], "slow": ["-ar", "22050"], "same": []}.items():
        coded = ["-b:a", "64k", "-write_xing", "0", "-id3v2_version", "0", tmp_path / f"{name}.mp3"]
        ffmpeg("-i", made / "pcm16.wav", *options, *coded)
    same = (tmp_path / "same.mp3").read_bytes()
    (tmp_path / "twice.mp3").write_bytes(same * 2)
    assert len(whole(tmp_path / "twice.mp3")[1]) == 2 * len(whole(tmp_path / "same.mp3")[1])
    for name in ("mono", "slow"):
        (tmp_path / "x.mp3").write_bytes(same + (tmp_path / f"{name}.mp3").read_bytes())
        with pytest.raises(DecodeError, match=f"from byte {len(same)} on another rate or number of channels") as error:
            whole(tmp_path / "x.mp3")
        assert error.value.reason == "corrupt"


TAGS = {
    "ID3v1": b"TAG".ljust(128, b"\0"),
    "ID3v1, long": b"TAG+".ljust(227, b"\0") + b"TAG".ljust(128, b"\0"),
    "APEv2": b"APETAGEX"
    + struct.pack("<4I8x", 2000, 32 + 20, 1, 5 << 29)
    + bytes(20)
    + b"APETAGEX"
    + struct.pack("<4I8x", 2000, 52, 1, 4 << 29),
    "Lyrics3": b"LYRICSBEGIND0000210" + b"000029LYRICS200",
    "ID3v2": b"ID3\4\0\0\0\0\0\x14" + bytes(20),
}


@pytest.mark.parametrize("tag", TAGS)
def test_tags_end_where_they_say_and_sound_behind_them_is_heard(made, tmp_path, tag):
    coded = (made / "uncounted.mp3").read_bytes()
    coded = coded[tags.tag_end(coded) :]
    alone = len(whole(made / "uncounted.mp3")[1])
    for name, data, count in (
        ("behind", coded + TAGS[tag], 1),
        ("padded", coded + TAGS[tag] + bytes(500), 1),
        ("zeros before it", coded + bytes(300) + TAGS[tag], 1),
        ("filled", coded + b"\xff" * 64 + b"\r\n", 1),
        ("junk behind it", coded + TAGS[tag] + b"\1\2\3" * 50, 1),
        ("between", coded + TAGS[tag] + coded, 2),
    ):
        (tmp_path / "x.mp3").write_bytes(data)
        assert containers.inspect(
            sniffing.Kind("mpeg-audio", "mp3", sndfile=True), (tmp_path / "x.mp3").open("rb"), len(data), MAX_SECONDS
        ).at_least == pytest.approx(count * alone, abs=2 * 1152), name
    counted = (made / "tagged.mp3").read_bytes()
    assert len(whole(made / "tagged.mp3")[1]) == 44_100
    (tmp_path / "twice.mp3").write_bytes(counted * 2)
    assert reason_of(tmp_path / "twice.mp3") == "corrupt"  # its header counts half of it


def test_a_hole_between_frames_is_corrupt(made, tmp_path):
    coded = bytearray((made / "uncounted.mp3").read_bytes())
    at = tags.tag_end(bytes(coded))
    frames = []
    while at + 7 < len(coded) and (frame := mpeg_frame(coded[at : at + 7])):
        frames.append(at)
        at += frame[0]
    coded[frames[10] : frames[20]] = bytes(frames[20] - frames[10])
    (tmp_path / "x.mp3").write_bytes(coded)
    assert reason_of(tmp_path / "x.mp3") == "corrupt"


@pytest.mark.parametrize(
    ("name", "options"),
    {
        "streamed.flac": ["-f", "flac"],
        "tagged.flac": [],
        "a.mka": ["-c:a", "flac"],
        "a.wv": [],
        "a.tta": [],
    }.items(),
)
def test_one_wrong_bit_is_told_by_the_formats_own_checksums_through_ffmpeg_too(made, tmp_path, name, options):
    noise = ["-f", "lavfi", "-i", "anoisesrc=d=1:a=0.5:seed=1:r=44100"]
    if name.startswith("streamed"):
        data = ffmpeg(*noise, *options, "-")
    else:
        ffmpeg(*noise, *options, tmp_path / name)
        data = (tmp_path / name).read_bytes()
    if name.startswith("tagged"):
        data = b"ID3\4\0\0\0\0\0\x14" + bytes(20) + data
    (tmp_path / name).write_bytes(data)
    assert decode.probe(tmp_path / name, MAX_SECONDS).backend == "ffmpeg"
    assert len(whole(tmp_path / name)[1]) == 44_100
    for share in (0.3, 0.5, 0.7):
        damaged = bytearray(data)
        damaged[int(share * len(data))] ^= 0x10
        (tmp_path / name).write_bytes(damaged)
        assert reason_of(tmp_path / name) in ("corrupt", "truncated")


@pytest.mark.parametrize("declared", [0xFFFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_streamed_wav_of_more_than_its_size_can_say_is_refused(made, tmp_path, declared):
    data = (made / "pcm16.wav").read_bytes()
    at = data.index(b"data") + 4
    with (tmp_path / "x.wav").open("wb") as file:
        file.write(data[:at] + struct.pack("<I", declared) + data[at + 4 :])
        file.truncate(at + 4 + declared)  # sparse
    decode.probe(tmp_path / "x.wav", 10 * 3600)  # as much as the size says
    with (tmp_path / "x.wav").open("r+b") as file:
        file.truncate(at + 4 + declared + 1000)
    with pytest.raises(DecodeError, match="more than WAV can count"):
        decode.probe(tmp_path / "x.wav", 10 * 3600)
    with (tmp_path / "x.wav").open("r+b") as file:  # a size that was counted round
        file.seek(at)
        file.write(struct.pack("<I", 1000))
        file.truncate(at + 4 + 2**32 + 1000)
    with pytest.raises(DecodeError, match="more than WAV can count"):
        decode.probe(tmp_path / "x.wav", 10 * 3600)


def test_a_film_of_which_a_part_never_came_is_corrupt(made, tmp_path):
    """A download that was given its whole size at the start: ffmpeg plays what there is."""
    whole_film = (made / "film.avi").read_bytes()
    for start, stop in ((0.6, 1.0), (0.4, 0.5)):
        first, last = int(start * len(whole_film)), int(stop * len(whole_film))
        (tmp_path / "x.avi").write_bytes(whole_film[:first] + bytes(last - first) + whole_film[last:])
        assert reason_of(tmp_path / "x.avi") == "corrupt"
    at = whole_film.index(b"idx1")  # padding behind the last packet: one more chunk in the list that holds them, and in the file
    for count in (8, 2048):
        padded = bytearray(whole_film[:at] + bytes(count) + whole_film[at:])
        for where in (4, whole_film.index(b"movi") - 4):
            padded[where : where + 4] = struct.pack("<I", int.from_bytes(padded[where : where + 4], "little") + count)
        (tmp_path / "x.avi").write_bytes(padded)
        assert len(whole(tmp_path / "x.avi")[1]) == len(whole(made / "film.avi")[1])


def test_ffmpeg_that_hangs_is_killed(made, tmp_path, monkeypatch):
    fake = tmp_path / "ffmpeg"
    fake.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 100\n")
    fake.chmod(0o755)
    monkeypatch.setattr(ffmpeg_module, "ffmpeg_executable", lambda: fake)
    monkeypatch.setattr(ffmpeg_module, "STALL_SECONDS", 1.0)
    assert reason_of(made / "a.m4a", max_seconds=1.5) == "timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_ffmpeg_that_is_stuck_ends_with_the_process_that_started_it(made):
    mark = new_mark()
    code = "import sys; from soundmill.decoding import decode; next(decode.decode_blocks(sys.argv[1], 60.0)[1]); input()"
    command = [sys.executable, "-c", code, str(made / "a.m4a")]
    parent = subprocess.Popen(command, env={**os.environ, **mark, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE)
    child = wait_for(lambda: [pid for pid, command in marked(mark).items() if "-loglevel" in command])[0]
    os.kill(child, signal.SIGSTOP)
    assert child in marked(mark)
    parent.kill()
    parent.wait()
    assert_nothing_is_left(mark, set())


def test_ffmpeg_that_somebody_kills_says_nothing_of_the_file(made, tmp_path, monkeypatch):
    """As the kernel does where memory is short: the file must not be called damaged."""
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\nkill -9 $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr(ffmpeg_module, "ffmpeg_executable", lambda: fake)
    with pytest.raises(UserError, match=r"ffmpeg was killed \(signal 9\).*Run it again"):
        decode.probe(made / "a.m4a", MAX_SECONDS)


def test_ffmpeg_ends_when_its_reader_stops(made, monkeypatch):
    children = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        ffmpeg_module.subprocess, "Popen", lambda *args, **kwargs: children.append(popen(*args, **kwargs)) or children[-1]
    )
    _, blocks = decode.decode_blocks(made / "surround.m4a", MAX_SECONDS)
    next(blocks)
    blocks.close()
    assert [child.poll() is not None for child in children] == [True]


def test_ffmpeg_missing_names_the_remedy(made, monkeypatch):
    decode.ffmpeg_executable.cache_clear()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    try:
        with pytest.raises(UserError, match="imageio-ffmpeg"):
            decode.probe(made / "a.m4a", MAX_SECONDS)
        assert decode.probe(made / "a.flac", MAX_SECONDS).backend == "libsndfile"
    finally:
        decode.ffmpeg_executable.cache_clear()


def test_ffmpeg_that_does_not_run_is_not_blamed_on_the_files(made, tmp_path, monkeypatch):
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    decode.ffmpeg_executable.cache_clear()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(broken))
    try:
        with pytest.raises(UserError, match="does not run"):
            decode.probe(made / "a.m4a", MAX_SECONDS)
    finally:
        decode.ffmpeg_executable.cache_clear()


def test_which_ffmpeg_is_known_without_running_the_wheels(monkeypatch, tmp_path):
    named = tmp_path / "ffmpeg"
    named.write_text("#!/bin/sh\necho ffmpeg version 7.1-own Copyright\n")
    named.chmod(0o755)
    version = re.search(r"-v(\d+(\.\d+)*)", decode.installed_version())[1]
    assert version in decode.ffmpeg_version()
    with monkeypatch.context() as patch:
        patch.setattr(ffmpeg_module.subprocess, "run", lambda *_, **__: pytest.fail("it was run"))
        ffmpeg_module.version_of.cache_clear()
        assert version in decode.installed_version()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(named))
    assert decode.installed_version() == "7.1-own"
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    monkeypatch.setattr(ffmpeg_module, "_of_wheel", lambda: None)  # built without: the one on PATH
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert decode.installed_version() == "7.1-own"
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert decode.installed_version() == "none"


def test_complaints_are_told_the_same_way_every_time(made, tmp_path):
    """ffmpeg's threads complain in any order; the quarantine table must not show it."""
    for name in ("a.m4a", "a.webm", "a.wma", "a.ac3", "film.mp4"):
        data = bytearray((made / name).read_bytes())
        middle = len(data) // 2
        data[middle : middle + 600] = random.Random(0).randbytes(600)
        (tmp_path / "x").write_bytes(data)
        told = set()
        for _ in range(5):
            with pytest.raises(DecodeError) as refused:
                whole(tmp_path / "x")
            told.add(str(refused.value))
        assert len(told) == 1, told


def test_huge_numbers_do_not_overflow_into_sound(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.full((1000, 2), 3e38), 16_000, subtype="FLOAT")
    assert reason_of(tmp_path / "x.wav") == "nan"


def test_ffmpeg_may_read_one_file_and_nothing_else():
    mp4 = sniffing.Kind("mp4", "mov")
    command = ffmpeg_module.compile_command([(7, mp4)], [1])
    assert command[command.index("-i") + 1] == "file:/proc/self/fd/7"
    before = command[: command.index("-i")]
    assert before[before.index("-f") + 1] == "mov"
    assert before[before.index("-protocol_whitelist") + 1] == "file"
    assert "-nostdin" in command
    several = ffmpeg_module.compile_command([(7, mp4), (9, sniffing.UNKNOWN), (8, mp4)], [4, 5, 6])
    assert several.count("-protocol_whitelist") == 3
    assert [several[index + 1] for index, word in enumerate(several) if word == "-map"] == ["0:a:0", "1:a:0", "2:a:0"]
    free = ffmpeg_module.compile_command([(7, sniffing.UNKNOWN)], [1])
    allowed = set(free[free.index("-format_whitelist") + 1].split(","))
    assert not allowed & {
        "hls",
        "concat",
        "dash",
        "sdp",
        "rtp",
        "rtsp",
        "image2",
        "imf",
        "lavfi",
        "data",
        "tty",
        "webm_dash_manifest",
    }


def outcome(recording: decode.Recording | DecodeError) -> tuple[object, ...]:
    """What one file came to: its samples, or the whole error."""
    try:
        if isinstance(recording, DecodeError):
            raise recording
        blocks = list(recording.blocks)
    except DecodeError as error:
        return error.reason, error.detail
    samples = np.concatenate(blocks)
    assert recording.num_frames in (None, len(samples))
    return recording.format, recording.sample_rate, recording.channels, recording.backend, samples.tobytes()


def outcomes(paths: list[Path]) -> list[tuple[object, ...]]:
    return [outcome(recording) for recording in decode.open_all((decode.open_regular(path) for path in paths), MAX_SECONDS)]


@pytest.fixture(scope="module")
def mixed(made, tmp_path_factory) -> dict[Path, tuple[object, ...]]:
    """Good and damaged files of many kinds, each with what it comes to when it is decoded alone."""
    directory = tmp_path_factory.mktemp("mixed")
    names = ["a.m4a", "fast.m4a", "fragments.mp4", "alac.m4a", "surround.m4a", "a.webm", "a.wma", "a.aac", "a.avi", "film.mp4"]
    for name in [*names, "film.mkv", "a.ts", "a.ac3", "a.amr", "a.flv", "yamaha.wav", "pcm16.wav", "a.ogg"]:
        data = (made / name).read_bytes()
        (directory / name).write_bytes(data)
        if name in ("a.m4a", "a.webm", "film.mp4", "a.aac", "a.wma", "a.ogg"):
            (directory / f"cut-{name}").write_bytes(data[: len(data) * 2 // 3])
            middle = len(data) // 2
            noise = random.Random(0).randbytes(600)
            (directory / f"noisy-{name}").write_bytes(data[:middle] + noise + data[middle + 600 :])
    (directory / "mute.mp4").write_bytes((made / "mute-film.mp4").read_bytes())
    (directory / "junk").write_bytes(random.Random(1).randbytes(5000))
    (directory / "page.m4a").write_text("<html>not found</html>")
    return {path: outcomes([path])[0] for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("seed", range(3))
def test_files_decoded_together_come_to_what_they_do_alone(mixed, seed):
    paths = list(mixed)
    random.Random(seed).shuffle(paths)
    paths = paths[: len(paths) - 5 * seed]
    assert outcomes(paths) == [mixed[path] for path in paths]


def test_good_files_share_one_process(mixed, monkeypatch):
    started = []
    compile_command = ffmpeg_module.compile_command
    monkeypatch.setattr(
        ffmpeg_module, "compile_command", lambda inputs, outputs: started.append(len(inputs)) or compile_command(inputs, outputs)
    )
    good = [path for path, found in mixed.items() if found[-2] == "ffmpeg"]
    assert len(good) >= 12
    assert outcomes(good) == [mixed[path] for path in good]
    assert started == [len(good)]


def test_a_file_that_lies_about_its_length_bursts_its_batch_and_no_other_file(made, mixed, tmp_path, monkeypatch):
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono", "-t", "90", tmp_path / "long.m4a")
    data = (tmp_path / "long.m4a").read_bytes()
    at = data.index(b"mvhd") + 16
    scale = int.from_bytes(data[at : at + 4], "big")
    (tmp_path / "bomb.m4a").write_bytes(data[: at + 4] + struct.pack(">I", scale) + data[at + 8 :])
    monkeypatch.setattr(ffmpeg_module, "BATCH_BYTES", 2 << 20)  # 65 s of it
    others = [path for path in mixed if path.name in ("a.m4a", "a.webm", "fast.m4a")]
    found = outcomes([others[0], tmp_path / "bomb.m4a", *others[1:]])
    assert found[1][0] == "too long"
    assert [found[0], *found[2:]] == [mixed[path] for path in others]


def test_what_was_opened_is_closed(mixed):
    before = set(os.listdir("/proc/self/fd"))
    outcomes(list(mixed))
    some = decode.open_all((decode.open_regular(path) for path in mixed), MAX_SECONDS)
    next(some)
    some.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_wav_keeps_its_comment_and_its_sound(tmp_path):
    wave = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    for name, comment in (
        ("said", 'prompt: "ein Hund bellt, dann Regen – 雨"'),
        ("again", 'prompt: "ein Hund bellt, dann Regen – 雨"'),
        ("bare", None),
    ):
        flac.write_wav(tmp_path / f"{name}.wav", wave, 16_000, comment)
    with soundfile.SoundFile(tmp_path / "said.wav") as sound:
        assert sound.comment == 'prompt: "ein Hund bellt, dann Regen – 雨"'
    assert (tmp_path / "said.wav").read_bytes() == (tmp_path / "again.wav").read_bytes()
    for name in ("said", "bare"):
        np.testing.assert_allclose(soundfile.read(tmp_path / f"{name}.wav", dtype="float32")[0], wave, atol=1 / 32_768)


def test_the_mix_is_the_mean_of_the_channels(tmp_path):
    wave = np.stack([np.full(1000, 0.5), np.full(1000, -0.25)], axis=1)
    for subtype in ("PCM_16", "FLOAT"):
        soundfile.write(tmp_path / "x.wav", wave, 16_000, subtype=subtype)
        np.testing.assert_array_equal(whole(tmp_path / "x.wav")[1], np.full(1000, 0.125, dtype=np.float32))


def test_both_backends_give_the_same_samples(made, tmp_path):
    ffmpeg("-i", made / "pcm16.wav", "-c:a", "alac", tmp_path / "x.m4a")
    np.testing.assert_array_equal(whole(tmp_path / "x.m4a")[1], whole(made / "pcm16.wav")[1])


def test_blocks_are_bounded_and_do_not_share_memory(tmp_path):
    wave = np.random.default_rng(0).integers(-9000, 9000, 700_000).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", wave, 44_100)
    _, blocks = decode.decode_blocks(tmp_path / "x.wav", MAX_SECONDS)
    kept = list(blocks)
    assert max(map(len, kept)) <= decode.BLOCK_SAMPLES
    np.testing.assert_array_equal(np.concatenate(kept), wave / np.float32(32768))


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=500))
def test_sixteen_bit_sound_survives_flac_bit_for_bit(values):
    wave = np.array(values, dtype=np.float32) / np.float32(32768)
    data = flac.encode_flac(wave, 16_000)
    np.testing.assert_array_equal(flac.decode_mono(data), wave)
    assert flac.encode_flac(wave, 16_000) == data
    assert flac.flac_checksum(data) == hashlib.md5(np.array(values, "<i2").tobytes()).digest()


def test_beyond_full_scale_is_held_there(tmp_path):
    flac.write_wav(tmp_path / "x.wav", np.array([2.0, -2.0, 1.0, 0.0], dtype=np.float32), 16_000)
    np.testing.assert_array_equal(soundfile.read(tmp_path / "x.wav", dtype="int16")[0], [32767, -32768, 32767, 0])


def test_write_wav_leaves_only_the_file(tmp_path):
    flac.write_wav(tmp_path / "new" / "x.wav", np.zeros(100, dtype=np.float32), 16_000)
    flac.write_wav(tmp_path / "new" / "x.wav", np.ones(50, dtype=np.float32), 16_000)
    assert os.listdir(tmp_path / "new") == ["x.wav"]
    assert soundfile.info(tmp_path / "new" / "x.wav").frames == 50


def test_read_mono_resamples(made):
    assert 15_500 < len(decode.read_mono(made / "a.m4a", 16_000, MAX_SECONDS)) < 17_500


def test_a_decode_error_crosses_processes():
    import pickle

    error = pickle.loads(pickle.dumps(DecodeError("nan", "why")))
    assert (error.reason, error.detail, str(error)) == ("nan", "why", "nan (why)")


MUTATED = [
    "pcm16.wav",
    "rf64.wav",
    "a.w64",
    "a.aiff",
    "a.au",
    "a.caf",
    "a.flac",
    "a.ogg",
    "a.opus",
    "cbr.mp3",
    "a.voc",
    "a.m4a",
    "a.webm",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_either_harmless_or_a_decode_error(made, tmp_path, data):
    content = bytearray((made / data.draw(st.sampled_from(MUTATED))).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(400, len(content) - 1)))] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        _, wave = whole(tmp_path / "x")
    except DecodeError:
        return
    assert np.isfinite(wave).all()


@pytest.mark.slow
def test_every_real_recording_is_accepted(shared):
    paths = [*sorted((shared / "data" / "esc10").rglob("*.ogg")), *sorted((shared / "data" / "cc0_samples").rglob("*.flac"))]
    assert len(paths) == 240 + 195
    for path in paths:
        probed = decode.probe(path, MAX_SECONDS)
        rate, wave = whole(path)
        assert (rate, len(wave)) == (probed.sample_rate, probed.num_frames), path
        assert len(wave) == soundfile.info(path).frames, path


def test_flac_bytes_are_readable_by_others():
    wave, rate = soundfile.read(io.BytesIO(flac.encode_flac(np.zeros(100, dtype=np.float32), 16_000)))
    assert (len(wave), rate) == (100, 16_000)


def test_a_wav_for_which_the_disk_has_no_room_is_an_error_that_says_so(tmp_path):
    (tmp_path / f".x.wav.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        flac.write_wav(tmp_path / "x.wav", np.zeros(16_000, np.float32), 16_000)
    assert not (tmp_path / "x.wav").exists()
