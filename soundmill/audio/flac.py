"""Writing and reading samples: clips as FLAC bytes, generated sounds as WAV."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from soundmill import disk
from soundmill.errors import UserError

MAX_WAV_BYTES = 2**32 - 1  # a RIFF file counts its bytes in 32 bits


def to_pcm16(wave: np.ndarray) -> np.ndarray:
    """16-bit samples of float32 ones, at full scale at most; the exact inverse of reading them (libsndfile's own scale is not)."""
    scaled = np.asarray(wave, dtype=np.float32) * np.float32(32768)
    return np.clip(np.rint(scaled, out=scaled), -32768, 32767, out=scaled).astype(np.int16)


def encode_flac(wave: np.ndarray, sample_rate: int) -> bytes:
    """Float32 [T] or [C, T] as FLAC of 16 bits; the same samples give the same bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, to_pcm16(wave).T, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def flac_checksum(data: bytes) -> bytes:
    """The MD5 of the samples in FLAC bytes that this project wrote, which their encoder noted (RFC 9639, 8.2): 16 bytes."""
    return data[26:42]


def flac_rate(data: bytes) -> int:
    """The sample rate of FLAC bytes that this project wrote: twenty bits behind the frame sizes (RFC 9639, 8.2)."""
    return int.from_bytes(data[18:21], "big") >> 4


def flac_channels(data: bytes) -> int:
    """The channels of FLAC bytes that this project wrote: three bits behind the sample rate (RFC 9639, 8.2)."""
    return (data[20] >> 1 & 7) + 1


def decode_flac(data: bytes) -> np.ndarray:
    """Float32 [C, T] of FLAC bytes that this project wrote."""
    wave, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return np.ascontiguousarray(wave.T)


def decode_mono(data: bytes) -> np.ndarray:
    """Float32 [T] of FLAC bytes that this project wrote: the mean of their channels."""
    wave = decode_flac(data)
    return wave[0] if len(wave) == 1 else wave.mean(axis=0)


def write_wav(
    path: Path, wave: np.ndarray, sample_rate: int, comment: str | None = None, tempo: tuple[float, int] | None = None
) -> None:
    """Write float32 [T] or [C, T] as WAV of 16 bits, with a comment (ICMT); the file appears whole or not at all.

    `tempo` (beats a minute, number of beats) makes it a loop to samplers and sequencers.
    """
    wave = np.atleast_2d(wave)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, len(wave), format="WAV", subtype="PCM_16") as sound:
        if comment is not None:
            sound.comment = comment
        sound.write(to_pcm16(wave.T))
    data = buffer.getvalue() if tempo is None else _with_chunk(buffer.getvalue(), b"acid", _acid(*tempo))
    # From memory: libsndfile's own error does not say that the disk is full.
    disk.write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_wav_blocks(path: Path, blocks: Iterable[np.ndarray], sample_rate: int, channels: int, comment: str | None = None) -> None:
    """`write_wav` of float32 blocks [C, n], one after another, so the whole sound is never in memory; UserError above 4 GiB."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, channels, format="WAV", subtype="PCM_16") as sound:
        if comment is not None:
            sound.comment = comment
    header = buffer.getvalue()  # of no samples: it ends with their size, and begins with that of the file

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(header)
            for block in blocks:
                file.write(to_pcm16(block.T).astype("<i2").tobytes())
                if file.tell() > MAX_WAV_BYTES:
                    limit = MAX_WAV_BYTES / (2 * channels * sample_rate)
                    raise UserError(f"{path}: a WAV file holds {limit:,.0f} s of this sound at most (4 GiB); make it shorter")
            size = file.tell() - len(header)
            file.seek(4)
            file.write(struct.pack("<I", len(header) + size - 8))
            file.seek(len(header) - 4)
            file.write(struct.pack("<I", size))

    disk.write_atomically(path, write)


def _acid(bpm: float, beats: int) -> bytes:
    """The chunk by which ACID, and all that came after it, knows a loop in 4/4: flags, root, two unused, beats, meter, tempo."""
    return struct.pack("<IHHfIHHf", 0, 60, 0x8000, 0.0, beats, 4, 4, bpm)


def _with_chunk(wav: bytes, name: bytes, content: bytes) -> bytes:
    """A RIFF file with one more chunk at its end; contents of even length alone."""
    wav += bytes(len(wav) % 2)
    wav += name + struct.pack("<I", len(content)) + content
    return wav[:4] + struct.pack("<I", len(wav) - 8) + wav[8:]
