"""Writing and reading samples: clips as FLAC bytes, generated sounds as WAV."""

import io
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from soundmill import disk
from soundmill.audio.tags import MadeBy, chunk
from soundmill.errors import UserError

MAX_WAV_BYTES = 2**32 - 1  # a RIFF file counts its bytes in 32 bits


def to_pcm16(wave: np.ndarray) -> np.ndarray:
    """Float32 samples as 16 bits, clipped; the exact inverse of reading them, unlike libsndfile's own conversion."""
    scaled = np.asarray(wave, dtype=np.float32) * np.float32(32768)
    return np.clip(np.rint(scaled, out=scaled), -32768, 32767, out=scaled).astype(np.int16)


def encode_flac(wave: np.ndarray, sample_rate: int, made_by: MadeBy | None = None) -> bytes:
    """Float32 [T] or [C, T] as 16-bit FLAC, deterministically; `made_by` marks a generated sound."""
    wave = np.atleast_2d(wave)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, len(wave), format="FLAC", subtype="PCM_16") as sound:
        _describe(sound, made_by and made_by.words, made_by)
        sound.write(to_pcm16(wave).T)
    return buffer.getvalue()


def flac_checksum(data: bytes) -> bytes:
    """The MD5 of the samples (16 bytes), from the header of FLAC bytes written by this project (RFC 9639, 8.2)."""
    return data[26:42]


def flac_rate(data: bytes) -> int:
    """The sample rate of FLAC bytes written by this project: 20 bits after the frame sizes (RFC 9639, 8.2)."""
    return int.from_bytes(data[18:21], "big") >> 4


def flac_channels(data: bytes) -> int:
    """The channels of FLAC bytes written by this project: 3 bits after the sample rate (RFC 9639, 8.2)."""
    return (data[20] >> 1 & 7) + 1


def decode_flac(data: bytes) -> np.ndarray:
    """Float32 [C, T] of FLAC bytes written by this project."""
    wave, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return np.ascontiguousarray(wave.T)


def decode_mono(data: bytes) -> np.ndarray:
    """Float32 [T] of FLAC bytes written by this project: the mean of the channels."""
    wave = decode_flac(data)
    return wave[0] if len(wave) == 1 else wave.mean(axis=0)


def write_wav(
    path: Path,
    wave: np.ndarray,
    sample_rate: int,
    comment: str | None = None,
    tempo: tuple[float, int] | None = None,
    made_by: MadeBy | None = None,
) -> None:
    """Write float32 [T] or [C, T] as 16-bit WAV with a comment (ICMT), atomically.

    `tempo` (beats per minute, number of beats) marks it as a loop for samplers and sequencers; `made_by` marks a generated sound.
    """
    wave = np.atleast_2d(wave)
    loop = b""
    if tempo is not None:  # flags, root, two unused fields, beats, meter, tempo
        bpm, beats = tempo
        loop = chunk(b"acid", struct.pack("<IHHfIHHf", 0, 60, 0x8000, 0.0, beats, 4, 4, bpm))
    write_wav_blocks(path, [wave], sample_rate, len(wave), comment, made_by, loop)


def write_wav_blocks(
    path: Path,
    blocks: Iterable[np.ndarray],
    sample_rate: int,
    channels: int,
    comment: str | None = None,
    made_by: MadeBy | None = None,
    more: bytes = b"",
) -> None:
    """`write_wav` for float32 blocks [C, n], one at a time, and `more` chunks at the end; UserError above 4 GiB. No pipe."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, channels, format="WAV", subtype="PCM_16") as sound:
        _describe(sound, comment, made_by)
    header = buffer.getvalue()  # without samples; ends with the size of the data
    more += made_by.chunk if made_by else b""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(header)
            for block in blocks:
                file.write(to_pcm16(block.T).astype("<i2").tobytes())
                if file.tell() + len(more) > MAX_WAV_BYTES:
                    limit = MAX_WAV_BYTES / (2 * channels * sample_rate)
                    raise UserError(f"{path}: a WAV file holds {limit:,.0f} s of this sound at most (4 GiB); make it shorter")
            size = file.tell() - len(header)
            file.write(more)
            file.seek(4)
            file.write(struct.pack("<I", len(header) + size + len(more) - 8))
            file.seek(len(header) - 4)
            file.write(struct.pack("<I", size))

    disk.write_atomically(path, write)


def _describe(sound: soundfile.SoundFile, comment: str | None, made_by: MadeBy | None) -> None:
    if comment is not None:
        sound.comment = comment.encode(errors="replace").decode()  # a file's name may be no UTF-8
    if made_by is not None:
        sound.software = made_by.software
