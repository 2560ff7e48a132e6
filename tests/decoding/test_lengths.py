"""A file holds the sound that is in it: neither tags, padding, chunks nor what its header could not know change the samples."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmill.decoding import containers, decode
from soundmill.decoding.containers.frames import mpeg_frame
from soundmill.decoding.decode import DecodeError
from tests.decoding.files import MAX_SECONDS, ffmpeg, pages, reason_of, sealed, whole

SECONDS, RATE = 3, 16_000
COUNT = SECONDS * RATE
RNG = np.random.default_rng(0)
NOISE = RNG.bytes(4000)
PLACEHOLDERS = [0, *(2**bits - below for bits in (31, 32) for below in (1, 2, 37, 45, 4096, 4060)), 2**31, 0x7F000000, 0xFFFF0000]
PCM = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")
AIFF_FORM = struct.pack(">hIh", 1, COUNT, 16) + bytes.fromhex("400cfa00000000000000")
CAF_FORM = struct.pack(">d4s5I", RATE, b"lpcm", 0, 2, 1, 1, 16)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of a tone, with noise."""
    path = tmp_path_factory.mktemp("source") / "source.wav"
    wave = 0.4 * np.sin(2 * np.pi * 440 * np.arange(COUNT) / RATE) + 0.02 * RNG.standard_normal(COUNT)
    soundfile.write(path, wave, RATE, subtype="PCM_16")
    return path


def count(path: Path, data: bytes | None = None) -> int:
    """Samples of a file; the header, which `segment` reads, and the decoder, which `resample` runs, agree."""
    if data is not None:
        path.write_bytes(data)
    wave = whole(path)[1]
    assert decode.probe(path, MAX_SECONDS).num_frames == len(wave)
    return len(wave)


CASES = {
    "01-unknown-size/*": COUNT,
    "02-length-of-block-codecs/partial_ima_44100.wav": 44_100,
    "02-length-of-block-codecs/gsm_7blocks.wav": 2227,
    "02-length-of-block-codecs/sf_IMA_ADPCM_15999.wav": 16_272,
    "03-tags-around-the-sound/*": 132_300,
    "04-joined-mp3/*": 308_700,
    "05-chunks-after-data/*": 132_300,
    "06-zeros-at-the-end/*": 89_856,
    "07-opus-input-rate/*": 144_000,
    "08-gaps-in-time/*": 288_000,
}


@pytest.mark.parametrize("pattern", CASES)
def test_every_case_is_read_right(shared, pattern):
    paths = sorted((shared / "cases").glob(pattern))
    assert paths
    for path in paths:
        assert count(path) == pytest.approx(CASES[pattern], abs=4 * 1152 if "mp3" in pattern else 20), path
        wave = decode.read_mono(path, RATE, MAX_SECONDS)
        assert np.sqrt(np.mean(wave[-200:] ** 2)) < 0.35, path  # no noise at the end
        if "07" in pattern:
            power = np.abs(np.fft.rfft(wave)) ** 2
            assert power[len(power) * 3 // 4 :].sum() > 0.1 * power.sum()  # up to 8 kHz
        if "08" in pattern and path.stem != "film_whole":
            assert np.abs(wave[int(2.3 * RATE) : int(3.9 * RATE)]).max() < 1e-3
            assert np.abs(wave[int(4.1 * RATE) :]).max() > 0.3
        if "film" in path.name:
            loud = np.flatnonzero(np.abs(wave) > 0.3) / RATE
            assert loud[0] == pytest.approx(1, abs=0.01)
            assert loud[loud > 3][0] == pytest.approx(5, abs=0.01)


def headers(form: str, size: int, data: bytes, after: bytes = b"") -> bytes:
    """A file whose header gives its data this size; the sound is little-endian PCM of 16 bits."""
    big = np.frombuffer(data, "<i2").astype(">i2").tobytes()
    known = 2 * COUNT
    if form in ("RIFF", "RIFX"):
        word = ("<" if form == "RIFF" else ">") + "I"
        fmt = PCM if form == "RIFF" else struct.pack(">HHIIHH", *struct.unpack("<HHIIHH", PCM))
        head = form.encode() + struct.pack(word, min(size + 36, 2**32 - 1)) + b"WAVEfmt " + struct.pack(word, 16) + fmt
        return head + b"data" + struct.pack(word, size) + (data if form == "RIFF" else big) + after
    if form in ("RF64", "BW64"):  # the second with a size in `data` alone
        long, short = (size, 2**32 - 1) if form == "RF64" else (0, size)
        head = form.encode() + b"\xff\xff\xff\xffWAVEds64" + struct.pack("<I3QI", 28, 2**64 - 1, long, 0, 0)
        return head + b"fmt \x10\0\0\0" + PCM + b"data" + struct.pack("<I", short) + data + after
    if form == "W64":
        head = bytes.fromhex("726966662e91cf11a5d628db04c10000") + struct.pack("<Q", 2**63 - 1) + b"wave" + GUID
        head += b"fmt " + GUID + struct.pack("<Q", 40) + PCM
        return head + b"data" + GUID + struct.pack("<Q", (size + 24) % 2**64) + data + after
    if form == "AIFF":
        head = b"FORM" + struct.pack(">I", 2**32 - 1) + b"AIFFCOMM" + struct.pack(">I", 18) + AIFF_FORM
        return head + b"SSND" + struct.pack(">3I", min(size + 8, 2**32 - 1) if size != 2**32 - 1 else size, 0, 0) + big + after
    if form == "AU":
        return b".snd" + struct.pack(">5I", 24, size, 3, RATE, 1) + big + after
    assert form == "CAF"
    head = b"caff\0\1\0\0desc" + struct.pack(">q", 32) + CAF_FORM
    return head + b"data" + struct.pack(">qI", size + 4 if 0 <= size <= known * 2 else size, 0) + big + after


UNKNOWN_64 = [0, 2**63 - 1, 2**64 - 1]
SIZES = dict.fromkeys(("RIFF", "RIFX", "BW64", "AIFF", "AU"), PLACEHOLDERS)
SIZES |= {"RF64": [*UNKNOWN_64, 2**32 - 1], "W64": [*UNKNOWN_64, 2**63 - 25], "CAF": [-1, 2**63 - 1, 0]}


@pytest.mark.parametrize("form", SIZES)
def test_a_size_that_was_unknown_is_the_rest_and_any_other_beyond_the_end_is_truncated(source, tmp_path, form):
    data, expected = source.read_bytes()[44:], whole(source)[1]
    for size in [2 * COUNT, *SIZES[form]]:
        (tmp_path / "x").write_bytes(headers(form, size, data))
        assert count(tmp_path / "x") == COUNT, size
        np.testing.assert_array_equal(whole(tmp_path / "x")[1], expected)
    for size in (2 * COUNT + 2, 10**6, 2**30, 2 * 10**9, 3 * 10**9):
        (tmp_path / "x").write_bytes(headers(form, size, data))
        assert reason_of(tmp_path / "x") == "truncated", size


def chunk(name: bytes, order: str, content: bytes) -> bytes:
    return name + struct.pack(order, len(content) + (24 if len(name) == 16 else 0)) + content


@pytest.mark.parametrize(
    ("form", "after"),
    [
        ("W64", chunk(b"levl" + GUID, "<Q", NOISE)),
        ("W64", chunk(b"list" + GUID, "<Q", NOISE)),
        ("RIFF", chunk(b"LIST", "<I", b"INFO" + NOISE)),
        ("RIFF", b"TAG".ljust(128)),
        ("RF64", chunk(b"id3 ", "<I", NOISE)),
        ("AIFF", chunk(b"ID3 ", ">I", NOISE)),
        ("AU", NOISE),
        ("CAF", chunk(b"free", ">q", NOISE)),
    ],
)
def test_what_follows_the_data_is_not_sound(source, tmp_path, form, after):
    for size in (2 * COUNT, 2**32 - 1) if form == "RIFF" else (2 * COUNT,):
        assert count(tmp_path / "x", headers(form, size, source.read_bytes()[44:], after)) == COUNT
    if form == "AIFF":  # with padding inside
        assert count(tmp_path / "x", headers(form, 2 * COUNT + 40, source.read_bytes()[44:] + NOISE[:40])) == COUNT


@pytest.mark.parametrize("form", ["RIFF", "RIFX", "RF64", "AIFF", "CAF"])
@pytest.mark.parametrize("names", [(b"LIST",), (b"iXML", b"LGWV"), (b"bext", b"id3 "), ()])
def test_what_follows_data_of_unknown_size_is_not_sound(source, tmp_path, form, names):
    order = {"RIFX": ">I", "AIFF": ">I", "CAF": ">q"}.get(form, "<I")
    data = 4 * source.read_bytes()[44:]  # more than is read at once
    after = b"".join(chunk(name, order, b"ID3\3\0\0\0\0\0\x0a" + bytes(10)) for name in names) or b"TAG".ljust(128)
    (tmp_path / "x").write_bytes(headers(form, 2**32 - 1, data, after))
    np.testing.assert_array_equal(whole(tmp_path / "x")[1], np.tile(whole(source)[1], 4))


@pytest.mark.parametrize("form", ["RIFF", "RF64", "AIFF", "AU", "CAF"])
def test_sound_after_its_declared_end_is_not_lost_silently(source, tmp_path, form):
    data = source.read_bytes()[44:]
    (tmp_path / "x").write_bytes(headers(form, COUNT, data))
    assert reason_of(tmp_path / "x") == "corrupt"
    ffmpeg("-i", source, tmp_path / "x.flac")
    more = [(tmp_path / "x.flac").read_bytes()]
    if form != "AU":
        order = {"AIFF": ">I", "CAF": ">q"}.get(form, "<I")
        more.append(chunk(b"SSND" if form == "AIFF" else b"data", order, data))
    for after in more:
        (tmp_path / "x").write_bytes(headers(form, 2 * COUNT, data, after))
        assert reason_of(tmp_path / "x") == "corrupt"
    if form in ("RIFF", "AIFF"):  # an odd chunk without padding before it
        whole_file = headers(form, 2 * COUNT, data)
        (tmp_path / "x").write_bytes(whole_file[:12] + chunk(b"NAME", ">I" if form == "AIFF" else "<I", b"odd") + whole_file[12:])
        with pytest.raises(DecodeError, match="padding"):
            whole(tmp_path / "x")


def test_float_in_wave64_is_no_integer(source, tmp_path):
    ffmpeg("-i", source, "-c:a", "pcm_f32le", tmp_path / "x.w64")
    np.testing.assert_array_equal(whole(tmp_path / "x.w64")[1], whole(source)[1])


def test_flac_without_a_checksum_that_counts_too_few_samples_is_read_whole(source, tmp_path):
    ffmpeg("-i", source, tmp_path / "x.flac")
    data = bytearray((tmp_path / "x.flac").read_bytes())
    data[22:26], data[26:42] = (COUNT - 5000).to_bytes(4, "big"), bytes(16)
    assert count(tmp_path / "x.flac", bytes(data)) == COUNT


def test_blocks_of_voc_that_decoders_leave_out_are_named(source, tmp_path):
    ffmpeg("-i", source, "-c:a", "pcm_u8", tmp_path / "x.voc")
    data = (tmp_path / "x.voc").read_bytes()
    assert count(tmp_path / "x.voc") == COUNT
    block = data[26:-1]
    silence, other = b"\3\3\0\0\xff\xff\xa5", b"\1\2\x20\0\xd2\0" + bytes(0x2000)
    more = {b"\x20" + 5 * NOISE: "corrupt", silence: "gap", other: "corrupt", block[: len(block) // 2]: "truncated"}
    for after, reason in more.items():
        (tmp_path / "x.voc").write_bytes(data[:-1] + after + b"\0")
        assert reason_of(tmp_path / "x.voc") == reason, after[:4]


def test_sphere_has_as_many_samples_as_its_header_says(source, tmp_path):
    path, wave = tmp_path / "x.sph", whole(source)[1]
    soundfile.write(path, wave, RATE, format="NIST", subtype="PCM_16")
    data = path.read_bytes()
    for after in (b"", bytes(2000)):
        assert count(path, data + after) == COUNT
    compressed = data.replace(b"sample_coding -s3 pcm\n", b"sample_coding -s26 pcm,embedded-shorten-v2.00\n")
    for changed, reason in ((data[:-5000], "truncated"), (data + 5 * NOISE, "corrupt"), (compressed, "unknown codec")):
        path.write_bytes(changed)
        assert reason_of(path) == reason


def test_a_text_after_mp4_is_no_box_and_another_codec_in_ogg_is_named(source, tmp_path):
    for name in ("x.m4a", "vorbis.ogg", "opus.ogg"):
        ffmpeg("-i", source, *(["-c:a", "libopus"] if name == "opus.ogg" else []), tmp_path / name)
    samples = count(tmp_path / "x.m4a")
    assert count(tmp_path / "x.m4a", (tmp_path / "x.m4a").read_bytes() + b"hello world, hello") == samples
    (tmp_path / "x.ogg").write_bytes((tmp_path / "vorbis.ogg").read_bytes() + (tmp_path / "opus.ogg").read_bytes())
    assert reason_of(tmp_path / "x.ogg") == "corrupt"


@pytest.mark.parametrize("size", [0, 2**64 - 1])
def test_windows_media_whose_size_was_never_written_is_whole(source, tmp_path, size):
    ffmpeg("-i", source, tmp_path / "x.wma")
    data, expected = (tmp_path / "x.wma").read_bytes(), whole(tmp_path / "x.wma")[1]
    at = data.index(containers._ASF_FILE_PROPERTIES) + 40
    (tmp_path / "x.wma").write_bytes(data[:at] + struct.pack("<Q", size) + data[at + 8 :])
    np.testing.assert_array_equal(whole(tmp_path / "x.wma")[1], expected)


@pytest.mark.parametrize("samples", [500, 15_999, 44_100])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("x.wav", "adpcm_ms"), ("x.wav", "adpcm_ima_wav"), ("x.wav", "adpcm_yamaha"), ("x.wav", "adpcm_swf"), ("x.w64", "adpcm_ms")],
)
def test_a_block_codec_lasts_as_long_as_fact_says_else_whole_blocks(source, tmp_path, name, codec, samples):
    cut = f"atrim=end_sample={samples},asetrate=11025"
    ffmpeg("-i", source, "-af", cut, "-c:a", codec, "-ac", "2", tmp_path / name)
    assert count(tmp_path / name) == samples
    data = bytearray((tmp_path / name).read_bytes())
    if name == "x.wav" and codec in ("adpcm_ms", "adpcm_ima_wav"):
        block, per_block = struct.unpack("<H", data[32:34])[0], struct.unpack("<H", data[38:40])[0]
        for fact in (0, 2**32 - 1, 10 * samples):
            data[data.index(b"fact") + 8 : data.index(b"fact") + 12] = struct.pack("<I", fact)
            blocks = (len(data) - data.index(b"data") - 8) // block
            assert count(tmp_path / name, bytes(data)) == blocks * per_block
    soundfile.write(tmp_path / name, whole(source)[1][:samples], RATE, subtype="G721_32", format="WAV")
    np.testing.assert_array_equal(whole(tmp_path / name)[1], soundfile.read(tmp_path / name, samples, dtype="float32")[0])


ID3 = b"ID3\4\0\0\0\0\0\x14" + bytes(20)
APE = b"A" * 2000 + b"APETAGEX" + struct.pack("<4I8x", 2000, 2032, 1, 0)
LYRICS = b"LYRICSBEGININD0000210" + b"x" * 500
TAGS = {
    "ID3v1": b"TAG".ljust(128),
    "long ID3v1": b"TAG+".ljust(227) + b"TAG".ljust(128),
    "APEv1": APE,
    "APEv2": b"APETAGEX" + struct.pack("<4I28x", 2000, 52, 1, 5 << 29) + b"APETAGEX" + struct.pack("<4I8x", 2000, 52, 1, 4 << 29),
    "Lyrics3 and ID3v1": LYRICS + f"{len(LYRICS):06}LYRICS200".encode() + b"TAG".ljust(128),
    "ID3v2": ID3,
    "ID3v2 with a foot": b"ID3\4\0\x10\0\0\0\x14" + bytes(20) + b"3DI\4\0\x10\0\0\0\x14",
    "ID3v2 with a picture": b"ID3\3\0\0\0\x10\0\0" + RNG.bytes(1 << 18),
    "ID3v2 with plain sizes": b"ID3\4\0\0\0\0\1\x52TIT2\0\0\0\xc8\0\0\3" + b"x" * 199,
    "ID3v2 with a frame longer than it": b"ID3\3\0\0\0\0\0\x14TIT2\0\0\x13\x88\0\0" + b"x" * 10,
    "ID3v2 in an unknown encoding": b"ID3\3\0\0\0\0\0\x14TIT2\0\0\0\x0a\0\0\7" + b"x" * 9,
}
TAGGED = {
    **dict.fromkeys("x.flac x.wv x.tta x.wav x.aiff x.opus x.mp3 x.aac x.m4a x.ac3 x.eac3".split(), ()),
    **dict.fromkeys(["piped.flac", "piped.wav", "piped.au"], ()),
    "x.ogg": ["-c:a", "libvorbis"],
    "cbr.mp3": ["-write_xing", "0"],
    "vbr.mp3": ["-q:a", "5", "-write_xing", "0"],
    "x.amr": ["-ar", "8000"],
}


@pytest.mark.parametrize("name", TAGGED)
def test_tags_around_the_sound_change_nothing(source, tmp_path, capfd, name):
    piped = ["-seekable", "0"] if name.startswith("piped") else []  # its length is unknown when its header is written
    ffmpeg("-i", source, "-map_metadata", "-1", *TAGGED[name], *piped, tmp_path / name)
    data, path = (tmp_path / name).read_bytes(), tmp_path / "x"
    expected = whole(tmp_path / name)[1]
    behind = {what: data + tag for what, tag in TAGS.items()}
    front = {f"{what} before": tag + data + TAGS["ID3v1"] for what, tag in TAGS.items() if "ID3v2" in what}
    padded = {f"{zeros} zeros before": ID3 + bytes(zeros) + data for zeros in (1, 2, 3, 4, 500)}
    for what, tagged in {**behind, **front, **padded, "two before": ID3 + bytes(500) + TAGS["APEv2"] + data}.items():
        path.write_bytes(tagged)
        assert decode.probe(path, MAX_SECONDS).num_frames == len(expected), what
        np.testing.assert_allclose(whole(path)[1], expected, atol=1e-3, err_msg=what)
        assert not capfd.readouterr().err, what
    for tag in set(TAGS.values()) - {APE} if name == "cbr.mp3" else ():  # its start is only told at its end
        once = data + tag + bytes(500), data + bytes(300) + tag, data + b"\xff" * 64 + b"\r\n", data + tag + b"\1\2\3" * 50
        counts = [count(path, behind) for behind in (*once, data + tag + data)]
        assert counts == pytest.approx([len(expected)] * 4 + [2 * len(expected)], abs=2 * 1152), tag[:20]
    endless = ("piped.wav", "piped.au")
    for size in (100, 1500, 900_000) if name not in ("x.tta", *endless) else ():
        assert count(path, data + bytes(size)) == len(expected), size
    path.write_bytes(data[: len(data) * 2 // 3 - 5] + TAGS["ID3v1"])
    if "vbr" not in name and name not in endless:
        assert reason_of(path) in ("truncated", "corrupt")


def test_joined_mpeg_audio_is_read_whole_and_fewer_frames_than_declared_are_truncated(source, tmp_path):
    for kind, options in {"cbr": [], "vbr": ["-q:a", "5"]}.items():
        for name, noted in (("note", "1"), ("none", "0")):
            ffmpeg("-i", source, *options, "-write_xing", noted, tmp_path / f"{name}.mp3")
        note, none = ((tmp_path / f"{name}.mp3").read_bytes() for name in ("note", "none"))
        alone = count(tmp_path / "none.mp3")
        for joined in (note + note, note + none, none + note, none + none, note + TAGS["ID3v1"] + note, note * 3):
            times = 3 if joined == note * 3 else 2
            assert count(tmp_path / "x.mp3", joined) == pytest.approx(times * alone, abs=2 * 1152), kind
        at = containers.layout.sound_start(io.BytesIO(none), len(none))
        header = none[at : at + 2] + bytes([none[at + 2] & 15 | 8 << 4]) + none[at + 3 : at + 7]
        xing = bytearray(note)
        xing[note.index(b"\0\0\0\x0f", at) + 7] += 1  # a frame more than there is, as of encoders that count their note
        assert count(tmp_path / "x.mp3", bytes(xing)) == pytest.approx(alone, abs=2 * 1152)
        for frames, fits in ((alone // 576, True), (alone // 576 + 20, False)):
            vbri = struct.pack(">3HII", 1, 0, 75, len(none), frames)
            note = (header[:4] + bytes(32) + b"VBRI" + vbri).ljust(mpeg_frame(header)[0], b"\0")
            (tmp_path / "x.mp3").write_bytes(note + none[at:])
            assert count(tmp_path / "x.mp3") == alone if fits else reason_of(tmp_path / "x.mp3") == "truncated"


@pytest.mark.parametrize("rate", [0, 8000, 16_000, 24_000, 44_100, 48_000, 96_000, 2**32 - 1])
def test_opus_has_48_khz_whatever_its_input_had(source, tmp_path, rate):
    ffmpeg("-i", source, tmp_path / "x.opus")
    parts = pages((tmp_path / "x.opus").read_bytes())
    at = parts[0].index(b"OpusHead") + 12
    parts[0][at : at + 4] = struct.pack("<I", rate)
    assert count(tmp_path / "x.opus", sealed(parts)) == 3 * COUNT
    assert whole(tmp_path / "x.opus")[0] == 48_000


def test_packets_of_opus_may_continue_on_another_page(source, tmp_path):
    ffmpeg("-i", source, "-ar", "48000", "-ac", "2", "-b:a", "510k", "-vbr", "off", tmp_path / "x.opus")
    assert count(tmp_path / "x.opus") == 3 * COUNT


@pytest.mark.parametrize("codec", ["libvorbis", "libopus", "flac"])
def test_the_channels_of_ogg_are_in_the_order_of_all_others(source, tmp_path, codec):
    ffmpeg("-i", source, "-ar", "48000", "-af", "pan=5.1|FC=c0", "-c:a", codec, tmp_path / "x.ogg")
    assert np.argmax(np.abs(decode.read_channels(tmp_path / "x.ogg", MAX_SECONDS)[0]).max(axis=1)) == 2


@pytest.mark.parametrize("codec", ["libvorbis", "libopus", "flac"])
def test_ogg_may_lack_an_end_and_be_chained(source, tmp_path, codec):
    data = ffmpeg("-i", source, "-c:a", codec, "-f", "ogg", "pipe:1")
    alone = count(tmp_path / "x", data)
    assert count(tmp_path / "x", data * 3) == pytest.approx(3 * alone, abs=600)
    parts = pages(data)
    parts[-1][5] &= ~4
    assert count(tmp_path / "x", sealed(parts)) == pytest.approx(alone, abs=960)
    with decode.open_regular(tmp_path / "x") as file:
        (recording,) = decode.open_all([file], MAX_SECONDS)
        assert [remark.partition(":")[0] for remark in recording.remarks] == ["no end-of-stream flag"]
    parts[-1][6:14] = struct.pack("<q", 5)  # before that of the page before
    (tmp_path / "x").write_bytes(sealed(parts))
    assert len(whole(tmp_path / "x")[1]) == pytest.approx(alone, abs=9600)
    other = ffmpeg("-i", source, "-ac", "2", "-c:a", codec, "-f", "ogg", "pipe:1")
    # ffmpeg cannot go on with other channels, nor behind what is no page.
    for joined in (data + other, *(data + between + data for between in (b"\n", bytes(700), b"hello", *TAGS.values()))):
        (tmp_path / "x").write_bytes(joined)
        assert reason_of(tmp_path / "x") == "corrupt"
    parts = pages(data)
    for part in parts[2:]:  # as if it started 2 s later
        part[6:14] = (int.from_bytes(part[6:14], "little") + 2 * RATE).to_bytes(8, "little")
    (tmp_path / "x").write_bytes(sealed(parts))
    assert reason_of(tmp_path / "x") == "gap" if codec == "flac" else count(tmp_path / "x") == alone


def packed(words: np.ndarray) -> bytes:
    """Big-endian words of 16 bits as those of 14, in the lower bits of words of 16."""
    bits = np.unpackbits(words.astype(">u2").view(np.uint8))
    groups = bits[: len(bits) // 28 * 28].reshape(-1, 14)
    values = groups @ (1 << np.arange(13, -1, -1))
    return np.where(values >= 8192, values - 16384, values).astype("<i2").tobytes()


def test_frames_of_a_codec_in_samples_are_refused_and_loud_sound_is_not(source, tmp_path):
    stereo = ["-i", source, "-ar", "48000", "-ac", "2"]
    dts = ffmpeg(*stereo, "-strict", "-2", "-c:a", "dca", "-f", "dts", "pipe:1")
    words = np.frombuffer(dts[: len(dts) // 2 * 2], ">u2")
    ac3, eac3 = (ffmpeg(*stereo, "-f", form, "pipe:1") for form in ("ac3", "eac3"))
    low = ffmpeg(*stereo, "-ar", "44100", "-b:a", "96k", "-f", "ac3", "pipe:1")
    coded = {
        "AC-3": ac3,
        "the same at 44.1 kHz, swapped": np.frombuffer(low, ">u2").astype("<u2").tobytes(),
        "E-AC-3": eac3,
        "AC-3 in bursts": ffmpeg(*stereo, "-c:a", "ac3", "-f", "spdif", "pipe:1"),
        "E-AC-3 in bursts": ffmpeg(*stereo, "-c:a", "eac3", "-f", "spdif", "pipe:1"),
        "DTS in bursts": ffmpeg(*stereo, "-strict", "-2", "-c:a", "dca", "-f", "spdif", "pipe:1"),
        "DTS of 16 bits": dts,
        "the same, swapped": words.astype("<u2").tobytes(),
        "DTS of 14 bits": packed(words),
    }
    for what, data in coded.items():
        samples = np.frombuffer(bytes(400_000) + data[: len(data) // 4 * 4], "<i2").reshape(-1, 2)
        for form in ("WAV", "FLAC", "AIFF"):
            soundfile.write(tmp_path / "x", samples, 44_100, subtype="PCM_16", format=form)
            assert reason_of(tmp_path / "x") == "coded", what
    noise = RNG.integers(-(2**23), 2**23, 1 << 17)
    for bits, first, second in ((16, 0xF872, 0x4E1F), (20, 0x6F872, 0x54E1F), (24, 0x96F872, 0xA54E1F)):  # SMPTE 337M
        bursts = noise << 8
        bursts[::3072], bursts[1::3072] = first << 32 - bits, second << 32 - bits
        bursts = bursts.astype(np.uint32).view(np.int32)
        swapped = bursts.byteswap() << 8 if bits > 16 else bursts
        of_eight = np.concatenate([np.tile(noise[: 1 << 16, None] << 7, 6), bursts.reshape(-1, 2)], axis=1)
        one_of_two = np.stack([noise << 7, bursts], axis=1)
        later = np.concatenate([np.tile(noise << 8, 8), bursts]).reshape(-1, 2)
        for what, words in enumerate((bursts, bursts.reshape(-1, 2), swapped, of_eight, one_of_two, later)):
            for form in ("WAV", "AIFF", "CAF"):
                soundfile.write(tmp_path / "x", words.astype(np.int32), 48_000, subtype="PCM_24", format=form)
                assert reason_of(tmp_path / "x") == "coded", (bits, what)
    square = np.where(np.arange(1 << 18) // 12 % 2, 32766, -32767)
    loud = np.clip(RNG.standard_normal(1 << 18) * 60_000, -32768, 32767)
    for wave in (loud, square, np.tile([32766, -32767], 1 << 17), np.tile([0x0B77, 5, 0x1E40, *range(125)], 1 << 11)):
        soundfile.write(tmp_path / "x.wav", wave.astype(np.int16).reshape(-1, 2), 44_100)
        assert count(tmp_path / "x.wav") == 1 << 17


@pytest.mark.parametrize(
    ("name", "codec", "film"),
    [
        *(("x.mkv", codec, film) for codec in ("aac", "libopus") for film in (False, True)),
        ("x.ogg", "libvorbis", False),
        ("x.opus", "libopus", False),
        ("x.m4a", "aac", False),
        ("x.mp4", "aac", True),
        ("x.ts", "mp2", True),
        ("x.flv", "aac", True),
        ("x.3gp", "libopencore_amrnb", True),
        ("x.avi", "mp3", True),
        ("x.avi", "pcm_s16le", True),
        ("x.avi", "aac", False),
        *(("x.ogv", codec, True) for codec in ("libvorbis", "flac")),
        ("x.wma", "wmav2", False),
        ("x.wmv", "wmav2", True),
    ],
)
def test_a_gap_in_time_is_silence_or_named(tmp_path, name, codec, film):
    """Refused in ASF, where nothing else tells of lost packets, in AVI, whose packets have no times, and in Ogg Vorbis and FLAC,
    where its place in a page is unknown."""
    rate = 8000 if name == "x.3gp" else 48_000
    picture = ["-f", "lavfi", "-i", "testsrc=d=6:s=128x96:r=10"] if film else []
    gap = ["-af", "aselect='lt(t,2)+gte(t,4)'", "-c:a", codec]
    ffmpeg("-f", "lavfi", "-i", f"sine=440:r={rate}:d=6", *picture, *gap, tmp_path / name)
    if codec in ("wmav2", "libvorbis", "flac") or name == "x.avi":
        assert reason_of(tmp_path / name) == "gap"
        return
    assert count(tmp_path / name) == pytest.approx(6 * rate, abs=2048)
    wave = np.abs(whole(tmp_path / name)[1])
    before, within, after = (wave[int(start * rate) : int(end * rate)].max() for start, end in ((0, 1.9), (2.3, 3.8), (4.2, 5.6)))
    assert within < 1e-3 < 0.05 < min(before, after)


@pytest.mark.parametrize("name", ["x.mp4", "x.mov", "x.mkv", "x.ts", "x.mpg", "x.flv", "x.wmv"])
def test_a_film_is_silent_until_its_sound_starts(tmp_path, name):
    tone, picture = ["-f", "lavfi", "-i", "sine=440:r=44100:d=1"], ["-f", "lavfi", "-i", "testsrc=d=3:s=128x96:r=25"]
    ffmpeg("-itsoffset", "2", *tone, *picture, tmp_path / name)
    rate, wave = whole(tmp_path / name)
    assert np.flatnonzero(np.abs(wave) > 0.02)[0] / rate == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("codec", ["aac", "alac", "pcm_s16le"])
def test_an_empty_edit_after_sound_and_sound_fewer_than_declared_are_named(source, tmp_path, codec):
    picture = ["-f", "lavfi", "-i", "testsrc=d=4:s=64x64:r=25"]
    ffmpeg("-itsoffset", "1", "-i", source, *picture, "-c:a", codec, tmp_path / "x.mov")
    data = (tmp_path / "x.mov").read_bytes()
    at = data.rindex(b"elst") + 12
    (tmp_path / "x.mov").write_bytes(data[:at] + data[at + 12 : at + 24] + data[at : at + 12] + data[at + 24 :])
    with pytest.raises(DecodeError, match=r"gap \(the edit list leaves [01]\.\d* s out at [23]\.\d* s"):
        whole(tmp_path / "x.mov")
    if codec == "alac":
        return
    ffmpeg("-i", source, "-c:a", codec, tmp_path / "x.avi")
    head, middle, end = (tmp_path / "x.avi").read_bytes().partition(b"idx1")
    cut = len(head) // 2
    (tmp_path / "x.avi").write_bytes(head[:cut] + head[cut:].replace(b"00wb", b"JUNK", 9) + middle + end)
    assert reason_of(tmp_path / "x.avi") == "truncated"


@pytest.mark.parametrize("codec", ["mp3", "eac3", "libvorbis", "pcm_s16le"])
@pytest.mark.parametrize("pictures", [["-fps_mode", "vfr", "-vf", "select='gt(random(0),0.4)'"], ["-r", "12"]])
def test_the_sound_of_an_avi_is_whole_whatever_its_pictures_are(tmp_path, codec, pictures):
    film = ["-f", "lavfi", "-i", "sine=440:r=48000:d=4", "-f", "lavfi", "-i", "testsrc=d=6:s=64x64:r=25"]
    ffmpeg(*film, "-c:a", codec, *pictures, tmp_path / "x.avi")
    assert count(tmp_path / "x.avi") == pytest.approx(192_000, abs=4096)
