"""Any audio file to samples and back, streaming and bounded; whatever is wrong with a file becomes a DecodeError with a reason.

libsndfile decodes what it can read, in this process; ffmpeg the rest, with the type forced, one file and no network allowed,
and killed when it stalls or gives more than the bound. See containers.py for what is checked before either starts.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import resource
import selectors
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile

from soundmill.audio import containers
from soundmill.audio.containers import DecodeError
from soundmill.audio.resample import resample_blocks
from soundmill.errors import UserError

__all__ = ["DecodeError", "Probe", "decode_blocks", "decode_flac", "encode_flac", "open_regular", "probe", "read_mono", "write_wav"]

BLOCK_SAMPLES = 1 << 18  # of all channels together, held at once
MAX_CHANNELS = 1024  # libsndfile's own limit
MAX_SAMPLES_PER_SECOND = 8 * 192_000  # of all channels: with `max_seconds`, what a bomb may expand to
MIN_SAMPLES = 2  # one sample is no sound
LENGTH_TOLERANCE_SECONDS = 0.05  # decoded against declared: WMA of 5 s comes 34 ms short
LENGTH_TOLERANCE_SAMPLES = 2048  # and a lossy codec may lose a frame at an end
STALL_SECONDS = 60.0  # ffmpeg giving nothing for so long has hung
FFMPEG_MEMORY = 4 << 30  # address space of the child

# What ffmpeg may choose from where the type was not sniffed: no playlists, network, devices, pictures, subtitles or raw data.
HARMLESS_DEMUXERS = """
    3dostr 4xm aac aax ac3 ac4 ace acm act adp ads adx aea afc aix alp amr amrnb amrwb apac apc ape apm aptx aptx_hd
    argo_asf argo_brp argo_cvg asf asf_o ast avi avr avs bethsoftvid bfi bfstm bink binka bit bmv boa bonk brstm c93 caf
    cdxl cine codec2 daud dcstr derf dfa dhav dsf dsicin dss dts dtshd dv dxa ea eac3 epaf film_cpk filmstrip flac flv frm
    fsb fwse g722 g723_1 g729 gdv gsm gxf hca hcom hnm iamf idcin iff ifv ilbc ingenient ipmovie ircam iss iv8 ivf ivr jv
    kux kvag laf lc3 libgme libopenmpt lmlm4 loas luodat lvf lxf matroska mca mgsts mlp mlv mm mmf mods moflex mov mp3 mpc
    mpc8 mpeg mpegts msf msnwctcp mtaf mtv musx mv mvi mxf mxg nc nistsphere nsp nsv nut nuv ogg oma osq paf pmp pp_bnk
    psxstr pva pvf qcp qoa r3d redspark rka rl2 rm roq rpl rsd rso sbc scd sdns sdr2 sds sdx sga shn siff smjpeg smk smush
    sol sox spdif svag svs swf tak thp tiertexseq tmv truehd tta txd ty usm vag vividas vivo vmd voc vpk vqf w64 wady wav
    wavarc wc3movie wsaud wsd wsvqa wtv wv wve xa xmd xmv xvag xwma yop aiff au
""".split()


@dataclass(frozen=True)
class Probe:
    """What a file holds, at its own rate; `num_frames` counts samples of one channel, `backend` is who decodes it."""

    format: str
    sample_rate: int
    channels: int
    num_frames: int
    backend: Literal["libsndfile", "ffmpeg"]


@dataclass
class _Source:
    """An opened file: blocks float32 [n, channels]; `num_frames` is None where only decoding tells."""

    format: str
    sample_rate: int
    channels: int
    num_frames: int | None
    backend: Literal["libsndfile", "ffmpeg"]
    blocks: Iterator[np.ndarray]
    release: ExitStack

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.release.close()


@functools.cache
def ffmpeg_executable() -> Path:
    """The ffmpeg of imageio-ffmpeg's wheel, whose version is pinned with the rest, else the one on PATH; one that runs."""
    import imageio_ffmpeg

    try:
        found = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        found = None
    if found:
        executable = Path(shutil.which(found) or found)  # the bare name where it falls back to PATH
        if _version_of(executable):
            return executable
    problem = f"ffmpeg at {found} does not run" if found else "ffmpeg is missing"
    raise UserError(
        f"{problem}: m4a, mp4, webm, wma and the like need it; install it again with "
        "`.venv/bin/python -m pip install --force-reinstall imageio-ffmpeg`, or set IMAGEIO_FFMPEG_EXE to one that runs"
    )


def ffmpeg_version() -> str:
    """Version of `ffmpeg_executable()`; lossy formats decode bit-equal for one version only."""
    return _version_of(ffmpeg_executable())


@functools.cache
def _version_of(executable: Path) -> str:
    """What ffmpeg calls itself; empty if it does not run."""
    try:
        done = subprocess.run([executable, "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=STALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.match(rb"ffmpeg version (\S+)", done.stdout)
    return found[1].decode("ascii", "replace") if found else ""


def open_regular(path: bytes | str | Path) -> BinaryIO:
    """Open a regular file for reading, never waiting: FIFOs, sockets, devices and directories raise DecodeError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(path, error) from None
    file = os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else None
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
    with _open(path, max_seconds) as source:
        num_frames = source.num_frames
        if num_frames is None:
            num_frames = sum(len(block) for block in source.blocks)
    if num_frames < MIN_SAMPLES:
        raise DecodeError("too short", "no or one sample")
    return Probe(source.format, source.sample_rate, source.channels, num_frames, source.backend)


def decode_blocks(path: bytes | str | Path, max_seconds: float) -> tuple[int, Iterator[np.ndarray]]:
    """(sample rate, mono float32 blocks [n]) of a file, the mean of its channels, in bounded memory.

    DecodeError may be raised by the call or at any block: a file is good only when its last block has come.
    """
    source = _open(path, max_seconds)

    def mono() -> Iterator[np.ndarray]:
        with source:
            for block in source.blocks:
                with np.errstate(over="ignore", invalid="ignore"):
                    mixed = block[:, 0] if source.channels == 1 else block.mean(axis=1, dtype=np.float32)
                if not np.isfinite(mixed).all():  # one such channel makes the mean one
                    raise DecodeError("nan", "samples that are no numbers")
                yield mixed

    return source.sample_rate, mono()


def read_mono(path: bytes | str | Path, sample_rate: int, max_seconds: float) -> np.ndarray:
    """A whole file as mono float32 [T] at `sample_rate`."""
    rate, blocks = decode_blocks(path, max_seconds)
    return np.concatenate([np.zeros(0, dtype=np.float32), *resample_blocks(blocks, rate, sample_rate)])


def _open(path: bytes | str | Path, max_seconds: float) -> _Source:
    with ExitStack() as stack:
        file = stack.enter_context(open_regular(path))
        size = os.fstat(file.fileno()).st_size
        try:
            kind = containers.sniff(file, size)
            layout = containers.inspect(kind, file, size, max_seconds)
        except OSError as error:
            raise DecodeError("unreadable", error.strerror or "") from None
        sound = _open_libsndfile(file, layout, stack) if layout.sndfile else None
        if sound is not None:
            source = _libsndfile_source(sound, file, size, kind, layout, max_seconds, stack)
        else:
            source = _ffmpeg_source(os.path.abspath(os.fsencode(path)), kind, layout, max_seconds, stack)
        if not 0 < source.channels <= MAX_CHANNELS or source.sample_rate <= 0:
            raise DecodeError("corrupt", f"the header declares {source.channels} channels at {source.sample_rate} Hz")
        if source.num_frames is not None:
            _check_bound(source.num_frames, source.sample_rate, source.channels, max_seconds)
        source.release = stack.pop_all()
        return source


def _check_bound(num_frames: int, sample_rate: int, channels: int, max_seconds: float) -> None:
    if num_frames > max_seconds * sample_rate:
        raise DecodeError("too long", f"more than {max_seconds:g} s")
    if num_frames * channels > max_seconds * MAX_SAMPLES_PER_SECOND:
        raise DecodeError("too long", f"{channels} channels at {sample_rate} Hz expand beyond what {max_seconds:g} s may")


def _check_length(found: int, declared: float, sample_rate: int, slack: int) -> None:
    """Hold the decoder to the length in the header, both in samples; `slack` is what the format may lose at its ends."""
    if abs(found - declared) > LENGTH_TOLERANCE_SECONDS * sample_rate + slack:
        reason = "truncated" if found < declared else "corrupt"
        raise DecodeError(reason, f"{found / sample_rate:.3f} s of sound, {declared / sample_rate:.3f} s declared")


def _open_libsndfile(file: BinaryIO, layout: containers.Layout, stack: ExitStack) -> soundfile.SoundFile | None:
    """The file for libsndfile, through the descriptor at hand, so its name never matters; None if ffmpeg is to read it."""
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    try:
        sound = stack.enter_context(soundfile.SoundFile(file.fileno(), closefd=False))
    except soundfile.SoundFileError:
        return None
    # It gives no more frames than it told, and of mp3 without a count it tells an estimate.
    return sound if layout.exact or sound.frames >= layout.at_least else None


def _libsndfile_source(
    sound: soundfile.SoundFile,
    file: BinaryIO,
    size: int,
    kind: containers.Kind,
    layout: containers.Layout,
    max_seconds: float,
    stack: ExitStack,
) -> _Source:
    def blocks() -> Iterator[np.ndarray]:
        checksum = hashlib.md5(usedforsecurity=False) if layout.md5 and layout.bits in (8, 16, 24) else None
        buffer = np.empty((max(1, BLOCK_SAMPLES // sound.channels), sound.channels), dtype=np.float32)
        total = 0
        while True:
            try:
                count = sound.buffer_read_into(buffer, "float32")
            except soundfile.SoundFileError as error:
                at_end = os.lseek(file.fileno(), 0, os.SEEK_CUR) >= size
                raise DecodeError("truncated" if at_end else "corrupt", _one_line(str(error))) from None
            if count == 0:
                break
            total += count
            _check_bound(total, sound.samplerate, sound.channels, max_seconds)
            if checksum:
                checksum.update(_integers(buffer[:count], layout.bits))
            yield buffer[:count].copy()
        if layout.exact:
            _check_length(total, sound.frames, sound.samplerate, 0)
        if total < MIN_SAMPLES:
            raise DecodeError("too short", "no or one sample")
        if checksum and checksum.digest() != layout.md5:
            raise DecodeError("corrupt", "the decoded samples do not match the file's own checksum")

    num_frames = sound.frames if layout.exact else None
    return _Source(kind.name, sound.samplerate, sound.channels, num_frames, "libsndfile", blocks(), stack)


def _integers(block: np.ndarray, bits: int) -> bytes:
    """The little-endian integers that float32 samples were made of: exact up to 24 bits."""
    values = np.rint(block * np.float32(1 << bits - 1)).astype("<i4")
    return values.view(np.uint8).reshape(*values.shape, 4)[..., : bits // 8].tobytes()


def _ffmpeg_command(path: bytes, kind: containers.Kind) -> list[str | bytes]:
    import ffmpeg

    force = {"f": kind.demuxer} if kind.demuxer else {"format_whitelist": ",".join(HARMLESS_DEMUXERS)}
    # AU on the pipe: its header tells rate and channels, and unlike WAV's has no limit of size.
    out = {
        "map": "0:a:0",
        "map_metadata": "-1",
        "fflags": "+bitexact",
        "flags:a": "+bitexact",
        "c:a": "pcm_f32be",
        "af": "asetpts=N/SR/TB",  # clocks that stumble are no damage to the sound
        "f": "au",
        "threads": 1,
    }
    place = "file:"  # of the path, which ffmpeg-python cannot take when it is not UTF-8
    command = ffmpeg.input(place, protocol_whitelist="file", threads=1, **force).output("pipe:1", **out)
    options = ["-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+level+info"]
    compiled = command.compile(cmd=[str(ffmpeg_executable()), *options])
    return [b"file:" + path if argument == place else argument for argument in compiled]


def _ffmpeg_source(path: bytes, kind: containers.Kind, layout: containers.Layout, max_seconds: float, stack: ExitStack) -> _Source:
    log = _Log(layout.streamed)
    child = stack.enter_context(_Child(_ffmpeg_command(path, kind), log, patience=max(STALL_SECONDS, max_seconds)))
    head = child.read_exactly(24)
    if len(head) < 24 or head[:4] != b".snd":
        child.finish()
        raise log.error(kind) or DecodeError("corrupt", "ffmpeg finds no sound in it")
    start, _, _, rate, channels = struct.unpack(">5I", head[4:])
    child.read_exactly(start - 24)
    frame_bytes = 4 * max(1, min(channels, MAX_CHANNELS))
    wanted = max(1, BLOCK_SAMPLES // channels) * frame_bytes if channels else frame_bytes

    def blocks() -> Iterator[np.ndarray]:
        total = 0
        while data := child.read_exactly(wanted):
            block = np.frombuffer(data[: len(data) - len(data) % frame_bytes], dtype=">f4").astype(np.float32).reshape(-1, channels)
            total += len(block)
            _check_bound(total, rate, channels, max_seconds)
            yield block
        child.finish()
        if error := log.error(kind):
            raise error
        if log.seconds is not None and total < log.seconds * rate:
            _check_length(total, log.seconds * rate, rate, LENGTH_TOLERANCE_SAMPLES)
        if total < MIN_SAMPLES:
            raise DecodeError("too short", "no or one sample")

    return _Source(kind.name, rate, channels, None, "ffmpeg", blocks(), stack)


class _Child:
    """An ffmpeg process: its output in pieces, its log beside; it never outlives this object, waits for nothing and is bounded.

    `patience`: seconds that all waiting for it may take together.
    """

    def __init__(self, command: list[str | bytes], log: _Log, patience: float):
        self.log = log
        self._patience = patience
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with suppress(ProcessLookupError):  # it may have ended already
            resource.prlimit(self._process.pid, resource.RLIMIT_AS, (FFMPEG_MEMORY, FFMPEG_MEMORY))
            seconds = int(patience) + 1  # should this process be killed while the child computes
            resource.prlimit(self._process.pid, resource.RLIMIT_CPU, (seconds, seconds))
        self._pipes = selectors.DefaultSelector()
        for pipe in (self._process.stdout, self._process.stderr):
            self._pipes.register(pipe, selectors.EVENT_READ)
        self._ready = bytearray()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._pipes.close()
        self._process.stdout.close()
        self._process.stderr.close()

    def read_exactly(self, count: int) -> bytes:
        """The next `count` bytes of output; fewer only at its end."""
        while len(self._ready) < count and self._process.stdout in self._open_pipes():
            self._wait()
        data = bytes(self._ready[:count])
        del self._ready[:count]
        return data

    def finish(self) -> None:
        """Read both pipes to their ends and take note of how the process ended."""
        while self._open_pipes():
            self._wait()
        self.log.ended(self._process.wait())

    def _open_pipes(self) -> list[object]:
        return [key.fileobj for key in self._pipes.get_map().values()]

    def _wait(self) -> None:
        before = time.monotonic()
        events = self._pipes.select(min(STALL_SECONDS, self._patience))
        self._patience -= time.monotonic() - before
        if not events or self._patience <= 0:
            raise DecodeError("timeout", "ffmpeg takes too long over it")
        for key, _ in events:
            data = os.read(key.fd, 1 << 20)
            if not data:
                self._pipes.unregister(key.fileobj)
            elif key.fileobj is self._process.stdout:
                self._ready += data
            else:
                self.log.add(data)


_TRUNCATED = re.compile(r"packet corrupt|truncat|prematurely|moov atom not found|incomplete frame|partial file|end of file", re.I)
_DAMAGE = re.compile(r"corrupt|truncat|prematurely|size mismatch|check failed", re.I)  # in what are only warnings
_SHORT_PACKET = re.compile(r"packet corrupt|corrupt input packet", re.I)


class _Log:
    """What ffmpeg says while it works: its complaints, and what the container's header declares."""

    MOST = 1000  # different complaints kept
    LONGEST = 1 << 16  # bytes of one line

    def __init__(self, streamed: bool) -> None:
        self._streamed = streamed
        self.seconds: float | None = None  # declared for the whole file, where that is what its sound should last
        self._complaints: set[str] = set()
        self._partial = b""
        self._status = 0
        self._in_input = False
        self._streams = 0
        self._estimated = False
        self._declared: float | None = None

    def add(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[: self.LONGEST]
        for line in lines:
            self._line(line.decode("utf-8", "replace"))

    def _line(self, line: str) -> None:
        found = re.search(r"\[(info|warning|error|fatal|panic)\] ?(.*)", line)
        level, text = (found[1], found[2].strip()) if found else ("info", line.strip())
        if level == "info":
            if text.startswith(("Input #", "Stream mapping", "Output #")):
                self._in_input = text.startswith("Input #")
            elif self._in_input and text.startswith("Stream #") and "(attached pic)" not in text:
                self._streams += 1
            elif self._in_input and (lasts := re.match(r"Duration: (\d+):(\d\d):(\d\d\.\d+), start: (-?[\d.]+)", text)):
                hours, minutes, seconds, start = (float(part) for part in lasts.groups())
                self._declared = hours * 3600 + minutes * 60 + seconds - max(start, 0.0)
            return
        self._estimated |= "Estimating duration" in text
        if level == "warning" and (not _DAMAGE.search(text) or (self._streamed and _SHORT_PACKET.search(text))):
            return
        if len(self._complaints) < self.MOST:
            self._complaints.add(_one_line(text))

    def ended(self, status: int) -> None:
        self.add(b"\n")
        self._status = status
        # A film may last longer than its sound, and what is guessed from the bit rate proves nothing.
        if self._streams == 1 and not self._estimated and not self._streamed:
            self.seconds = self._declared

    def error(self, kind: containers.Kind) -> DecodeError | None:
        """What all the complaints come to, whatever order the process's threads made them in; None if there are none."""
        if not self._complaints and self._status == 0:
            return None
        complaints = sorted(text for text in self._complaints if "file:" not in text)  # paths are this machine's own
        together = "\n".join(complaints)
        detail = complaints[0] if complaints else f"ffmpeg ended with status {self._status}"
        if "matches no streams" in together or "does not contain any stream" in together:
            return DecodeError("no audio stream", "ffmpeg finds none")
        if re.search(r"no decoder found|[Dd]ecoder \S* ?not found|[Uu]nknown decoder", together):
            return DecodeError("unknown codec", detail)
        if kind.demuxer is None and re.search(r"whitelist|Error opening input", together):
            return DecodeError("unknown format", "no audio format that is known by its bytes")
        if _TRUNCATED.search(together):
            return DecodeError("truncated", next(text for text in complaints if _TRUNCATED.search(text)))
        return DecodeError("corrupt", detail)


def _one_line(text: str) -> str:
    """A decoder's message without what differs from run to run (addresses) or could break a table."""
    return re.sub(r"\s+", " ", re.sub(r" ?@ ?0x[0-9a-f]+|0x[0-9a-f]{6,}", "", text)).strip()[:200]


def to_pcm16(wave: np.ndarray) -> np.ndarray:
    """16-bit samples of float32 ones, at full scale at most; the exact inverse of reading them (libsndfile's own scale is not)."""
    return np.clip(np.rint(np.asarray(wave, dtype=np.float32) * np.float32(32768)), -32768, 32767).astype(np.int16)


def encode_flac(wave: np.ndarray, sample_rate: int) -> bytes:
    """Mono float32 [T] as FLAC of 16 bits; the same samples give the same bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, to_pcm16(wave), sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes) -> np.ndarray:
    """Mono float32 [T] of FLAC bytes that this project wrote."""
    wave, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    return wave


def write_wav(path: Path, wave: np.ndarray, sample_rate: int) -> None:
    """Write mono float32 [T] as WAV of 16 bits; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        soundfile.write(file, to_pcm16(wave), sample_rate, format="WAV", subtype="PCM_16")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
