"""Any audio file to samples and back, streaming and bounded; whatever is wrong with a file becomes a DecodeError with a reason.

libsndfile decodes what it can read, in this process; ffmpeg the rest, many short files at a time (see ffmpeg.py).
See containers/ for what is checked before either starts.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile

from soundmill.audio.resample import resample_blocks
from soundmill.decoding import containers, ffmpeg
from soundmill.decoding.containers import sniffing
from soundmill.decoding.containers.layout import Layout
from soundmill.decoding.ffmpeg import ffmpeg_executable, ffmpeg_version, installed_version
from soundmill.decoding.ffmpeg_log import one_line
from soundmill.decoding.limits import MAX_CHANNELS, MIN_SAMPLES, DecodeError, check_bound, check_length

__all__ = [
    "DecodeError",
    "Probe",
    "Recording",
    "check_header",
    "decode_blocks",
    "ffmpeg_executable",
    "ffmpeg_version",
    "installed_version",
    "mix_down",
    "open_all",
    "open_regular",
    "probe",
    "read_channels",
    "read_mono",
]

BLOCK_SAMPLES = 1 << 18  # of all channels together, held at once: some seconds, a megabyte
BATCH_FILES = 32  # that one ffmpeg decodes together
MAX_SECONDS = 7200.0  # a longer file is refused, where no parameter says another limit: conf/config.yaml has the same
LOST_SAMPLES = 2 * 1152  # frames at the start of MPEG audio that need what was in those before
LOOKAHEAD = 64  # files that are opened to fill a batch
READ_AHEAD = 1 << 18  # of a file that is opened: a short one is read by one call
ASSUMED_BYTES_PER_SECOND = 4 * 2 * 48_000  # decoded, where only the time is known
ASSUMED_CODED_BYTES_PER_SECOND = 4_000  # where not even that: 32 kbit/s


@dataclass(frozen=True)
class Probe:
    """What a file holds, at its own rate; `num_frames` counts samples of one channel, `backend` is who decodes it."""

    format: str
    sample_rate: int
    channels: int
    num_frames: int
    backend: Literal["libsndfile", "ffmpeg"]


@dataclass
class Recording:
    """An opened file: `blocks` of float32 [n, channels] come once; `num_frames` is None where only decoding tells.

    DecodeError may be raised at any block: the file is good only when its last one has come.
    """

    format: str
    sample_rate: int
    channels: int
    num_frames: int | None
    backend: Literal["libsndfile", "ffmpeg"]
    blocks: Iterator[np.ndarray]

    def probe(self) -> Probe:
        """What it holds, in exact numbers; decodes only where the header cannot be relied on."""
        num_frames = self.num_frames
        if num_frames is None:
            num_frames = sum(len(block) for block in self.blocks)
        if num_frames < MIN_SAMPLES:
            raise DecodeError("too short", "no or one sample")
        return Probe(self.format, self.sample_rate, self.channels, num_frames, self.backend)


@dataclass
class _File:
    """A file that was opened and looked into, and what ffmpeg made of it beside others, if it did."""

    file: BinaryIO
    size: int
    kind: sniffing.Kind
    layout: Layout
    release: ExitStack
    decoded: ffmpeg.Decoded | None = None
    tried: bool = False  # in a batch

    @property
    def decoded_bytes(self) -> float:
        """What decoding will give, roughly."""
        seconds = self.layout.seconds
        return ASSUMED_BYTES_PER_SECOND * (self.size / ASSUMED_CODED_BYTES_PER_SECOND if seconds is None else seconds)

    @property
    def input(self) -> ffmpeg.Input:
        return ffmpeg.Input(self.file, self.kind, self.layout.streamed)


def open_regular(path: bytes | str | Path) -> BinaryIO:
    """Open a regular file for reading, never waiting: FIFOs, sockets, devices and directories raise DecodeError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(path, error) from None
    file = os.fdopen(handle, "rb", READ_AHEAD) if stat.S_ISREG(os.fstat(handle).st_mode) else None
    if file is None:
        kind = _kind_of(os.fstat(handle).st_mode)
        os.close(handle)
        raise DecodeError("not a regular file", kind)
    return file


def _cannot_open(path: bytes | str | Path, error: OSError) -> DecodeError:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return DecodeError("missing", error.strerror or "")
    if stat.S_ISLNK(mode) and not os.path.exists(path):
        return DecodeError("dangling link", "the file that the link names is not there")
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        return DecodeError("not a regular file", _kind_of(mode))
    return DecodeError("unreadable", error.strerror or "")


def _kind_of(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a directory",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "not a file")


def probe(path: bytes | str | Path, max_seconds: float) -> Probe:
    """Rate, channels and exact length of a file; raises DecodeError. Decodes only where the header cannot be relied on."""
    with ExitStack() as stack:
        return _open(_look_into(open_regular(path), max_seconds, stack), max_seconds).probe()


def check_header(path: bytes | str | Path, max_seconds: float) -> None:
    """Raise DecodeError for what tells without decoding that a file is no use: its kind, sizes that it declares, its length."""
    with ExitStack() as stack:
        file = _look_into(open_regular(path), max_seconds, stack, sums_checked=True)
        if file.layout.sndfile and file.layout.exact and (sound := _open_libsndfile(file)):
            check_bound(sound.frames, sound.samplerate, sound.channels, max_seconds)


def decode_blocks(path: bytes | str | Path, max_seconds: float) -> tuple[int, Iterator[np.ndarray]]:
    """(sample rate, mono float32 blocks [n]) of a file, the mean of its channels, in bounded memory.

    DecodeError may be raised by the call or at any block: a file is good only when its last block has come.
    """
    with ExitStack() as stack:
        recording = _open(_look_into(open_regular(path), max_seconds, stack), max_seconds)
        kept = stack.pop_all()

    def mono() -> Iterator[np.ndarray]:
        with kept:
            for block in recording.blocks:
                yield mix_down(block)

    return recording.sample_rate, mono()


def to_stereo(block: np.ndarray) -> np.ndarray:
    """Two channels [n, 2] of float32 [n, channels]: one is doubled, of more the first two are taken (left and right in front).

    Samples that are no numbers raise DecodeError.
    """
    stereo = np.repeat(block, 2, axis=1) if block.shape[1] == 1 else block[:, :2]
    if not np.isfinite(stereo).all():
        raise DecodeError("nan", "samples that are no numbers")
    return stereo


def mix_down(block: np.ndarray) -> np.ndarray:
    """The mean [n] of the channels of float32 [n, channels]; samples that are no numbers raise DecodeError."""
    channels = block.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        mono = block[:, 0]
        if channels > 1:
            mono = mono.copy()
            for channel in range(1, channels):  # numpy's mean of so short rows takes fifteen times as long
                mono += block[:, channel]
            mono /= np.float32(channels)
    if not np.isfinite(mono).all():  # one such channel makes the mean one
        raise DecodeError("nan", "samples that are no numbers")
    return mono


def read_mono(path: bytes | str | Path, sample_rate: int, max_seconds: float) -> np.ndarray:
    """A whole file as mono float32 [T] at `sample_rate`."""
    rate, blocks = decode_blocks(path, max_seconds)
    return np.concatenate([np.zeros(0, dtype=np.float32), *resample_blocks(blocks, rate, sample_rate)])


def read_channels(path: bytes | str | Path, max_seconds: float) -> tuple[np.ndarray, int]:
    """A whole file as float32 [C, T], and its rate; samples that are no numbers raise DecodeError."""
    with ExitStack() as stack:
        recording = _open(_look_into(open_regular(path), max_seconds, stack), max_seconds)
        wave = np.concatenate([np.zeros((0, recording.channels), np.float32), *recording.blocks]).T
    if not np.isfinite(wave).all():
        raise DecodeError("nan", "samples that are no numbers")
    return wave, recording.sample_rate


def open_all(
    places: Iterable[AbstractContextManager[BinaryIO]], max_seconds: float, sums_checked: bool = False
) -> Iterator[Recording | DecodeError]:
    """Every file in order, opened, or what is wrong with it; a Recording is to be used before the next one is asked for.

    Places give open files when entered, and are left when their file is done with. Files that ffmpeg has to read are decoded many
    at a time, ahead of their turn; bytes and errors are the same as one by one. `sums_checked`: the same bytes were probed before.
    """
    waiting = iter(places)
    ahead: deque[_File | DecodeError] = deque()

    def look_at_next() -> bool:
        place = next(waiting, None)
        if place is None:
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
    """Whether it should be decoded by ffmpeg together with others: of a long one, starting the process costs nothing."""
    return not (file.layout.sndfile or file.tried) and file.decoded_bytes <= ffmpeg.BATCH_BYTES / 4


def _decode_ahead(ahead: deque[_File | DecodeError], look_at_next: Callable[[], bool], max_seconds: float) -> None:
    """Fill a batch from the files ahead, the first among them, and have it decoded."""
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
    for file in batch:
        file.tried = True
    _decode_batch(batch, max_seconds)


def _decode_batch(batch: list[_File], max_seconds: float) -> None:
    """Decode together what can be; where anything is wrong the halves are tried, and at last the file is left to be read alone."""
    if len(batch) < 2:
        return
    decoded = ffmpeg.decode_together([file.input for file in batch], max_seconds)
    if decoded is None:
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
        kind = sniffing.sniff(file, size)
        layout = containers.inspect(kind, file, size, max_seconds, sums_checked)
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or "") from None
    return _File(file, size, kind, layout, stack)


def _open(file: _File, max_seconds: float) -> Recording:
    if file.decoded:
        made = file.decoded
        recording = Recording(file.kind.name, made.sample_rate, made.channels, made.num_frames, "ffmpeg", made.blocks())
    elif file.layout.sndfile and (sound := _open_libsndfile(file)):
        num_frames = sound.frames if file.layout.exact else None
        blocks = _libsndfile_blocks(sound, file, max_seconds)
        recording = Recording(file.kind.name, sound.samplerate, sound.channels, num_frames, "libsndfile", blocks)
    else:
        rate, channels, blocks = ffmpeg.stream(file.input, max_seconds, file.release)
        recording = Recording(file.kind.name, rate, channels, None, "ffmpeg", blocks)
    if not 0 < recording.channels <= MAX_CHANNELS or recording.sample_rate <= 0:
        raise DecodeError("corrupt", f"the header declares {recording.channels} channels at {recording.sample_rate} Hz")
    if recording.num_frames is not None:
        check_bound(recording.num_frames, recording.sample_rate, recording.channels, max_seconds)
    return recording


def _open_libsndfile(file: _File) -> soundfile.SoundFile | None:
    """The file for libsndfile, through the descriptor at hand, so its name never matters; None if ffmpeg is to read it."""
    os.lseek(file.file.fileno(), 0, os.SEEK_SET)
    try:
        sound = file.release.enter_context(soundfile.SoundFile(file.file.fileno(), closefd=False))
    except soundfile.SoundFileError:
        return None
    # It gives no more frames than it told, and of mp3 without a count it tells an estimate.
    return sound if file.layout.exact or sound.frames >= file.layout.at_least else None


def _libsndfile_blocks(sound: soundfile.SoundFile, file: _File, max_seconds: float) -> Iterator[np.ndarray]:
    layout = file.layout
    checksum = hashlib.md5(usedforsecurity=False) if layout.md5 and layout.bits in (8, 16, 24) else None
    most = max(1, BLOCK_SAMPLES // sound.channels)
    total = 0
    while total < sound.frames:
        block = np.empty((min(most, sound.frames - total), sound.channels), dtype=np.float32)
        try:
            with _mpg123_listened_to() if file.kind.name == "mpeg-audio" else nullcontext():
                count = sound.buffer_read_into(block, "float32")
        except soundfile.SoundFileError as error:
            at_end = os.lseek(file.file.fileno(), 0, os.SEEK_CUR) >= file.size
            raise DecodeError("truncated" if at_end else "corrupt", one_line(str(error))) from None
        if count == 0:
            break
        total += count
        check_bound(total, sound.samplerate, sound.channels, max_seconds)
        if checksum:
            checksum.update(_integers(block[:count], layout.bits))
        yield block[:count]
    if layout.exact:
        check_length(total, sound.frames, sound.samplerate, 0)
    elif total < layout.at_least - LOST_SAMPLES:
        raise DecodeError("corrupt", f"libsndfile gives {total} of {layout.at_least} samples")
    if total < MIN_SAMPLES:
        raise DecodeError("too short", "no or one sample")
    if checksum and checksum.digest() != layout.md5:
        raise DecodeError("corrupt", "the decoded samples do not match the file's own checksum")


_STDERR = threading.Lock()
# A stream that was taken up in the middle begins with a frame whose bits were in those before: that is no damage.
_MPG123_ERROR = re.compile(rb"libmpg123\S* error: (?!part2_3_length)([^\n]*)")


@contextmanager
def _mpg123_listened_to() -> Iterator[None]:
    """DecodeError where libmpg123 complains of a frame: libsndfile goes on as if it had not, and there is no one else to ask.

    It writes to the standard error of the process, one at a time; what else is written there meanwhile comes afterwards.
    """
    with _STDERR, ExitStack() as stack:
        complaints = os.memfd_create("complaints")
        stack.callback(os.close, complaints)
        before = os.dup(2)
        stack.callback(os.close, before)
        os.dup2(complaints, 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            text = os.pread(complaints, os.fstat(complaints).st_size, 0)
            if error := _MPG123_ERROR.search(text):
                raise DecodeError("corrupt", f"libmpg123: {one_line(error[1].decode('utf-8', 'replace'))}")
            if text:
                os.write(2, text)


def _integers(block: np.ndarray, bits: int) -> bytes:
    """The little-endian integers that float32 samples were made of: exact up to 24 bits."""
    values = np.rint(block * np.float32(1 << bits - 1)).astype("<i4")
    return values.view(np.uint8).reshape(*values.shape, 4)[..., : bits // 8].tobytes()
