"""Damaged, lying and hostile files are refused by their bytes, each with its reason; valid ones are not."""

import os
import random
import shutil
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soundmill.decoding import containers, decode
from soundmill.decoding import ffmpeg as ffmpeg_module
from soundmill.decoding.containers import layout
from soundmill.decoding.decode import DecodeError
from tests.decoding.files import FILMS, MAX_SECONDS, VALID, ffmpeg, mpeg_frames, pages, reason_of, sealed, sparse_wav, whole


@pytest.mark.parametrize("form", ["wav", "rf64", "flac", "au", "caf", "w64", "aiff", "ogg", "mp3", "matroska", "avi", "mpegts"])
def test_what_ffmpeg_wrote_to_a_pipe_is_valid(tmp_path, form):
    options = ["-rf64", "always", "-f", "wav"] if form == "rf64" else ["-f", form]
    (tmp_path / "x").write_bytes(ffmpeg("-f", "lavfi", "-i", "sine=440:r=44100:d=1", *options, "pipe:1"))
    rate, wave = whole(tmp_path / "x")
    assert 0.98 < len(wave) / rate < 1.1


def test_mp3_whose_length_can_only_be_guessed_is_not_cut(tmp_path):
    # Loud, then almost silent: an estimate from the first frames' bit rate is far too short.
    source = "aevalsrc=random(0)*lt(t\\,1)+0.00001*random(1):d=20:s=44100"
    ffmpeg("-f", "lavfi", "-i", source, "-q:a", "0", "-write_xing", "0", tmp_path / "x.mp3")
    rate, wave = whole(tmp_path / "x.mp3")
    assert 20 <= len(wave) / rate < 20.1


# Cutting their last bytes leaves no trace in the sound: nothing declares a length, it ends on a packet, or a tag is cut.
UNMARKED = {"a.wv", "a.nut", "a.tta", "a.mpg", "a.rm", "a.ts", "tagged.mp3", "film.mpg"}


@pytest.mark.parametrize("name", sorted({*VALID, *FILMS}))
def test_a_file_without_its_end_is_refused(media, tmp_path, name):
    data = (media / name).read_bytes()
    for end in (int(len(data) * 0.613) + 1, *([] if name in UNMARKED else [-7])):
        (tmp_path / "x").write_bytes(data[:end])
        assert reason_of(tmp_path / "x") in ("truncated", "corrupt")


NOISY = "a.flac s24.flac a.ogg flac.ogg a.opus cbr.mp3 vbr.mp3 uncounted.mp3 a.m4a a.webm a.wma a.aac".split()


@pytest.mark.parametrize("name", NOISY)
def test_noise_in_the_middle_is_refused(media, tmp_path, name):
    data = bytearray((media / name).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = random.Random(0).randbytes(600)
    (tmp_path / "x").write_bytes(data)
    assert reason_of(tmp_path / "x") in ("truncated", "corrupt", "gap")


def test_ogg_checksum_is_the_one_in_the_page(media):
    data = (media / "a.ogg").read_bytes()
    end = data.index(b"OggS", 4)
    page = data[:22] + b"\0\0\0\0" + data[26:end]
    assert containers.ogg_checksum(page) == int.from_bytes(data[22:26], "little")
    assert containers.ogg_checksum(b"123456789") == 0x89A1897F  # CRC-32 without reflection and inversion


def test_checksums_of_pages_are_made_once_for_the_same_bytes(media, tmp_path, monkeypatch):
    """Whoever probed a file, and knows its bytes again, decodes it without: libogg leaves out a page with a wrong one, and its
    samples are missed."""
    data = bytearray((media / "a.ogg").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.ogg").write_bytes(data)

    def lengths(path: Path, **options: bool) -> list[int] | str:
        with closing(decode.open_all([decode.open_regular(path)], MAX_SECONDS, **options)) as opened:
            try:
                recording = next(opened)
                if isinstance(recording, decode.DecodeError):
                    raise recording
                return [len(block) for block in recording.blocks]
            except decode.DecodeError as error:
                return str(error)

    assert lengths(tmp_path / "x.ogg").startswith("corrupt (wrong checksum of the Ogg page at byte ")
    assert lengths(tmp_path / "x.ogg", sums_checked=True).startswith(("corrupt", "truncated"))
    whole_sound = lengths(media / "a.ogg")
    monkeypatch.setattr(containers, "ogg_checksum", lambda page: pytest.fail("made again"))
    assert lengths(media / "a.ogg", sums_checked=True) == whole_sound
    with pytest.raises(pytest.fail.Exception):
        lengths(media / "a.ogg")


@pytest.mark.parametrize("by", [-312, 312])
def test_opus_whose_pages_disagree_with_their_packets_is_read_whole(tmp_path, by):
    """ffmpeg writes such files where its source has gaps or overlaps, as 15 % of ESC-10 have; libsndfile stops in the middle."""
    ffmpeg("-f", "lavfi", "-i", "sine=440:d=1:r=48000", "-c:a", "libopus", "-page_duration", "100000", tmp_path / "even.opus")
    parts, odd = pages((tmp_path / "even.opus").read_bytes()), tmp_path / "odd.opus"
    for part in parts[3:-1]:  # but for the last
        part[6:14] = (int.from_bytes(part[6:14], "little") + by).to_bytes(8, "little")
    odd.write_bytes(sealed(parts))
    rate, wave = whole(odd)
    assert decode.probe(odd, MAX_SECONDS).num_frames == len(wave)
    assert abs(len(wave) / rate - 1) < 0.01
    even_rate, even = whole(tmp_path / "even.opus")
    assert np.abs(wave[4800:40000] - even[4800:40000]).max() < 1e-3
    assert even_rate == rate == 48000


def test_the_length_of_an_opus_packet_is_in_its_first_two_bytes():
    """Against RFC 6716: SILK 10–60 ms, hybrid 10–20 ms, CELT 2.5–20 ms, one frame, two, or as many as the second byte says."""
    assert [containers.opus_samples(bytes([config << 3])) for config in (0, 3, 12, 15, 16, 31)] == [480, 2880, 480, 960, 120, 960]
    assert [containers.opus_samples(bytes([31 << 3 | code, 5])) for code in range(4)] == [960, 1920, 1920, 4800]
    assert containers.opus_samples(b"") == 0


@pytest.mark.parametrize("name", FILMS)
def test_a_film_without_sound_has_no_audio_stream(media, name):
    assert reason_of(media / f"mute-{name}") == "no audio stream"


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
def test_text_is_refused_before_any_decoder_sees_it(media, tmp_path, monkeypatch, name, reason, encoding):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was started on text")

    monkeypatch.setattr(ffmpeg_module.subprocess, "Popen", never)
    monkeypatch.setattr(decode.soundfile, "SoundFile", never)
    text = {**PLAYLISTS, **TEXTS}[name].format(other=media / "pcm16.wav") if reason == "playlist" else TEXTS[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert reason_of(tmp_path / name) == reason


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_dressed_as_binary_reads_no_other_file(media, tmp_path, name):
    text = PLAYLISTS[name].format(other=media / "pcm16.wav").encode()
    for dressed in (text + b"\0" * 100, b"\0" + text, b"ID3\x04\0\0\0\0\0\x0a" + b"\0" * 10 + text, b"\x01\x02" + text):
        (tmp_path / name).write_bytes(dressed)
        assert reason_of(tmp_path / name) in ("playlist", "text", "unknown format", "corrupt", "truncated")


def test_a_file_that_goes_on_as_gigabytes_of_zeros_is_refused_unread(media, tmp_path):
    """Sparse files, which take no room. Decoders read some to the end, which takes minutes, and of others only the sound."""
    for name in sorted({*VALID, *FILMS} - {"a.nut"}):  # nothing tells where its sound ends
        path = tmp_path / name
        shutil.copy(media / name, path)
        os.truncate(path, 2 << 30)
        assert reason_of(path) == "corrupt", name
        path.unlink()


def test_silence_at_the_end_is_no_damage(tmp_path):
    sound = np.concatenate([np.full(8000, 0.1), np.zeros(2 << 20)])  # seconds of plain zeros
    for form in ("WAV", "AIFF", "AU", "W64", "CAF", "FLAC"):
        soundfile.write(tmp_path / "silence", sound, 48_000, format=form)
        assert len(whole(tmp_path / "silence")[1]) == len(sound), form


def test_gigabytes_of_anything_behind_the_sound_are_refused(media, tmp_path):
    for name, detail in (("a.ogg", "after the last Ogg page"), ("cbr.mp3", "more than 1048576 zeros from byte")):
        shutil.copy(media / name, tmp_path / name)
        os.truncate(tmp_path / name, 2 << 30)
        with open(tmp_path / name, "ab") as file:
            file.write(b"end")
        with pytest.raises(DecodeError, match=detail):
            whole(tmp_path / name)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_wav_that_promises_too_many_seconds_is_refused_by_its_header(tmp_path, streamed):
    path = tmp_path / "x.wav"
    sparse_wav(path, 4 << 30, 0xFFFFFFFF if streamed else None)
    with pytest.raises(DecodeError, match="too long"):
        decode.check_header(path, 7200.0)
    decode.check_header(path, 200_000.0)


def test_binary_that_is_no_audio_is_refused(tmp_path):
    junk = {"picture.wav": b"\x89PNG\r\n\x1a\n" + bytes(200), "archive.mp3": b"PK\x03\x04" + bytes(200)}
    junk |= {"zeros.flac": bytes(100_000), "noise.ogg": random.Random(1).randbytes(5000)}
    for name, data in junk.items():
        (tmp_path / name).write_bytes(data)
        assert reason_of(tmp_path / name) in ("no audio stream", "unknown format", "corrupt", "truncated"), name


def test_millions_of_empty_chunks_are_not_walked_for_ever(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"RIFF\0\0\0\1WAVE" + b"junk\0\0\0\0" * (layout.MAX_CHUNKS + 1))
    assert reason_of(tmp_path / "x.wav") == "corrupt"


def test_mpeg_audio_whose_rate_or_channels_change_is_not_cut_there(media, tmp_path):
    """libmpg123 ends at such a frame, and libsndfile says nothing of it."""
    for name, options in {"mono": ["-ac", "1"], "slow": ["-ar", "22050"], "same": []}.items():
        coded = ["-b:a", "64k", "-write_xing", "0", "-id3v2_version", "0", tmp_path / f"{name}.mp3"]
        ffmpeg("-i", media / "pcm16.wav", *options, *coded)
    same = (tmp_path / "same.mp3").read_bytes()
    for name in ("mono", "slow"):
        (tmp_path / "x.mp3").write_bytes(same + (tmp_path / f"{name}.mp3").read_bytes())
        with pytest.raises(DecodeError, match=f"the rate or number of channels changes at byte {len(same)}") as error:
            whole(tmp_path / "x.mp3")
        assert error.value.reason == "corrupt"


def test_a_hole_between_frames_is_corrupt(media, tmp_path):
    coded = bytearray((media / "uncounted.mp3").read_bytes())
    frames = mpeg_frames(coded)
    coded[frames[10][0] : frames[20][0]] = bytes(frames[20][0] - frames[10][0])
    (tmp_path / "x.mp3").write_bytes(coded)
    assert reason_of(tmp_path / "x.mp3") == "corrupt"


@pytest.mark.parametrize("declared", [0xFFFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_streamed_wav_of_more_than_its_size_can_say_is_refused(media, tmp_path, declared):
    data = (media / "pcm16.wav").read_bytes()
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


def test_a_film_of_which_a_part_never_came_is_corrupt(media, tmp_path):
    """A download that was given its whole size at the start: ffmpeg plays what there is."""
    whole_film = (media / "film.avi").read_bytes()
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
        assert len(whole(tmp_path / "x.avi")[1]) == len(whole(media / "film.avi")[1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_either_harmless_or_a_decode_error(media, tmp_path, data):
    mutated = "pcm16.wav rf64.wav a.w64 a.aiff a.au a.caf a.flac a.ogg a.opus cbr.mp3 a.voc a.m4a a.webm".split()
    content = bytearray((media / data.draw(st.sampled_from(mutated))).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(400, len(content) - 1)))] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        _, wave = whole(tmp_path / "x")
    except DecodeError:
        return
    assert np.isfinite(wave).all()
