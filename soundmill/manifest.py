"""Arrow schemas of every table on disk, and the AudioCaps/TANGO JSON lines that other tools read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from soundmill.errors import UserError

# Hugging Face's `Audio` feature: `datasets.load_dataset("parquet")` plays a column of this type.
AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

SPLITS = ("train", "valid", "test")
# beside the sounds of a family: which made them, whether they are its reconstructions, and the embedders it was trained against
TRANSFERRED, INPUT = "transferred", "-input"  # in a codec's directory; of a sound there, what it was made of
ABOUT_SOUNDS = "about.json"

# One row per usable recording. `path` is for people (escaped), `raw_path` opens the file; both relative to the corpus.
RECORDINGS = pa.schema(
    [
        ("recording_id", pa.string()),  # YouTube id where there is one and it is unique, else a hash of the relative path
        ("path", pa.string()),
        ("raw_path", pa.binary()),
        ("size", pa.int64()),
        ("digest", pa.string()),  # hashing.file_digest of the file
        ("shard", pa.int32()),
        ("start_time", pa.float64()),  # seconds into the YouTube video; 0 elsewhere
        ("labels", pa.list_(pa.string())),  # hold for the whole recording
        ("fold", pa.int32()),  # null where the corpus has none
        ("split", pa.string()),  # null where the corpus gives none
        ("group", pa.string()),  # recordings of one source (one video, one Freesound original) never part; null: its own
        ("corpus", pa.string()),  # name of its part in a union, else of the corpus's format
        ("weight", pa.float64()),  # how often a clip of it is drawn in one epoch of training, on average
    ]
)

# One row per caption. `start_time` null: the caption holds for the whole recording.
CAPTIONS = pa.schema(
    [
        ("recording_id", pa.string()),
        ("start_time", pa.float64()),
        ("caption", pa.string()),
        ("labels", pa.list_(pa.string())),  # of this window; empty: the recording's hold
        ("origin", pa.string()),  # file and line or key it was read from, for reports
    ]
)

# One row per cut, in samples of the rate of its clips. `num_samples` are of the recording; `pad_samples` of silence follow.
SEGMENTS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("recording_id", pa.string()),
        ("source", pa.string()),
        ("raw_path", pa.binary()),
        ("digest", pa.string()),
        ("shard", pa.int32()),
        ("start", pa.float64()),  # seconds into the recording
        ("start_sample", pa.int64()),
        ("num_samples", pa.int64()),
        ("pad_samples", pa.int64()),
        ("recording_samples", pa.int64()),  # of the whole recording, as planned: the decoder is held to it
    ]
)

# One row per loop: whole bars of a recording, stretched, and how their tempo was found. These shards are a corpus of their own.
LOOPS = pa.schema(
    [
        ("recording_id", pa.string()),
        ("audio", AUDIO),
        ("path", pa.string()),
        ("bpm", pa.float64()),  # of the recording
        ("found_by", pa.string()),  # name | length | onsets
        ("named_bpm", pa.float64()),  # what its name says, be it wrong; null: nothing
        ("start", pa.float64()),  # of the first bar, in seconds of the recording
        ("bars", pa.int64()),
        ("stretch", pa.float64()),  # how many times as long as it was
        ("confidence", pa.float64()),  # strength of the pulse at this tempo, 1 where every beat sounds like the one before
        ("digest", pa.string()),
    ]
)

# What is measured of a clip in the pass that decodes it (soundmill/audio/quality.py).
QUALITY = pa.struct(
    [
        ("seconds", pa.float64()),  # of the recording, without padding
        ("peak", pa.float64()),  # of full scale; above 1 where the recording had to be attenuated
        ("level_db", pa.float64()),  # A-weighted pressure level, highest window; null for digital silence
        ("silence_ratio", pa.float64()),  # share of windows below the threshold of silence
        ("clipping_ratio", pa.float64()),  # share of samples in runs at the recording's ceiling
        ("dc_offset", pa.float64()),  # mean of full scale
        ("bandwidth_hz", pa.float64()),  # where the spectrum ends
        ("channel_correlation", pa.float64()),  # lowest over the recording's channels against the first; null for mono
    ]
)

CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("audio", AUDIO),
        ("source", pa.string()),
        ("start", pa.float64()),
        ("digest", pa.string()),  # of the file, the cut and the samples
        ("recording_id", pa.string()),
        ("num_samples", pa.int64()),
        ("quality", QUALITY),
    ]
)

# One row per clip: what the rules say of it.
VERDICTS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source", pa.string()),
        ("start", pa.float64()),
        ("quality", QUALITY),
        ("rejected", pa.string()),  # the rule it breaks; null: it is kept
        ("detail", pa.string()),  # measured value and limit
    ]
)

# What a clip is recognised by; `fingerprint` is little-endian uint32 [frames, 2] (soundmill/audio/fingerprint.py).
FINGERPRINTS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("recording_id", pa.string()),
        ("start", pa.float64()),
        ("seconds", pa.float64()),
        ("digest", pa.string()),
        ("fingerprint", pa.binary()),
        ("keys", pa.binary()),  # by which others find it, and those it is looked up by: pairs of uint32, the key and its frame
        ("probes", pa.binary()),
    ]
)

# Pairs of clips of the variant `default` that are the same sound, or cut from one video.
DUPLICATES = pa.schema(
    [
        ("a", pa.string()),  # clip ids, a < b
        ("b", pa.string()),
        ("score", pa.float64()),  # share of the shorter clip's fingerprint that is in the other, 1 for the same video second
        ("kind", pa.string()),  # sound | video
    ]
)

# One row per clip: what it is called, says and belongs to. Everything after `catalog` joins on `clip_id`.
CATALOG = pa.schema(
    [
        ("clip_id", pa.string()),
        ("recording_id", pa.string()),
        ("source", pa.string()),
        ("start", pa.float64()),
        ("seconds", pa.float64()),  # of the recording, without padding
        ("digest", pa.string()),  # as in CLIPS
        ("shard", pa.int32()),
        ("split", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("labels", pa.list_(pa.string())),
        ("corpus", pa.string()),
        ("weight", pa.float64()),
        ("group", pa.string()),  # of recordings that never part: a YouTube video, a Freesound original; null: the recording alone
    ]
)

# In the metadata of a CATALOG: a JSON list of the clips that are left out for their labels (`catalog.only`) alone.
LEFT_OUT = b"left_out"

# One row per recording: its split in every variant of clips, and what of it is left out as a copy of what another split has.
RECORDING_SPLITS = pa.schema(
    [
        ("recording_id", pa.string()),
        ("split", pa.string()),
        ("copies", pa.list_(pa.struct([("start", pa.float64()), ("end", pa.float64())]))),  # seconds into the recording
    ]
)

MIXES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("audio", AUDIO),
        ("caption", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("first", pa.string()),
        ("second", pa.string()),
        ("ratio", pa.float64()),  # p of Tokozume et al. 2018
        ("level_first", pa.float64()),  # A-weighted dB
        ("level_second", pa.float64()),
        ("digest", pa.string()),
        ("num_samples", pa.int64()),
    ]
)

# `log_mel` is float16 [n_mels, num_frames] row by row.
SPECTROGRAMS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("log_mel", pa.binary()),
        ("num_mels", pa.int32()),
        ("num_frames", pa.int32()),
        ("digest", pa.string()),
    ]
)

# One row per distinct caption, "" among them. `states` is float16 [num_tokens, width] row by row; which encoder's they are is in
# the schema's metadata (soundmill/text.py).
TEXT_STATES = pa.schema(
    [
        ("digest", pa.string()),  # of encoder and caption
        ("caption", pa.string()),
        ("states", pa.binary()),
        ("num_tokens", pa.int32()),
        ("width", pa.int32()),
    ]
)

# What a family's autoencoder makes of clips and mixes. `posterior` is float16 [2, channels, frames, bands] row by row: mean and
# ln(variance) of the latent. Whose they are is in the schema's metadata (soundmill/models/components/mel_autoencoder/latents.py).
LATENTS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("first", pa.string()),  # of a mix, as in MIXES; null: a clip
        ("second", pa.string()),
        ("posterior", pa.binary()),
        ("channels", pa.int32()),
        ("frames", pa.int32()),
        ("bands", pa.int32()),
        ("digest", pa.string()),
    ]
)

# In the directory of a checkpoint, autoencoder, vocoder or tagger: one row per clip that its weights were trained on, alone or in a
# mix. So it is known wherever the directory is copied to, and when `data/` is another by then.
TRAINED_ON = pa.schema(
    [
        ("clip_id", pa.string()),
        ("recording_id", pa.string()),  # this and the following as in CATALOG; null where the catalog did not have the clip
        ("source", pa.string()),
        ("start", pa.float64()),
        ("seconds", pa.float64()),
        ("digest", pa.string()),
        ("mix", pa.string()),  # the mix that it was heard in; null: alone
        ("earlier", pa.bool_()),  # in a training that this one started from
    ]
)
TRAINED_ON_FILE = "trained_on.parquet"

QUARANTINE = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def escape_path(raw: bytes) -> str:
    """A relative path for people and tables: UTF-8, with undecodable bytes and control characters as `\\xNN`, `\\` doubled."""
    text = raw.decode("utf-8", "surrogateescape")
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    out = []
    for char in text:
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif char == "\\":
            out.append("\\\\")
        elif code < 0x20 or 0x7F <= code < 0xA0 or char in "\u2028\u2029":
            out.append("".join(f"\\x{byte:02x}" for byte in char.encode("utf-8")))
        else:
            out.append(char)
    return "".join(out)


def unescape_path(path: str) -> bytes:
    """What `escape_path` was given."""
    parts = re.split(r"(\\\\|\\x[0-9a-f]{2})", path)
    return b"".join(
        b"\\" if part == "\\\\" else bytes.fromhex(part[2:]) if number % 2 else part.encode() for number, part in enumerate(parts)
    )


CLIP_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


def check_clip_id(clip_id: str) -> str:
    """Return the id if it can safely be a file name; ids come from manifests and must never climb out of a directory."""
    if not CLIP_ID.fullmatch(clip_id):
        raise UserError(f"clip id {clip_id!r} cannot be a file name: letters, digits, `_`, `-`, `.`, at most 128, no leading `.`")
    return clip_id


def clip_name(stem: str, start_time: float) -> str:
    """AudioCaps name of the clip of `stem` that starts at `start_time` seconds: `{stem}_{seconds}`, milliseconds if any."""
    milliseconds = round(start_time * 1000)
    whole, rest = divmod(milliseconds, 1000)
    return f"{stem}_{whole}" if rest == 0 else f"{stem}_{whole}.{rest:03d}".rstrip("0")


VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")  # of YouTube
_VIDEO_AND_START = re.compile(rf"({VIDEO_ID.pattern})(?:_\d+(?:\.\d+)?)?")


def naming_stem(recording_id: str) -> str:
    """What a recording's clips are named after: its YouTube id where it has one (`{ytid}`, `{ytid}_{start}`), else its id."""
    match = _VIDEO_AND_START.fullmatch(recording_id)
    return match[1] if match else recording_id


def youtube_videos(recordings: Iterable[Mapping[str, Any]]) -> set[str]:
    """The groups of these rows (`recording_id`, `group`) that are YouTube videos.

    A group may be anything that must not part. It is a video where it looks like one and a recording is called after it.
    """
    groups = {row["group"] for row in recordings if row["group"] and naming_stem(row["recording_id"]) == row["group"]}
    return {group for group in groups if VIDEO_ID.fullmatch(group)}


TANGO_KEYS = ("dataset", "location", "captions")


def write_tango_json(rows: Iterable[dict[str, str]], path: Path) -> int:
    """Write JSON lines as TANGO's loader reads them (`dataset`, `location`, `captions`); returns the number of rows."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            if tuple(row) != TANGO_KEYS or not all(isinstance(value, str) and value for value in row.values()):
                raise UserError(f"{path}: a row must be {TANGO_KEYS}, all non-empty text; got {row!r}")
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
