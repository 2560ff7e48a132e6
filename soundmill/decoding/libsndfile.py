"""Decoding with libsndfile; declared lengths and checksums are verified."""

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import BinaryIO

import numpy as np
import soundfile

from soundmill.decoding.containers.layout import Layout, Part
from soundmill.decoding.containers.sniffing import Kind
from soundmill.decoding.ffmpeg_log import one_line
from soundmill.decoding.limits import BLOCK_SAMPLES, MIN_SAMPLES, DecodeError, check_bound, check_length

LOST_SAMPLES = 2 * 1152  # first frames of MPEG audio cut from a longer stream
UNKNOWN_FRAMES = 2**63 - 1


def open_sound(file: BinaryIO, kind: Kind, layout: Layout) -> soundfile.SoundFile | None:
    """Open a file with libsndfile by its descriptor; None if ffmpeg has to decode it. The caller closes it."""
    start, end = layout.pieces[0] if layout.pieces else (0, os.fstat(file.fileno()).st_size)
    os.lseek(file.fileno(), start, os.SEEK_SET)
    source = Part(file, start, end, layout.patches) if layout.patches else file.fileno()
    try:
        with _mpg123_errors_raised(file) if kind.name == "mpeg-audio" else nullcontext():
            sound = soundfile.SoundFile(source, closefd=False)
    except soundfile.SoundFileError:
        return None
    # libsndfile stops at its announced length, which is an estimate for mp3 without a frame count.
    if sound.frames < UNKNOWN_FRAMES and (layout.exact or sound.frames >= layout.at_least):
        return sound
    sound.close()
    return None


def num_frames(sound: soundfile.SoundFile, layout: Layout) -> int:
    """Samples per channel that `blocks` gives."""
    return sound.frames if layout.frames is None else min(sound.frames, layout.frames)


def blocks(sound: soundfile.SoundFile, file: BinaryIO, kind: Kind, layout: Layout, max_seconds: float) -> Iterator[np.ndarray]:
    """float32 [n, channels] of an opened file; DecodeError if it is damaged, perhaps only at the last block."""
    checksum = hashlib.md5(usedforsecurity=False) if layout.md5 and layout.bits in (8, 16, 24) else None
    most = max(1, BLOCK_SAMPLES // sound.channels)
    total, frames = 0, num_frames(sound, layout)
    while total < frames:
        block = np.empty((min(most, frames - total), sound.channels), dtype=np.float32)
        try:
            with _mpg123_errors_raised(file) if kind.name == "mpeg-audio" else nullcontext():
                count = sound.buffer_read_into(block, "float32")
        except soundfile.SoundFileError as error:
            at_end = os.lseek(file.fileno(), 0, os.SEEK_CUR) >= os.fstat(file.fileno()).st_size
            raise DecodeError("truncated" if at_end else "corrupt", one_line(str(error))) from None
        if count == 0:
            break
        total += count
        check_bound(total, sound.samplerate, sound.channels, max_seconds)
        if checksum:
            checksum.update(_integers(block[:count], layout.bits))
        yield block[:count]
    if layout.exact:
        check_length(total, frames if layout.frames is None else layout.frames, sound.samplerate, 0)
    elif total < layout.at_least - LOST_SAMPLES:
        raise DecodeError("corrupt", f"libsndfile gives {total} of {layout.at_least} samples")
    if total < MIN_SAMPLES:
        raise DecodeError("too short", "no or one sample")
    if checksum and checksum.digest() != layout.md5:
        raise DecodeError("corrupt", "decoded samples do not match the checksum in the file")


_STDERR = threading.Lock()
# The first frames of a cut stream refer to bits of earlier frames; that is not damage.
_MPG123_ERROR = re.compile(rb"libmpg123\S* error: (?!part2_3_length)([^\n]*)")


@contextmanager
def _mpg123_errors_raised(file: BinaryIO) -> Iterator[None]:
    """DecodeError if libmpg123 reports a damaged frame, which libsndfile ignores: it is only written to standard error.

    One thread at a time; other output to standard error is written afterwards, with the file's name.
    """
    with _STDERR, ExitStack() as stack:
        log = os.memfd_create("log")
        stack.callback(os.close, log)
        before = os.dup(2)
        stack.callback(os.close, before)
        os.dup2(log, 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            text = os.pread(log, os.fstat(log).st_size, 0)
            if error := _MPG123_ERROR.search(text):
                raise DecodeError("corrupt", f"libmpg123: {one_line(error[1].decode('utf-8', 'replace'))}")
            if text:
                os.write(2, os.fsencode(os.readlink(f"/proc/self/fd/{file.fileno()}")) + b": " + text)


def _integers(block: np.ndarray, bits: int) -> bytes:
    """The little-endian integers that float32 samples came from; exact up to 24 bits."""
    values = np.rint(block * np.float32(1 << bits - 1)).astype("<i4")
    return values.view(np.uint8).reshape(*values.shape, 4)[..., : bits // 8].tobytes()
