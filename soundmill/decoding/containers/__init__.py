"""The format of a file and whether it is complete, from its bytes, before any decoder reads it.

Decoders silently resynchronise, fill gaps and end early (a cut mp3 or ogg decodes with exit code 0), and some "audio" is a text
list that makes ffmpeg read other files. So the type is sniffed here, text is rejected, and containers whose decoders hide damage
are walked: declared sizes against the file size, checksums of Ogg pages, frames of MPEG audio.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from soundmill.decoding.containers import chunks, films, frames, ogg
from soundmill.decoding.containers.layout import Layout, refuse_zeros
from soundmill.decoding.containers.sniffing import Kind

# Formats whose zeros at the end may be sound. If they declare the end of the sound, it is checked.
_MAY_END_IN_SILENCE = frozenset("wav w64 aiff au caf ircam nist iff sox voc mp4 unknown tagged".split())


def inspect(kind: Kind, file: BinaryIO, size: int, max_seconds: float, sums_checked: bool = False) -> Layout:
    """Walk the container; sizes beyond the end, bad checksums and cut frames raise DecodeError.

    `sums_checked`: the checksums of the same bytes were verified before.
    """
    if kind.name not in _MAY_END_IN_SILENCE:
        refuse_zeros(file, 0, size)
    if kind.name == "ogg":
        return ogg.walk_ogg(file, size, sums_checked)
    walk = _WALKS.get(kind.name)
    return walk(file, size, max_seconds) if walk else Layout(sndfile=kind.sndfile)


_WALKS: dict[str, Callable[[BinaryIO, int, float], Layout]] = {
    "wav": chunks.walk_wav,
    "w64": chunks.walk_w64,
    "aiff": chunks.walk_aiff,
    "au": chunks.walk_au,
    "caf": chunks.walk_caf,
    "flac": frames.walk_flac,
    "mpeg-audio": frames.walk_mpeg_audio,
    "adts": frames.walk_adts,
    "amr": frames.walk_amr,
    "mlp": frames.walk_mlp,
    "truehd": frames.walk_mlp,
    "mp4": films.walk_mp4,
    "matroska": films.walk_matroska,
    "avi": chunks.walk_avi,
    "flv": films.walk_flv,
    "asf": films.walk_asf,
}
