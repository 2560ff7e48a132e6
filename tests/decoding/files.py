"""Files of every kind that ffmpeg writes, each with a second of a tone, and what becomes of one."""

import os
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmill.decoding import containers, decode
from soundmill.decoding.containers import layout
from soundmill.decoding.containers.frames import mpeg_frame
from soundmill.decoding.decode import DecodeError
from soundmill.decoding.ffmpeg import ffmpeg_executable

MAX_SECONDS = 60.0
# name → ffmpeg's output options; all hold one second of a 440 Hz tone.
VALID = {
    **dict.fromkeys("pcm16.wav a.w64 a.aiff a.au a.caf a.flac a.opus cbr.mp3 a.mp2 a.m4a a.mov a.mka a.webm a.wma".split(), ()),
    **dict.fromkeys("a.aac a.ac3 a.eac3 a.avi a.flv a.ts a.mpg a.wv a.tta a.voc a.nut".split(), ()),
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
    "a.aifc": ["-c:a", "pcm_f32be", "-f", "aiff"],
    "alac.caf": ["-c:a", "alac"],
    "s24.flac": ["-sample_fmt", "s32"],
    "a.ogg": ["-c:a", "libvorbis"],
    "flac.ogg": ["-c:a", "flac"],
    "vbr.mp3": ["-q:a", "4"],
    "uncounted.mp3": ["-write_xing", "0"],
    "tagged.mp3": ["-metadata", "title=x", "-write_id3v1", "1"],
    "fast.m4a": ["-movflags", "faststart"],
    "fragments.mp4": ["-movflags", "frag_keyframe+empty_moov"],
    "alac.m4a": ["-c:a", "alac"],
    "a.3gp": ["-c:a", "aac"],
    "a.dts": ["-c:a", "dca", "-strict", "-2"],
    "a.amr": ["-c:a", "libopencore_amrnb", "-ar", "8000", "-ac", "1"],
    "a.rm": ["-c:a", "ac3"],
    "low.wav": ["-ar", "8000"],
    "high.wav": ["-ar", "192000"],
    "odd.flac": ["-ar", "12345"],
    "surround.flac": ["-af", "pan=5.1|c0=c0|c1=c0|c2=c0|c3=c0|c4=c0|c5=c0"],
    "surround.m4a": ["-af", "pan=5.1|c0=c0|c1=c0|c2=c0|c3=c0|c4=c0|c5=c0"],
}
FILMS = ["film.mp4", "film.mkv", "film.avi", "film.webm", "film.mpg", "film.flv", "film.wmv"]


def ffmpeg(*arguments: str | Path) -> bytes:
    command = [ffmpeg_executable(), "-nostdin", "-loglevel", "error", "-y", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=300).stdout


def whole(path: bytes | str | Path, max_seconds: float = MAX_SECONDS) -> tuple[int, np.ndarray]:
    rate, blocks = decode.decode_blocks(path, max_seconds)
    return rate, np.concatenate(list(blocks))


def reason_of(path: bytes | str | Path, max_seconds: float = MAX_SECONDS) -> str:
    with pytest.raises(DecodeError) as refused:
        whole(path, max_seconds)
    return refused.value.reason


def pages(data: bytes) -> list[bytearray]:
    starts = [found.start() for found in re.finditer(b"OggS\0", data)]
    return [bytearray(data[start:end]) for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def sealed(parts: list[bytearray]) -> bytes:
    """The pages with right checksums."""
    for page in parts:
        page[22:26] = bytes(4)
        page[22:26] = containers.ogg_checksum(bytes(page)).to_bytes(4, "little")
    return b"".join(map(bytes, parts))


def mpeg_frames(data: bytes) -> list[tuple[int, int]]:
    """(start, bytes) of the frames of MPEG audio after its tag."""
    found, at = [], layout.tag_end(data)
    while frame := mpeg_frame(data[at : at + 7]):
        found.append((at, frame[0]))
        at += frame[0]
    return found


def sparse_wav(path: Path, size: int, declared: int | None = None) -> None:
    """A WAV of `size` bytes that takes no room; its header declares that of its data, or another."""
    soundfile.write(path, np.full(16_000, 0.1), 16_000, subtype="PCM_16")
    os.truncate(path, size)
    with path.open("r+b") as file:
        file.seek(40)
        file.write(struct.pack("<I", size - 44 if declared is None else declared))
