"""The format of a file and whether it is complete, from its bytes, before any decoder reads it.

Decoders silently resynchronise, fill gaps and end early (a cut mp3 or ogg decodes with exit code 0), and some "audio" is a text
list that makes ffmpeg read other files. So the type is sniffed here, text is rejected, and containers whose decoders hide damage
are walked: declared sizes against the file size, checksums of Ogg pages, frames of MPEG audio.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO

from soundmill.decoding.containers import chunks, films, frames, ogg, tags
from soundmill.decoding.containers.layout import Layout, Part, padding_start, refuse_zeros
from soundmill.decoding.containers.sniffing import Kind

# Formats whose zeros at the end may be sound. If they declare the end of the sound, it is checked.
_MAY_END_IN_SILENCE = frozenset("wav w64 aiff au caf ircam nist iff sox voc mp4 unknown".split())


def inspect(kind: Kind, file: BinaryIO, size: int, max_seconds: float, sums_checked: bool = False) -> Layout:
    """Walk the container; sizes beyond the end, bad checksums and cut frames raise DecodeError.

    `sums_checked`: the checksums of the same bytes were verified before.
    """
    if kind.name not in _MAY_END_IN_SILENCE:
        refuse_zeros(file, 0, size)
    if walk := _RAW_WALKS.get(kind.name):
        layout = walk(file, size, max_seconds)
        return replace(layout, pieces=()) if layout.pieces == ((0, size),) else layout
    start = tags.sound_start(file, size)
    # What looks like a tag may be sound, if the container declares the end of the sound.
    end = size if kind.name in _MAY_END_IN_SILENCE and kind.name != "mp4" else tags.sound_end(file, start, size)
    part = Part(file, start, end)
    if kind.name in ("ac3", "flac"):
        end = padding_start(file, start, end)
    if kind.name == "ogg":
        layout = ogg.walk_ogg(part, end - start, sums_checked)
    else:
        walk = _WALKS.get(kind.name)
        layout = walk(part, end - start, max_seconds) if walk else Layout(sndfile=kind.sndfile)
        # A container that does not know where its sound ends.
        if layout.streamed and walk and end == size and (end := tags.sound_end(file, start, size)) < size:
            layout = walk(Part(file, start, end), end - start, max_seconds)
    if layout.pieces:  # the walk found padding
        end = start + layout.pieces[0][1]
    return replace(layout, pieces=((start, end),) if (start, end) != (0, size) else ())


# Tags may be anywhere between their frames.
_RAW_WALKS: dict[str, Callable[[BinaryIO, int, float], Layout]] = {
    "mpeg-audio": frames.walk_mpeg_audio,
    "adts": frames.walk_adts,
    "wavpack": frames.walk_wavpack,
}


_WALKS: dict[str, Callable[[BinaryIO, int, float], Layout]] = {
    "wav": chunks.walk_wav,
    "w64": chunks.walk_wav,
    "aiff": chunks.walk_aiff,
    "au": chunks.walk_au,
    "caf": chunks.walk_caf,
    "flac": frames.walk_flac,
    "amr": frames.walk_amr,
    "mlp": frames.walk_mlp,
    "truehd": frames.walk_mlp,
    "mp4": films.walk_mp4,
    "matroska": films.walk_matroska,
    "avi": chunks.walk_avi,
    "flv": films.walk_flv,
    "asf": films.walk_asf,
}
