"""Decoding audio files, streaming and in bounded memory; a faulty file raises DecodeError with a reason.

libsndfile decodes the formats that it supports, its lengths and checksums verified; ffmpeg the rest, many short files at a time
(ffmpeg.py). containers/ checks files before decoding.
"""

import functools
import hashlib
import os
import re
import stat
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, BinaryIO, Literal, Self

import numpy as np
import soundfile

from soundmill.audio.pieces import Sound
from soundmill.audio.resample import resample_blocks
from soundmill.decoding import containers, ffmpeg
from soundmill.decoding.containers.layout import BLOCK_SAMPLES, MIN_SAMPLES, UNKNOWN_FRAMES, DecodeError, check_bound, check_length
from soundmill.decoding.ffmpeg import one_line
from soundmill.errors import UserError

LOST_SAMPLES = 2 * 1152  # first frames of MPEG audio cut from a longer stream
FLAC_READ_AHEAD = 1 << 14  # twice libFLAC's buffer
BATCH_FILES = 32  # decoded by one ffmpeg
MAX_SECONDS = 7200.0  # longer files are rejected, if no parameter sets the limit; same as in conf/config.yaml
LOOKAHEAD = 64  # files opened to fill a batch
READ_AHEAD = 1 << 18  # buffer of an open file; short files are read at once
ASSUMED_BYTES_PER_SECOND = 4 * 2 * 48_000  # decoded size, if only the duration is known
ASSUMED_CODED_BYTES_PER_SECOND = 4_000  # if the duration is unknown: 32 kbit/s


@dataclass
class Recording:
    """An opened file: `blocks` of float32 [n, channels], to iterate once; any may raise DecodeError."""

    format: str
    sample_rate: int
    channels: int
    num_frames: int | None  # samples per channel at its own rate; None: not known before the last block
    backend: Literal["libsndfile", "ffmpeg"]
    blocks: Iterator[np.ndarray] = field(compare=False)
    remarks: list[str] = field(default_factory=list, compare=False)  # doubts about a usable file, complete after its last block

    def probe(self) -> Self:
        """It with `num_frames`; decodes only if the header is unreliable."""
        num_frames = sum(map(len, self.blocks)) if self.num_frames is None else self.num_frames
        if num_frames < MIN_SAMPLES:
            raise DecodeError("too short", "no or one sample")
        return replace(self, num_frames=num_frames)


@dataclass
class _File(ffmpeg.Input):
    """An inspected file, with its samples if ffmpeg decoded it in a batch."""

    size: int
    release: ExitStack
    decoded: ffmpeg.Decoded | None = None
    tried: bool = False  # in a batch already

    @property
    def decoded_bytes(self) -> float:
        seconds = self.layout.seconds
        return ASSUMED_BYTES_PER_SECOND * (self.size / ASSUMED_CODED_BYTES_PER_SECOND if seconds is None else seconds)

    def open_libsndfile(self) -> soundfile.SoundFile | None:
        """Open it with libsndfile by its descriptor; None if ffmpeg has to decode it."""
        start, end = self.layout.pieces[0] if self.layout.pieces else (0, os.fstat(self.file.fileno()).st_size)
        if self.layout.patches:
            source = containers.layout.Part(self.file, start, end, self.layout.patches)
        else:
            source = self.file.fileno()
            os.lseek(source, start, os.SEEK_SET)
        try:
            with _mpg123_errors_raised(self):
                sound = soundfile.SoundFile(source, closefd=False)
        except soundfile.SoundFileError:
            return None
        # libsndfile stops at its announced length, which is an estimate for mp3 without a frame count.
        if sound.frames < UNKNOWN_FRAMES and (self.layout.exact or sound.frames >= self.layout.at_least):
            return self.release.enter_context(sound)
        sound.close()
        return None


def open_regular(path: bytes | str | Path) -> BinaryIO:
    """Open a regular file without blocking: FIFOs, sockets, devices and directories raise DecodeError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(path, error) from None
    if stat.S_ISREG(mode := os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb", READ_AHEAD)
    os.close(handle)
    raise DecodeError("not a regular file", _kind_of(mode))


def _cannot_open(path: bytes | str | Path, error: OSError) -> DecodeError:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return DecodeError("missing", error.strerror or "")
    if stat.S_ISLNK(mode) and not os.path.exists(path):
        return DecodeError("dangling link", "its target does not exist")
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        return DecodeError("not a regular file", _kind_of(mode))
    return DecodeError("unreadable", error.strerror or "")


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def probe(path: bytes | str | Path, max_seconds: float) -> Recording:
    """Rate, channels and exact length of a file; raises DecodeError. Decodes only if the header is unreliable."""
    with ExitStack() as stack:
        return _open(_look_into(open_regular(path), max_seconds, stack), max_seconds).probe()


def check_header(path: bytes | str | Path, max_seconds: float) -> None:
    """DecodeError if a file is unusable by its type, declared sizes or length, without decoding it."""
    with ExitStack() as stack:
        file = _look_into(open_regular(path), max_seconds, stack, sums_checked=True)
        if file.layout.sndfile and file.layout.exact and (sound := file.open_libsndfile()):
            check_bound(min(sound.frames, file.layout.frames), sound.samplerate, sound.channels, max_seconds)


def decode_channels(path: bytes | str | Path, max_seconds: float) -> tuple[int, int, Iterator[np.ndarray]]:
    """(sample rate, channels, float32 blocks [n, channels], perhaps NaN) of a file, in bounded memory; errors as in Recording."""
    with ExitStack() as stack:
        recording = _open(_look_into(open_regular(path), max_seconds, stack), max_seconds)
        kept = stack.pop_all()

    def blocks() -> Iterator[np.ndarray]:
        with kept:
            yield from recording.blocks

    return recording.sample_rate, recording.channels, blocks()


def open_sound(path: Path) -> Sound:
    """A recording, decoded once completely, so that damage is reported before anything is made of it; UserError if damaged."""

    @contextmanager
    def named() -> Iterator[None]:
        try:
            yield
        except DecodeError as error:
            raise UserError(f"{path}: {error}") from None

    def blocks() -> Iterator[np.ndarray]:
        with named():
            yield from map(check_finite, decode_channels(path, MAX_SECONDS)[2])

    with named():
        rate, channels, first = decode_channels(path, MAX_SECONDS)
        if not (num_samples := sum(len(check_finite(block)) for block in first)):
            raise DecodeError("too short", "no sample")
        return Sound(rate, channels, num_samples, blocks)


def decode_blocks(path: bytes | str | Path, max_seconds: float) -> tuple[int, Iterator[np.ndarray]]:
    """(sample rate, float32 blocks [n]) of a file mixed down to mono; see `decode_channels`."""
    rate, _, blocks = decode_channels(path, max_seconds)
    return rate, (mix_down(block) for block in blocks)


def check_finite(block: np.ndarray) -> np.ndarray:
    """The block; DecodeError if it has non-finite samples."""
    if not np.isfinite(block).all():
        raise DecodeError("nan", "non-finite samples")
    return block


def to_stereo(block: np.ndarray) -> np.ndarray:
    """Float32 [n, channels] as [n, 2]: mono is doubled, else the first two stay; non-finite samples raise DecodeError."""
    return check_finite(np.repeat(block, 2, axis=1) if block.shape[1] == 1 else block[:, :2])


def mix_down(block: np.ndarray) -> np.ndarray:
    """The mean [n] of the channels of float32 [n, channels]; non-finite samples raise DecodeError."""
    channels = block.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        mono = block[:, 0]
        if channels > 1:
            mono = mono.copy()
            for channel in range(1, channels):  # 15 times as fast as numpy's mean of short rows
                mono += block[:, channel]
            mono /= np.float32(channels)
    return check_finite(mono)  # a non-finite channel makes the mean non-finite


def read_mono(path: bytes | str | Path, sample_rate: int, max_seconds: float) -> np.ndarray:
    """A whole file as mono float32 [T] at `sample_rate`."""
    rate, blocks = decode_blocks(path, max_seconds)
    return np.concatenate([np.zeros(0, dtype=np.float32), *resample_blocks(blocks, rate, sample_rate)])


def read_channels(path: bytes | str | Path, max_seconds: float) -> tuple[np.ndarray, int]:
    """A whole file as float32 [C, T], and its rate; non-finite samples raise DecodeError."""
    rate, channels, blocks = decode_channels(path, max_seconds)
    return check_finite(np.concatenate([np.zeros((0, channels), np.float32), *blocks]).T), rate


def open_all(
    places: Iterable[AbstractContextManager[BinaryIO]], max_seconds: float, sums_checked: bool = False
) -> Iterator[Recording | DecodeError]:
    """Open every file in order, or give its DecodeError; use each Recording before the next one.

    Files for ffmpeg are decoded in batches ahead of their turn, as if one by one. `sums_checked`: checksums have been verified.
    """
    waiting = iter(places)
    ahead: deque[_File | DecodeError] = deque()

    def look_at_next() -> bool:
        if (place := next(waiting, None)) is None:
            return False
        with ExitStack() as stack:
            try:
                opened: _File | DecodeError = _look_into(place, max_seconds, stack, sums_checked)
            except DecodeError as error:
                opened = error
            else:
                opened.release = stack.pop_all()
        ahead.append(opened)
        return True

    try:
        while ahead or look_at_next():
            first = ahead[0]
            if isinstance(first, _File) and _may_share(first):
                _decode_ahead(ahead, look_at_next, max_seconds)
            ahead.popleft()
            if isinstance(first, DecodeError):
                yield first
                continue
            with first.release:
                try:
                    recording: Recording | DecodeError = _open(first, max_seconds)
                except DecodeError as error:
                    recording = error
                yield recording
    finally:
        for left in ahead:
            if isinstance(left, _File):
                left.release.close()


def _may_share(file: _File) -> bool:
    """Whether ffmpeg should decode it together with others; for a long file, starting a process costs little."""
    return not (file.layout.sndfile or file.tried) and file.decoded_bytes <= ffmpeg.BATCH_BYTES / 4


def _decode_ahead(ahead: deque[_File | DecodeError], look_at_next: Callable[[], bool], max_seconds: float) -> None:
    """Fill a batch with the first file and others ahead, and decode it."""
    batch: list[_File] = []
    room = float(ffmpeg.BATCH_BYTES)
    index = 0
    while len(batch) < BATCH_FILES and (index < len(ahead) or (len(ahead) < LOOKAHEAD and look_at_next())):
        file = ahead[index]
        index += 1
        if isinstance(file, _File) and _may_share(file):
            room -= file.decoded_bytes
            if room < 0:
                break
            batch.append(file)
            file.tried = True
    _decode_batch(batch, max_seconds)


def _decode_batch(batch: list[_File], max_seconds: float) -> None:
    """Decode a batch; on any failure try its halves. A single file is then decoded alone."""
    if len(batch) < 2:
        return
    if (decoded := ffmpeg.decode_together(batch, max_seconds)) is None:
        _decode_batch(batch[: len(batch) // 2], max_seconds)
        _decode_batch(batch[len(batch) // 2 :], max_seconds)
        return
    for file, samples in zip(batch, decoded, strict=True):
        file.decoded = samples
        file.release.callback(samples.data.close)


def _look_into(place: AbstractContextManager[BinaryIO], max_seconds: float, stack: ExitStack, sums_checked: bool = False) -> _File:
    file = stack.enter_context(place)
    size = os.fstat(file.fileno()).st_size
    try:
        kind = containers.sniff(file, size)
        layout = containers.inspect(kind, file, size, max_seconds, sums_checked)
        if len(layout.pieces) > 1:
            file, layout = stack.enter_context(_joined(file, layout.pieces)), replace(layout, pieces=())
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or "") from None
    return _File(file, kind, layout, size, stack)


def _joined(file: BinaryIO, pieces: tuple[tuple[int, int], ...]) -> IO[bytes]:
    """A nameless copy of the pieces of a file, for decoders that stumble over tags between them."""
    copy = tempfile.TemporaryFile()
    for start, end in pieces:
        while start < end:
            if not (sent := os.sendfile(copy.fileno(), file.fileno(), start, end - start)):
                raise DecodeError("truncated", "the file became shorter while it was read")
            start += sent
    return copy


def _open(file: _File, max_seconds: float) -> Recording:
    frames = file.layout.frames
    remarks = [file.layout.remark] if file.layout.remark else []
    if decoded := file.decoded:
        form, blocks = (decoded.sample_rate, decoded.channels, min(decoded.num_frames, frames), "ffmpeg"), decoded.blocks()
    elif file.layout.sndfile and (sound := file.open_libsndfile()):
        num_frames = min(sound.frames, frames) if file.layout.exact else None
        form, blocks = (sound.samplerate, sound.channels, num_frames, "libsndfile"), _blocks(sound, file, max_seconds)
    else:
        rate, channels, blocks = ffmpeg.stream(file, max_seconds, file.release, remarks)
        form = rate, channels, None, "ffmpeg"
    recording = Recording(file.kind.name, *form, blocks, remarks)
    if not 0 < recording.channels <= containers.layout.MAX_CHANNELS or recording.sample_rate <= 0:
        raise DecodeError("corrupt", f"the header declares {recording.channels} channels at {recording.sample_rate} Hz")
    if recording.num_frames is not None:
        check_bound(recording.num_frames, recording.sample_rate, recording.channels, max_seconds)
    recording.blocks = _sound(recording.blocks, frames, recording.sample_rate)
    return recording


def _sound(blocks: Iterator[np.ndarray], frames: int, sample_rate: int) -> Iterator[np.ndarray]:
    """The blocks up to `frames`; DecodeError if they are fewer, or if a surround sound is coded in the samples."""
    total = 0
    for block in blocks:
        kept = block[: frames - total]
        if len(kept):
            for remedy in _codecs(kept.ravel(), kept.shape[1]):
                what = f"samples from about {total / sample_rate:.0f} s on are frames of a codec, as DTS or AC-3"
                raise DecodeError("coded", f"{what}; decode them with `ffmpeg -i FILE {remedy} -i - OUT.wav`")
            yield kept
        total += len(kept)
    if frames < UNKNOWN_FRAMES:
        check_length(total, frames, sample_rate, 0)


def _blocks(sound: soundfile.SoundFile, file: _File, max_seconds: float) -> Iterator[np.ndarray]:
    """float32 [n, channels] by libsndfile; DecodeError if the file is damaged, perhaps only at the last block."""
    layout = file.layout
    checksum = hashlib.md5(usedforsecurity=False) if layout.md5 and layout.bits in (8, 16, 24) else None
    most = max(1, BLOCK_SAMPLES // sound.channels)
    total, frames = 0, min(sound.frames, layout.frames)
    while total < frames:
        block = np.empty((min(most, frames - total), sound.channels), dtype=np.float32)
        try:
            with _mpg123_errors_raised(file):
                count = sound.buffer_read_into(block, "float32")
        except soundfile.SoundFileError as error:
            at_end = os.lseek(file.file.fileno(), 0, os.SEEK_CUR) >= os.fstat(file.file.fileno()).st_size
            raise DecodeError("truncated" if at_end else "corrupt", one_line(str(error))) from None
        if count == 0:
            break
        total += count
        check_bound(total, sound.samplerate, sound.channels, max_seconds)
        if checksum:  # of the little-endian integers that the samples came from; exact up to 24 bits
            values = np.rint(block[:count] * np.float32(1 << layout.bits - 1)).astype("<i4")
            checksum.update(values.view(np.uint8).reshape(*values.shape, 4)[..., : layout.bits // 8].tobytes())
        yield block[:count]
    if layout.exact:
        check_length(total, layout.frames if layout.frames < UNKNOWN_FRAMES else frames, sound.samplerate, 0)
    elif total < layout.at_least - LOST_SAMPLES:
        raise DecodeError("corrupt", f"libsndfile gives {total} of {layout.at_least} samples")
    if total < MIN_SAMPLES:
        raise DecodeError("too short", "no or one sample")
    rest = (layout.pieces[-1][1] if layout.pieces else file.size) - os.lseek(file.file.fileno(), 0, os.SEEK_CUR)
    if file.kind.name == "flac" and rest > FLAC_READ_AHEAD:
        raise DecodeError("corrupt", f"{rest} bytes follow the {total} samples that the header declares; files joined?")
    if checksum and checksum.digest() != layout.md5:
        raise DecodeError("corrupt", "decoded samples do not match the checksum in the file")


_STDERR = threading.Lock()
# What is wrong in a tag is not damage. Nor is it that the first frames of a cut stream refer to bits of earlier frames.
_MPG123_ERROR = re.compile(rb"libmpg123/(?!id3)\S* error: (?!part2_3_length)([^\n]*)")
_MPG123_NOTE = re.compile(rb"^(\[[^\n]*libmpg123|Warning: )[^\n]*\n?", re.MULTILINE)


@contextmanager
def _mpg123_errors_raised(source: _File) -> Iterator[None]:
    """For MPEG audio, DecodeError if libmpg123 reports a damaged frame on standard error, which libsndfile ignores.

    One thread at a time; what others write to standard error is written afterwards.
    """
    if source.kind.name != "mpeg-audio":
        yield
        return
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
            os.write(2, _MPG123_NOTE.sub(b"", text))


# Demuxer of ffmpeg → how a frame begins: bits of a word, two words, and the first bits of a third.
_CODED = (
    ("spdif", 16, 0xF872, 0x4E1F, 0, 0),  # IEC 61937 and SMPTE 337M: AC-3, DTS, AAC …
    ("s337m", 20, 0x6F872, 0x54E1F, 0, 0),
    ("s337m", 24, 0x96F872, 0xA54E1F, 0, 0),
    ("dts", 16, 0x7FFE, 0x8001, 0xFC00, 0xFC00),
    ("dts", 16, 0x1FFF, 0xE800, 0xFFF0, 0x07F0),  # of 14 bits
)
_AC3_KBPS = np.array((32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640))


@functools.cache
def _sample(word: int, bits: int, order: Literal["big", "little"]) -> np.float32:
    """A word of a codec as a sample of 16 or 24 bits, or with these bytes swapped."""
    width = 2 if bits == 16 else 3
    return np.float32(int.from_bytes((word << 8 * width - bits).to_bytes(width, "big"), order, signed=True) / (1 << 8 * width - 1))


@np.errstate(invalid="ignore")
def _words(samples: np.ndarray, order: Literal["big", "little"]) -> np.ndarray:
    return np.rint(np.clip(samples, -1, 32767 / 32768) * 32768).astype("<i2").view("<u2" if order == "big" else ">u2").astype(int)


def _codecs(samples: np.ndarray, channels: int) -> Iterator[str]:
    """How ffmpeg decodes the frames that these samples are: two begin, also in one channel, or AC-3's, each where one ends."""
    for order, end in (("big", "le"), ("little", "be")):  # samples are little-endian
        for demuxer, bits, *starts, mask, third in _CODED:
            first, second = (_sample(word, bits, order) for word in starts)
            at = np.flatnonzero(samples[: -2 * channels] == first)
            for step in {1, channels} if len(at) >= 2 else ():
                found = at[samples[at + step] == second]
                if np.count_nonzero(_words(samples[found + 2 * step], order) & mask == third) >= 2:
                    yield f"-f s{16 if bits == 16 else 24}{end} - | ffmpeg -f {demuxer}"
        at = np.flatnonzero(samples[:-2] == _sample(0x0B77, 16, order))
        if len(at) < 3:
            continue
        size, info = _words(samples[at + 1], order), _words(samples[at + 2], order)
        kbps = _AC3_KBPS[np.minimum(info >> 9 & 31, len(_AC3_KBPS) - 1)]
        ac3 = np.choose(np.minimum(info >> 14, 2), [kbps * 2, kbps * 320 // 147 + (info >> 8) % 2, kbps * 3])  # words of a frame
        for demuxer, version, length in (("ac3", 8, ac3), ("eac3", 16, (size & 0x7FF) + 1)):  # ATSC A/52
            ends = (at + length)[np.isin(at + length, at) & (info >> 3 & 31 == version)]
            if len(np.unique(samples[ends - 1])) >= 2:  # their checksums: waves with a period have one
                yield f"-f s16{end} - | ffmpeg -f {demuxer}"
