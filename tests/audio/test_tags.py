import io
import struct
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from soundmill.audio import flac
from soundmill.audio.tags import CHANGED, GENERATED, MadeBy, read

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


def source_type(data: bytes) -> str:
    (packet,) = [content for name, content in chunks(data) if name == b"_PMX"]
    (described,) = ElementTree.fromstring(packet.decode().split("?>", 1)[1].rsplit("<?", 1)[0]).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    return described.attrib[IPTC]


@pytest.mark.parametrize("kind", [GENERATED, CHANGED])
def test_a_generated_wav_names_its_checkpoint_and_that_a_model_made_it(tmp_path, kind):
    maker = MadeBy('<odd> & "ddpm_mel" checkpoint 00ff', kind)
    flac.write_wav(tmp_path / "made.wav", WAVE, 16_000, "a comment", (120.0, 4), maker)
    data = (tmp_path / "made.wav").read_bytes()
    assert source_type(data) == f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"
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
