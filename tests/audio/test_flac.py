"""Sounds written as WAV and FLAC are read back bit for bit, and say what made them."""

import hashlib
import io
import os
import struct
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from soundmill.audio import flac
from soundmill.audio.tags import CHANGED, GENERATED, MadeBy, read
from soundmill.errors import UserError


def test_a_wav_keeps_its_comment_and_its_sound(tmp_path):
    wave, said = np.linspace(-0.5, 0.5, 1000, dtype=np.float32), 'prompt: "ein Hund bellt, dann Regen – 雨"'
    for name, comment in (("said", said), ("again", said), ("bare", None)):
        flac.write_wav(tmp_path / f"{name}.wav", wave, 16_000, comment)
        np.testing.assert_allclose(soundfile.read(tmp_path / f"{name}.wav", dtype="float32")[0], wave, atol=1 / 32_768)
    with soundfile.SoundFile(tmp_path / "said.wav") as sound:
        assert sound.comment == said
    assert (tmp_path / "said.wav").read_bytes() == (tmp_path / "again.wav").read_bytes()


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


@pytest.mark.parametrize("made_by", [None, MadeBy("rave codec 00ff", CHANGED)])
@pytest.mark.parametrize("comment", [None, "from: somewhere", "x" * 2000])
def test_a_wav_written_in_blocks_is_the_same_file(tmp_path, comment, made_by):
    wave = np.random.default_rng(0).uniform(-1.1, 1.1, (2, 5000)).astype(np.float32)
    flac.write_wav(tmp_path / "whole.wav", wave, 16_000, comment, made_by=made_by)
    flac.write_wav_blocks(tmp_path / "blocks.wav", np.split(wave, [0, 7, 4000], 1), 16_000, 2, comment, made_by)
    assert (tmp_path / "blocks.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()


def test_a_wav_that_is_too_long_for_the_format_is_an_error_that_names_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(flac, "MAX_WAV_BYTES", 100_000)
    block = np.zeros((2, 1000), np.float32)
    with pytest.raises(UserError, match=r"long\.wav: a WAV file holds 2 s of this sound at most"):
        flac.write_wav_blocks(tmp_path / "long.wav", (block for _ in range(25)), 16_000, 2)
    assert list(tmp_path.iterdir()) == []
    flac.write_wav_blocks(tmp_path / "short.wav", (block for _ in range(24)), 16_000, 2)
    assert len(soundfile.read(tmp_path / "short.wav")[0]) == 24_000


def test_a_full_disk_is_told_by_its_own_error_and_a_failure_midway_leaves_nothing(tmp_path):
    (tmp_path / f".x.wav.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        flac.write_wav_blocks(tmp_path / "x.wav", [np.zeros((1, 100_000), np.float32)], 16_000, 1)

    def failing():
        yield np.zeros((1, 100), np.float32)
        raise UserError("the model failed")

    with pytest.raises(UserError, match="the model failed"):
        flac.write_wav_blocks(tmp_path / "part.wav", failing(), 16_000, 1)
    assert list(tmp_path.iterdir()) == []


WAVE = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 4_001)).astype(np.float32)
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents of a RIFF file's chunks, read by its own lengths."""
    assert (data[:4], data[8:12]) == (b"RIFF", b"WAVE")
    assert struct.unpack("<I", data[4:8])[0] == len(data) - 8
    found, place = [], 12
    while place < len(data):
        (size,) = struct.unpack("<I", data[place + 4 : place + 8])
        found.append((data[place : place + 4], data[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    assert place == len(data)
    return found


@pytest.mark.parametrize("kind", [GENERATED, CHANGED])
def test_a_generated_wav_names_its_checkpoint_and_that_a_model_made_it(tmp_path, kind):
    maker = MadeBy('<odd> & "ddpm_mel" checkpoint 00ff', kind)
    flac.write_wav(tmp_path / "made.wav", WAVE, 16_000, "a comment", (120.0, 4), maker)
    data = (tmp_path / "made.wav").read_bytes()
    (packet,) = [content for name, content in chunks(data) if name == b"_PMX"]
    tree = ElementTree.fromstring(packet.decode().split("?>", 1)[1].rsplit("<?", 1)[0])
    (described,) = tree.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert described.attrib[IPTC] == f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"
    assert [name for name, _ in chunks(data)] == [b"fmt ", b"LIST", b"data", b"acid", b"_PMX"]
    with soundfile.SoundFile(tmp_path / "made.wav") as sound:
        assert (sound.comment, sound.software) == ("a comment", f"Soundmill, {maker.weights} (libsndfile)")
        np.testing.assert_array_equal(sound.read(dtype="int16"), flac.to_pcm16(WAVE[0]))
    assert read(tmp_path / "made.wav") == maker


def test_a_flac_names_its_checkpoint_and_has_the_same_samples():
    maker = MadeBy("ddpm_mel checkpoint 00ff", GENERATED)
    data = flac.encode_flac(WAVE, 16_000, maker)
    assert data == flac.encode_flac(WAVE, 16_000, maker)
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        assert (sound.software, sound.comment) == (maker.software, maker.words)
    assert maker.words.endswith("http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia")
    plain = flac.encode_flac(WAVE, 16_000)
    np.testing.assert_array_equal(flac.decode_flac(data), flac.decode_flac(plain))
    assert flac.flac_checksum(data) == flac.flac_checksum(plain)
    assert (flac.flac_rate(data), flac.flac_channels(data)) == (16_000, 1)
    assert b"Soundmill" not in plain


@pytest.mark.parametrize("content", [None, b"", b"RIFF", b"x" * 9000])
def test_a_file_without_tags_was_made_by_nobody_known(tmp_path, content):
    path = tmp_path / "a.wav"
    flac.write_wav(path, WAVE, 16_000)
    if content is not None:
        path.write_bytes(content)
    assert read(path) is None
    assert read(tmp_path / "missing.wav") is None
