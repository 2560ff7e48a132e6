"""Parsing ffmpeg's log: errors, and what container headers declare."""

import re
import signal
from dataclasses import dataclass

from soundmill.decoding.containers.sniffing import Kind
from soundmill.decoding.limits import DecodeError
from soundmill.errors import UserError

_TRUNCATED = re.compile(r"packet corrupt|truncat|prematurely|moov atom not found|incomplete frame|partial file|end of file", re.I)
_DAMAGE = re.compile(r"corrupt|truncat|prematurely|size mismatch|check failed", re.I)  # in warnings
_SHORT_PACKET = re.compile(r"packet corrupt|corrupt input packet", re.I)
_OUTPUT = re.compile(r"  Stream #\d+:\d+: Audio: pcm_f32be .* kb/s(?: \([^()]*\))*")


@dataclass
class _Declared:
    """Declarations of one input's header."""

    streams: int = 0
    seconds: float | None = None
    estimated: bool = False


class Log:
    """The log of one process; `streamed`: for each input, whether it declares no length."""

    MAX_COMPLAINTS = 1000  # distinct complaints kept
    LONGEST = 1 << 16  # bytes of one line

    def __init__(self, streamed: list[bool]) -> None:
        self._streamed = streamed
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
            if len(self._printed) < self.MAX_COMPLAINTS:
                self._printed.append(float(text))
            return
        if level == "info":
            self._information(text)
            return
        if "Estimating duration" in text:
            self._estimated = True
        if level == "warning" and (not _DAMAGE.search(text) or (self._streamed == [True] and _SHORT_PACKET.search(text))):
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
            self._inputs[-1].streams += 1
        elif not self._in_input and text.startswith("  Stream #") and "->" not in text:
            self.whole = self.whole and _OUTPUT.fullmatch(text) is not None
        elif self._in_input and (lasts := re.match(r"  Duration: (\d+):(\d\d):(\d\d\.\d+), start: (-?[\d.]+)", text)):
            hours, minutes, seconds, start = (float(part) for part in lasts.groups())
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
        return f"the timestamps leave {lengths[0]:.3f} s out at {times[0]:.3f} s{more}" if times else ""

    def seconds(self, index: int) -> float | None:
        """Declared duration of an input, if its audio should have that duration."""
        if index >= len(self._inputs):
            return None
        declared = self._inputs[index]
        # A film may be longer than its audio, and estimates from the bit rate are unreliable.
        whole = declared.streams == 1 and not declared.estimated and not self._streamed[index]
        return declared.seconds if whole else None

    def error(self, kind: Kind) -> DecodeError | None:
        """The error that all complaints amount to, in any order; None if there are none."""
        if not self.complained:
            return None
        if self._status in (-signal.SIGKILL, -signal.SIGTERM):  # not by this process, which reports its own kills
            raise UserError(
                f"ffmpeg was killed (signal {-self._status}) while it decoded: out of memory? Run it again: finished work is kept"
            )
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
