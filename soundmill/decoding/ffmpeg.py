"""Decoding with ffmpeg: forced input type, one file, no network; killed if it stalls or exceeds the limits.

Starting it takes longer than decoding ten seconds, so one process decodes many short files (`decode_together`). If that fails, the
faulty file is unknown, and the caller decodes them one by one (`stream`), with the same samples.
"""

from __future__ import annotations

import functools
import math
import os
import re
import resource
import selectors
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from soundmill.decoding.containers import Kind, layout
from soundmill.decoding.containers.layout import MAX_CHANNELS, MIN_SAMPLES, DecodeError, Layout, check_bound, check_length
from soundmill.errors import UserError

# Of util-linux: the kernel kills ffmpeg when its parent ends. A `preexec_fn` would copy the parent's page tables at every start:
# 0.1 s in a process of 1.5 GB.
ENDS_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
STALL_SECONDS = 60.0  # without output, after which ffmpeg is killed
MEMORY = 4 << 30  # of the child's address space
BATCH_BYTES = 128 << 20  # of decoded samples per batch: 32 times 10 s of stereo
RERUNS = 3  # of a file whose log two threads cut up
POLL_SECONDS = 0.05  # between checks of that size
LENGTH_TOLERANCE_SAMPLES = 2048  # a lossy codec may lose a frame at an end
FRAMES_AT_ONCE = 8192  # passed between ffmpeg's threads; codec frames have about a thousand

# Timestamps that jump ahead, by more than a jitter, make silence; other irregular ones do not change the sound. AVI has none.
# Each is printed as a warning (24): its time and its length.
# Registers: 0 silence so far, 1 samples before the last frame, 2 jumps back, 3 the jump from the last frame, 4 from the first.
_SILENCE_IN_GAPS = (
    "asetpts='st(3,PTS-PREV_INPTS-(N-ld(1))/SR/TB);st(2,ld(2)+if(lt(ld(3)*TB,-1),ld(3),0));st(4,PTS-STARTPTS-N/SR/TB-ld(0)-ld(2));"
    "st(1,N);st(0,ld(0)+if(gt(min(ld(4),ld(3))*TB,0.05),0*print(N/SR+ld(0)*TB,24)+print(ld(4)*TB,24)/TB,0));N/SR/TB+ld(0)',aresample=async=1:min_hard_comp=0.04"
)

# AU: its header has rate and channels, and unlike WAV no size limit.
_AS_DECODED = "-map_metadata -1 -fflags +bitexact -flags:a +bitexact -c:a pcm_f32be -f au -threads 1".split()

# Formats that ffmpeg may detect if sniffing failed: no playlists, network, devices, pictures, subtitles or raw data.
HARMLESS_DEMUXERS = Path(__file__).with_name("harmless_demuxers.csv").read_text(encoding="ascii").split()[1:]


@functools.cache
def ffmpeg_executable() -> Path:
    """The ffmpeg to use (see `_program`); UserError with the remedy if none runs."""
    program = _program()
    if program and version_of(program):
        return program
    problem = f"ffmpeg at {program} does not run" if program else "ffmpeg is missing"
    raise UserError(
        f"{problem}: m4a, mp4, webm, wma and the like need it; install it again with "
        "`.venv/bin/python -m pip install --force-reinstall imageio-ffmpeg`, or set IMAGEIO_FFMPEG_EXE to one that runs"
    )


def ffmpeg_version() -> str:
    """Version of `ffmpeg_executable()`; lossy formats decode bit-equal only with one version."""
    return version_of(ffmpeg_executable())


def installed_version() -> str:
    """Identity of the ffmpeg in use; `none` if none runs, which is allowed where it is not needed.

    For the wheel's ffmpeg it is the file name, unchecked: running it would take a tenth of the start of a stage.
    """
    program = _program()
    if program and program == _of_wheel():
        return program.name
    return (version_of(program) if program else "") or "none"


def _program() -> Path | None:
    """IMAGEIO_FFMPEG_EXE, else the ffmpeg of imageio-ffmpeg's wheel, whose version is pinned, else the one on PATH; not checked."""
    if named := os.environ.get("IMAGEIO_FFMPEG_EXE"):
        return Path(shutil.which(named) or named)
    if wheels := _of_wheel():
        return wheels
    on_path = shutil.which("ffmpeg")
    return Path(on_path) if on_path else None


@functools.cache
def _of_wheel() -> Path | None:
    import imageio_ffmpeg

    return next(Path(imageio_ffmpeg.__file__).parent.glob("binaries/ffmpeg-*"), None)


@functools.cache
def version_of(executable: Path) -> str:
    """Version that ffmpeg reports; empty if it does not run."""
    try:
        done = subprocess.run([executable, "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=STALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.match(rb"ffmpeg version (\S+)", done.stdout)
    return match[1].decode("ascii", "replace") if match else ""


def compile_command(inputs: list[Input], outputs: list[int]) -> list[str]:
    """ffmpeg's command line for the first audio stream of each input; by descriptor, since a name may be odd or of a new file."""
    command = [str(ffmpeg_executable()), "-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+level+info"]
    for source in inputs:
        demuxer = source.kind.demuxer
        command += ["-f", demuxer] if demuxer else ["-format_whitelist", ",".join(HARMLESS_DEMUXERS)]
        # Checksums of FLAC, WavPack, TTA and AC-3, which ffmpeg ignores by default.
        command += ["-err_detect", "crccheck", "-protocol_whitelist", source.protocols, "-threads", "1", "-i", source.url]
    for index, (source, output) in enumerate(zip(inputs, outputs, strict=True)):
        gaps = "anull" if source.kind.demuxer == "avi" else _SILENCE_IN_GAPS
        command += ["-map", f"{index}:a:0", "-af", f"{gaps},asetnsamples=n={FRAMES_AT_ONCE}:p=0,asetpts=N/SR/TB", *_AS_DECODED]
        command.append(f"pipe:{output}")
    return command


_TRUNCATED = re.compile(r"packet corrupt|truncat|prematurely|moov atom not found|incomplete frame|partial file|end of file", re.I)
_DAMAGE = re.compile(r"corrupt|truncat|prematurely|size mismatch|check failed", re.I)  # in warnings
_SHORT_PACKET = re.compile(r"packet corrupt|corrupt input packet", re.I)
_OUTPUT = re.compile(r"  Stream #\d+:\d+: Audio: pcm_f32be .* kb/s(?: \([^()]*\))*")


@dataclass
class _Declared:
    streams: int = 0
    seconds: float | None = None
    estimated: bool = False
    start: float = math.inf  # of the film; unknown without a length
    delay: float | None = None  # of its sound


class Log:
    """The log of one process; `streamed`: for each input, whether it declares no length."""

    MAX_COMPLAINTS = 1000  # distinct complaints kept
    LONGEST = 1 << 16  # bytes of one line

    def __init__(self, streamed: list[bool]) -> None:
        self.streamed = streamed
        self._inputs: list[_Declared] = []
        self._complaints: set[str] = set()
        self._partial = b""
        self._printed: list[float] = []  # by the filter that fills gaps: time and length of each
        self._status = 0
        self.whole = True  # ffmpeg prints an output's line in pieces; a message of another thread between them has no level
        self._in_input = False
        self._estimated = False  # the input that is being opened

    def add(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[: self.LONGEST]
        for line in lines:
            self._line(line.decode("utf-8", "replace"))

    def _line(self, line: str) -> None:
        match = re.search(r"\[(info|warning|error|fatal|panic)\] ?(.*)", line)
        if not match:  # continuation of a multi-line text, such as a tag
            return
        level, text = match[1], match[2]
        if line.startswith("[Eval @ "):
            # The tags of inputs, which ffmpeg prints as they are, may look like this, and like complaints.
            if not self._in_input and re.fullmatch(r"-?\d+\.\d+", text) and len(self._printed) < self.MAX_COMPLAINTS:
                self._printed.append(float(text))
            return
        if level == "info":
            self._information(text)
            return
        if "Estimating duration" in text:
            self._estimated = True
        if level == "warning" and (not _DAMAGE.search(text) or (self.streamed == [True] and _SHORT_PACKET.search(text))):
            return
        if len(self._complaints) < self.MAX_COMPLAINTS:
            self._complaints.add(one_line(text))

    def _information(self, text: str) -> None:
        # Tags, whose names are arbitrary, are indented more than header fields.
        if text.startswith("Input #"):
            self._inputs.append(_Declared(estimated=self._estimated))
            self._estimated, self._in_input = False, True
        elif text.startswith(("Stream mapping", "Output #")):
            self._in_input = False
        elif self._in_input and re.match(r" {2,4}Stream #", text) and "(attached pic)" not in text:
            declared = self._inputs[-1]
            declared.streams += 1
            _, is_audio, properties = text.rpartition(": Audio: ")  # a language, any text, stands before it
            if is_audio and declared.delay is None:
                start = re.search(r", start (\d+\.\d+)", properties)  # told where it is not the film's
                declared.delay = float(start[1]) - declared.start if start else 0.0
        elif not self._in_input and text.startswith("  Stream #") and "->" not in text:
            self.whole = self.whole and _OUTPUT.fullmatch(text) is not None
        elif self._in_input and (lasts := re.match(r"  Duration: (\d+):(\d\d):(\d\d\.\d+), start: (-?[\d.]+)", text)):
            hours, minutes, seconds, start = (float(part) for part in lasts.groups())
            self._inputs[-1].start = start
            self._inputs[-1].seconds = hours * 3600 + minutes * 60 + seconds - max(start, 0.0)

    def ended(self, status: int) -> None:
        self.add(b"\n")
        self._status = status

    @property
    def complained(self) -> bool:
        return bool(self._complaints) or self._status != 0

    @property
    def gaps(self) -> str:
        """The gaps in the timestamps, in words; empty without any."""
        times, lengths = self._printed[::2], self._printed[1::2]
        more = f", and {len(times) - 1} more" if len(times) > 1 else ""
        return f"the timestamps leave {lengths[0]:.3f} s out at {times[0]:.3f} s{more}" if lengths else ""

    @property
    def delay(self) -> float:
        """Seconds from the start of a film to that of its sound, the longest of all inputs; 0.0 if it is a codec's."""
        longest = max((declared.delay or 0.0 for declared in self._inputs), default=0.0)
        return longest if longest > 0.05 else 0.0

    def seconds(self, index: int) -> float | None:
        """Declared duration of an input, if its audio should have that duration."""
        if index >= len(self._inputs):
            return None
        declared = self._inputs[index]
        # A film may be longer than its audio, and estimates from the bit rate are unreliable.
        whole = declared.streams == 1 and not declared.estimated and not self.streamed[index]
        return declared.seconds if whole else None

    def error(self, kind: Kind) -> DecodeError | None:
        """The error that all complaints amount to, in any order; None if there are none."""
        if not self.complained:
            return None
        if self._status in (-signal.SIGKILL, -signal.SIGTERM):  # not by this process, which reports its own kills
            what = f"ffmpeg was killed (signal {-self._status}) while it decoded"
            raise UserError(f"{what}: out of memory? Run it again: finished work is kept")
        complaints = sorted(text for text in self._complaints if "/proc/self/fd" not in text)  # differs from run to run
        together = "\n".join(complaints)
        detail = complaints[0] if complaints else f"ffmpeg ended with status {self._status}"
        if "matches no streams" in together or "does not contain any stream" in together:
            return DecodeError("no audio stream", "ffmpeg finds none")
        if re.search(r"no decoder found|[Dd]ecoder \S* ?not found|[Uu]nknown decoder", together):
            return DecodeError("unknown codec", detail)
        if kind.demuxer is None and re.search(r"whitelist|Error opening input", together):
            return DecodeError("unknown format", "no known audio format")
        if _TRUNCATED.search(together):
            return DecodeError("truncated", next(text for text in complaints if _TRUNCATED.search(text)))
        return DecodeError("corrupt", detail)


def one_line(text: str) -> str:
    """A decoder's message as one line, without addresses, which differ from run to run."""
    return re.sub(r"\s+", " ", re.sub(r" ?@ ?0x[0-9a-f]+|0x[0-9a-f]{6,}", "", text)).strip()[:200]


class _Child:
    """An ffmpeg process with limits (`patience`: seconds of waiting; `file_bytes` of an output file); killed with this object."""

    def __init__(self, inputs: list[Input], outputs: list[int], log: Log, patience: float, file_bytes: int = 0):
        self.log = log
        self._patience = patience
        piped = outputs == [1]
        self._process = subprocess.Popen(
            [*ENDS_WITH_PARENT, *compile_command(inputs, outputs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[source.file.fileno() for source in inputs] + ([] if piped else outputs),
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},  # instead of one arena per thread
        )
        limits = {resource.RLIMIT_AS: MEMORY, resource.RLIMIT_CPU: patience + 1, resource.RLIMIT_FSIZE: file_bytes}
        with suppress(ProcessLookupError):  # it may have exited already
            for limit, most in limits.items():
                if most and math.isfinite(most):
                    resource.prlimit(self._process.pid, limit, (int(most), int(most)))
        self._pipes = selectors.DefaultSelector()
        for pipe in filter(None, (self._process.stdout, self._process.stderr)):
            self._pipes.register(pipe, selectors.EVENT_READ)
        self._ready = bytearray()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._pipes.close()
        for pipe in filter(None, (self._process.stdout, self._process.stderr)):
            pipe.close()

    def read_exactly(self, count: int) -> bytes:
        """The next `count` bytes of output; fewer only at the end."""
        while len(self._ready) < count and self._process.stdout in self._open_pipes():
            self._wait()
        data = bytes(self._ready[:count])
        del self._ready[:count]
        return data

    def finish(self, watch: Callable[[], None] = lambda: None, every: float = math.inf) -> None:
        """Read the pipes to their end and record the exit status; call `watch` every `every` seconds and at the end."""
        due = time.monotonic() + every
        while self._open_pipes():
            self._wait(max(0.0, min(every, due - time.monotonic())))
            if time.monotonic() >= due:  # not at every line of output
                watch()
                due = time.monotonic() + every
        watch()
        self.log.ended(self._process.wait())

    def _open_pipes(self) -> list[object]:
        return [key.fileobj for key in self._pipes.get_map().values()]

    def _wait(self, at_most: float = math.inf) -> None:
        before = time.monotonic()
        events = self._pipes.select(min(STALL_SECONDS, self._patience, at_most))
        self._patience -= time.monotonic() - before
        if self._patience <= 0 or (not events and at_most > STALL_SECONDS):
            raise DecodeError("timeout", "ffmpeg takes too long")
        for key, _ in events:
            if not (data := os.read(key.fd, 1 << 20)):
                self._pipes.unregister(key.fileobj)
            elif key.fileobj is self._process.stdout:
                self._ready += data
            else:
                self.log.add(data)


@dataclass
class Input:
    file: BinaryIO
    kind: Kind
    layout: Layout

    @property
    def protocols(self) -> str:
        return "file,subfile" if self.layout.pieces else "file"

    @property
    def url(self) -> str:
        """The one piece of the file that is sound."""
        whole = f"file:/proc/self/fd/{self.file.fileno()}"
        return "".join(f"subfile,,start,{start},end,{end},,:" for start, end in self.layout.pieces) + whole


@dataclass(frozen=True)
class Decoded:
    """Samples of a file; `data` is an anonymous in-memory file (memfd) in AU format."""

    data: BinaryIO
    start: int
    sample_rate: int
    channels: int
    num_frames: int

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks float32 [n, channels]."""
        self.data.seek(self.start)
        while data := self.data.read(4 * self.channels * max(1, layout.BLOCK_SAMPLES // self.channels)):
            yield _samples(data, self.channels)


def stream(source: Input, max_seconds: float, stack: ExitStack, remarks: list[str]) -> tuple[int, int, Iterator[np.ndarray]]:
    """(sample rate, channels, blocks float32 [n, channels]) of one file, in bounded memory; the child ends with `stack`.

    The call and any block may raise DecodeError: a file is valid only after its last block. Then `remarks` has its doubts.
    """
    patience = max(STALL_SECONDS, max_seconds)
    child = stack.enter_context(_Child([source], [1], Log([source.layout.streamed]), patience))
    if (header := _au_header(child.read_exactly(24))) is None:
        child.finish()
        raise child.log.error(source.kind) or DecodeError("corrupt", "ffmpeg finds no audio")
    start, rate, channels = header
    child.read_exactly(start - 24)
    frame_bytes = 4 * max(1, min(channels, MAX_CHANNELS))
    block_bytes = max(1, layout.BLOCK_SAMPLES // channels) * frame_bytes if channels else frame_bytes

    def blocks() -> Iterator[np.ndarray]:
        total = round(child.log.delay * rate)
        check_bound(total, rate, channels, max_seconds)
        for start in range(0, total, block_bytes // frame_bytes):
            yield np.zeros((min(block_bytes // frame_bytes, total - start), channels), np.float32)
        while data := child.read_exactly(block_bytes):
            block = _samples(data[: len(data) - len(data) % frame_bytes], channels)
            total += len(block)
            check_bound(total, rate, channels, max_seconds)
            yield block
        child.finish()
        log = child.log
        for _ in range(RERUNS):
            if log.whole:
                break
            with open(os.devnull, "wb") as nowhere, _Child([source], [nowhere.fileno()], Log(log.streamed), patience) as again:
                again.finish()
                log = again.log
        if error := log.error(source.kind) or (None if log.whole else DecodeError("corrupt", "ffmpeg's log cannot be read")):
            raise error
        if log.gaps and source.kind.name == "asf":  # as likely lost packets, of which nothing else tells
            raise DecodeError("gap", log.gaps)
        remarks.extend([f"the film is silent until its sound starts at {log.delay:.3f} s"] if log.delay else [])
        remarks.extend([log.gaps] if log.gaps else [])
        _check(total, rate, log.seconds(0))

    return rate, channels, blocks()


def decode_together(sources: list[Input], max_seconds: float) -> list[Decoded] | None:
    """Decode all files, to BATCH_BYTES, by one process; None if ffmpeg reports any problem, or the length of any is wrong."""
    log = Log([source.layout.streamed for source in sources])
    with ExitStack() as stack:
        files = [stack.enter_context(os.fdopen(os.memfd_create("decoded"), "rb")) for _ in sources]
        outputs = [file.fileno() for file in files]

        def watch() -> None:
            if sum(os.fstat(output).st_size for output in outputs) > BATCH_BYTES:
                raise DecodeError("too long", f"more than {BATCH_BYTES} bytes in one batch")

        try:
            with _Child(sources, outputs, log, STALL_SECONDS, BATCH_BYTES) as child:
                child.finish(watch, POLL_SECONDS)
            if log.complained or not log.whole or log.gaps or log.delay:
                return None
            decoded = []
            for index, file in enumerate(files):
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                start, rate, channels = _au_header(file.read(24)) or (0, 0, 0)
                if not 0 < channels <= MAX_CHANNELS or rate <= 0 or start > size or (size - start) % (4 * channels):
                    return None
                num_frames = (size - start) // (4 * channels)
                check_bound(num_frames, rate, channels, max_seconds)
                _check(num_frames, rate, log.seconds(index))
                decoded.append(Decoded(file, start, rate, channels, num_frames))
        except DecodeError:
            return None
        stack.pop_all()
        return decoded


def _au_header(head: bytes) -> tuple[int, int, int] | None:
    """(offset of the samples, sample rate, channels); None if it is none."""
    return struct.unpack(">4xI8x2I", head) if len(head) == 24 and head.startswith(b".snd") else None


def _samples(data: bytes, channels: int) -> np.ndarray:
    return np.frombuffer(data, dtype=">f4").astype(np.float32).reshape(-1, channels)


def _check(num_frames: int, rate: int, declared: float | None) -> None:
    if declared is not None and num_frames < declared * rate:
        check_length(num_frames, declared * rate, rate, LENGTH_TOLERANCE_SAMPLES)
    if num_frames < MIN_SAMPLES:
        raise DecodeError("too short", "no or one sample")
