"""Arrow schemas of all tables on disk, and the AudioCaps/TANGO JSON lines that other tools read."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa

from soundmill.errors import UserError

# Hugging Face's `Audio` feature: `datasets.load_dataset("parquet")` plays a column of this type.
AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

SPLITS = ("train", "valid", "test")
# As folders, files and columns call them: `test`, `testset`, `testdata`.
SPLIT_NAMES = {
    word + end: split
    for split, words in {
        "train": "train training trainval devtrain",
        "valid": "val valid validation validate validating dev",
        "test": "test testing eval evaluation evaluate devtest",
    }.items()
    for word in words.split()
    for end in ("", "set", "data")
}
# Words that are short, or have other meanings: only where all names beside each other have a word for a split.
_SPLITS_BESIDE_OTHERS = {
    **dict.fromkeys(("tr", "trn", "learn"), "train"),
    **dict.fromkeys(("cv", "va", "dt", "vld", "tune", "development"), "valid"),
    **dict.fromkeys(("te", "tt", "et", "tst", "holdout", "heldout"), "test"),
}
# Words, without digits (`mp` of `mp3`), in names of folders that say nothing of the recordings in them.
CONTAINERS = frozenset("audio wav wavs flac mp ogg clips sounds recordings samples files data part".split())
OVERLAP_SECONDS = 1e-3  # of stretches of a recording; shorter overlaps are rounding errors
TERMS = ("licence", "creator", "source_url", "ai_terms", "terms_found")  # columns of RECORDINGS
FILE_TAGS = ("title", "genre", "description")  # in the file itself
TRANSFERRED, INPUT = "transferred", "-input"  # in a codec's directory; suffix of the input of a sound there
BASE, OWN = "base", "own"  # in a codec's directory: sounds of the model that a fine-tuned one started from; for its own prompts
OWN_PROMPTS = "prompts.json"  # in OWN: the prompts used when the base's checkpoint names none
ABOUT_SOUNDS = "about.json"  # next to generated sounds: family, whether they are reconstructions, embedders of its training losses


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(columns)


# One row per usable recording. `path` is for display (escaped), `raw_path` opens the file; both are relative to the corpus.
RECORDINGS = _schema(
    recording_id=pa.string(),  # YouTube id if there is a unique one, otherwise a hash of the relative path
    path=pa.string(),
    raw_path=pa.binary(),
    size=pa.int64(),
    digest=pa.string(),  # hashing.file_digest of the file
    shard=pa.int32(),
    start_time=pa.float64(),  # seconds into the YouTube video, otherwise 0
    labels=pa.list_(pa.string()),  # of the whole recording
    fold=pa.int32(),  # null if the corpus has none
    split=pa.string(),  # null if the corpus defines none
    group=pa.string(),  # source (video, Freesound original), whose recordings share a split; null: a source of its own
    corpus=pa.string(),  # name of its part in a union, otherwise the corpus format
    weight=pa.float64(),  # mean number of draws of each of its clips per training epoch
    # Terms; null: nothing is stated.
    licence=pa.string(),  # SPDX id, or as it was found; `unknown`: one is stated, but unclear
    creator=pa.string(),
    source_url=pa.string(),
    ai_terms=pa.string(),  # use for generative AI: allowed | with_disclosure | refused
    terms_found=pa.string(),  # the places that state them, and what each says if they contradict each other
    file_tags=pa.struct([(name, pa.string()) for name in FILE_TAGS]),  # null: none
).with_metadata({"optional": " ".join((*TERMS, "file_tags"))})  # older tables lack these; see shards.OPTIONAL

# One row per caption. `start_time` null: the caption describes the whole recording.
CAPTIONS = _schema(
    recording_id=pa.string(),
    start_time=pa.float64(),
    caption=pa.string(),
    labels=pa.list_(pa.string()),  # of this window; empty: the labels of the recording
    origin=pa.string(),  # file and line or key that it was read from, for reports
)

# One row per cut, in samples at the rate of the clips: `num_samples` of the recording, then `pad_samples` of silence.
SEGMENTS = _schema(
    clip_id=pa.string(),
    recording_id=pa.string(),
    source=pa.string(),
    raw_path=pa.binary(),
    digest=pa.string(),
    shard=pa.int32(),
    start=pa.float64(),  # seconds into the recording
    start_sample=pa.int64(),
    num_samples=pa.int64(),
    pad_samples=pa.int64(),
    recording_samples=pa.int64(),  # of the whole recording; the decoder must return as many
)

# One row per loop: whole bars of a recording, time-stretched, and how their tempo was found. These shards are a corpus.
LOOPS = _schema(
    recording_id=pa.string(),
    audio=AUDIO,
    path=pa.string(),
    bpm=pa.float64(),  # of the recording
    found_by=pa.string(),  # name | length | onsets
    named_bpm=pa.float64(),  # according to its name, right or wrong; null: none
    start=pa.float64(),  # of the first bar, in seconds into the recording
    bars=pa.int64(),
    stretch=pa.float64(),  # new length / original length
    confidence=pa.float64(),  # strength of the pulse at this tempo; 1 if all beats sound the same
    digest=pa.string(),
)

# Measured while a clip is decoded (soundmill/audio/quality.py).
QUALITY = pa.struct(
    [
        ("seconds", pa.float64()),  # of the recording, without padding
        ("peak", pa.float64()),  # of full scale; above 1 where the clip exceeded it
        ("level_db", pa.float64()),  # A-weighted pressure level, highest window; null for digital silence
        ("silence_ratio", pa.float64()),  # fraction of windows below the silence threshold
        ("clipping_ratio", pa.float64()),  # fraction of samples in runs at the recording's maximum
        ("dc_offset", pa.float64()),  # mean of full scale
        ("bandwidth_hz", pa.float64()),  # upper end of the spectrum
        ("channel_correlation", pa.float64()),  # lowest correlation of a channel of the recording with the first; null for mono
    ]
)

CLIPS = _schema(
    clip_id=pa.string(),
    audio=AUDIO,
    source=pa.string(),
    start=pa.float64(),
    digest=pa.string(),  # of file, cut and samples
    recording_id=pa.string(),
    num_samples=pa.int64(),
    quality=QUALITY,
)

SOUND = pa.schema([CLIPS.field(name) for name in ("clip_id", "audio", "digest")])  # what clips and mixes have in common

# One row per clip: the result of the quality rules.
VERDICTS = _schema(
    clip_id=pa.string(),
    source=pa.string(),
    start=pa.float64(),
    quality=QUALITY,
    rejected=pa.string(),  # the rule that it breaks; null: kept
    detail=pa.string(),  # measured value and limit
)

# One row per clip: how well its captions, and the words that suit it best, fit its sound; cosines from −1 to 1.
ZERO_SHOT = _schema(
    clip_id=pa.string(),
    shard=pa.int32(),  # of its recording
    captions=pa.list_(pa.struct([("caption", pa.string()), ("score", pa.float64())])),
    tags=pa.list_(pa.struct([("tag", pa.string()), ("score", pa.float64())])),  # best first
)

# One row per clip; `fingerprint` is little-endian uint32 [frames, 2] (soundmill/audio/fingerprint.py).
FINGERPRINTS = _schema(
    clip_id=pa.string(),
    recording_id=pa.string(),
    start=pa.float64(),
    seconds=pa.float64(),
    digest=pa.string(),
    fingerprint=pa.binary(),
    keys=pa.binary(),  # index keys, and (`probes`) the keys of its look-ups: pairs of uint32, key and frame
    probes=pa.binary(),
)

# Pairs of clips of the variant `default` with the same sound, or from the same second of a video.
DUPLICATES = _schema(
    a=pa.string(),  # clip ids, a < b
    b=pa.string(),
    score=pa.float64(),  # fraction of the shorter clip's fingerprint found in the other; 1 for `video`
    kind=pa.string(),  # sound | video
)

# One row per clip in use. Everything after `catalog` joins on `clip_id`.
CATALOG = _schema(
    clip_id=pa.string(),
    recording_id=pa.string(),
    source=pa.string(),
    start=pa.float64(),
    seconds=pa.float64(),  # of the recording, without padding
    digest=pa.string(),  # as in CLIPS
    shard=pa.int32(),
    split=pa.string(),
    captions=pa.list_(pa.string()),
    labels=pa.list_(pa.string()),
    corpus=pa.string(),
    weight=pa.float64(),
    group=pa.string(),  # as in RECORDINGS
)

# Of the variant `mixed`: clips, and mixes of two of them.
MIXED = "mixed"
MIXED_CATALOG = CATALOG.append(pa.field(MIXED, pa.list_(pa.string()))).with_metadata({"optional": MIXED})  # ids; null: a clip

# In the metadata of a CATALOG: a JSON list of the clips that only `catalog.only` leaves out.
LEFT_OUT = b"left_out"

# One row per recording that `corpus.terms` refuses; `splits` leaves it out of all variants, with the copies of its sound.
TERMS_REASON = "terms"  # in quarantine
REFUSED = pa.schema([("recording_id", pa.string()), ("path", pa.string()), ("detail", pa.string())])

# One row per recording: its split in all variants, and the stretches left out because another split has a copy of them.
RECORDING_SPLITS = _schema(
    recording_id=pa.string(),
    split=pa.string(),
    copies=pa.list_(pa.struct([("start", pa.float64()), ("end", pa.float64())])),  # seconds into the recording
)

MIXES = _schema(
    clip_id=pa.string(),
    audio=AUDIO,
    caption=pa.string(),
    labels=pa.list_(pa.string()),
    first=pa.string(),
    second=pa.string(),
    ratio=pa.float64(),  # p of Tokozume et al. 2018
    level_first=pa.float64(),  # A-weighted dB
    level_second=pa.float64(),
    digest=pa.string(),
    num_samples=pa.int64(),
)

# `log_mel` is float16 [n_mels, num_frames] row by row.
SPECTROGRAMS = _schema(
    clip_id=pa.string(),
    log_mel=pa.binary(),
    num_mels=pa.int32(),
    num_frames=pa.int32(),
    digest=pa.string(),
)

# One row per distinct caption, including "". `states` is float16 [num_tokens, width] row by row; the schema's metadata names the
# encoder (soundmill/text.py).
TEXT_STATES = _schema(
    digest=pa.string(),  # of encoder and caption
    caption=pa.string(),
    states=pa.binary(),
    num_tokens=pa.int32(),
    width=pa.int32(),
)

# Latents of clips and mixes. `posterior` is float16 [2, channels, frames, bands] row by row: mean and ln(variance). The schema's
# metadata names the autoencoder (soundmill/models/components/latents/store.py).
LATENTS = _schema(
    clip_id=pa.string(),
    split=pa.string(),
    captions=pa.list_(pa.string()),
    first=pa.string(),  # of a mix, as in MIXES; null: a clip
    second=pa.string(),
    posterior=pa.binary(),
    channels=pa.int32(),
    frames=pa.int32(),
    bands=pa.int32(),
    digest=pa.string(),
)

# One row per clip that weights were trained on, alone or in a mix. It is in the directory of the checkpoint, autoencoder, vocoder
# or tagger, so that a copy has it, and it stays valid when `data/` changes.
TRAINED_ON = _schema(
    clip_id=pa.string(),
    recording_id=pa.string(),  # this and the following as in CATALOG; null if the catalog lacks the clip
    source=pa.string(),
    start=pa.float64(),
    seconds=pa.float64(),
    digest=pa.string(),
    mix=pa.string(),  # the mix that contains it; null: alone
    earlier=pa.bool_(),  # in an earlier training, from which this one started
)
TRAINED_ON_FILE = "trained_on.parquet"
ATTRIBUTION = "ATTRIBUTION.csv"  # above a published or registered checkpoint; see soundmill/attribution.py
EARLIER_ATTRIBUTION = "earlier_attribution.csv"  # beside TRAINED_ON_FILE: that of the checkpoint that the training started from

QUARANTINE = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def judged_split(splits: Iterable[str]) -> str:
    """The split that sounds are made for and compared with: test; if it has fewer than the two that scores need, valid or train."""
    counts = Counter(splits)
    return max(("test", "valid", "train"), key=lambda split: min(counts[split], 2))


def path_text(raw: bytes) -> str:
    """A relative path as text, in UTF-8 whatever the locale is; undecodable bytes become surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def escape_path(raw: bytes) -> str:
    """A relative path as displayable text: UTF-8, undecodable bytes and control characters as `\\xNN`, `\\` doubled."""

    def escaped(match: re.Match[str]) -> str:
        char = match[0].encode("utf-8", "surrogateescape")
        return "\\\\" if char == b"\\" else "".join(f"\\x{byte:02x}" for byte in char)

    return re.sub(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]", escaped, path_text(raw))


def unescape_path(path: str) -> bytes:
    """The inverse of `escape_path`."""
    return re.sub(rb"\\(?:\\|x([0-9a-f]{2}))", lambda match: bytes.fromhex((match[1] or b"5c").decode()), path.encode())


CLIP_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


def attribution_of(weights: Path) -> Path | None:
    """The ATTRIBUTION that was published or registered with weights, or with the checkpoint that contains them, if any."""
    above = list(weights.resolve().parents)[:2]
    return next((path for parent in above if (path := parent / ATTRIBUTION).is_file()), None)


def check_clip_id(clip_id: str) -> str:
    """Return the id if it is a safe file name, otherwise raise UserError: ids of foreign manifests must not leave a directory."""
    if not CLIP_ID.fullmatch(clip_id):
        raise UserError(
            f"clip id {clip_id!r} is not a safe file name: use letters, digits, `_`, `-`, `.`, at most 128, no leading `.`"
        )
    return clip_id


def clip_name(stem: str, start_time: float) -> str:
    """AudioCaps name of the clip of `stem` at `start_time` seconds: `{stem}_{seconds}`, with milliseconds only if not zero."""
    milliseconds = round(start_time * 1000)
    whole, rest = divmod(milliseconds, 1000)
    return f"{stem}_{whole}" if rest == 0 else f"{stem}_{whole}.{rest:03d}".rstrip("0")


VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")  # of YouTube
_VIDEO_AND_START = re.compile(rf"({VIDEO_ID.pattern})(?:_\d+(?:\.\d+)?)?")


def naming_stem(recording_id: str) -> str:
    """The stem of its clips' names: the YouTube id if the recording id has one (`{ytid}`, `{ytid}_{start}`), otherwise the id."""
    match = _VIDEO_AND_START.fullmatch(recording_id)
    return match[1] if match else recording_id


def split_stem(clip_id: str) -> str:
    """The stem of a clip's file in the folder of its split, as other lists of AudioCaps have it: `Y{ytid}`; without one, the id."""
    stem = naming_stem(clip_id)
    return f"Y{stem}" if VIDEO_ID.fullmatch(stem) else clip_id


def youtube_videos(recordings: Iterable[Mapping[str, Any]]) -> set[str]:
    """The groups of rows (`recording_id`, `group`) that have the form of a YouTube id, and a recording named after them."""
    groups = {row["group"] for row in recordings if row["group"] and naming_stem(row["recording_id"]) == row["group"]}
    return {group for group in groups if VIDEO_ID.fullmatch(group)}


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """JSON lines, compressed if the name ends in `.gz`; the same rows give the same bytes. Returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("wb") as raw:
        with gzip.GzipFile("", "wb", mtime=0, fileobj=raw) if path.suffix == ".gz" else nullcontext(raw) as target:
            for row in rows:
                target.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                count += 1
    return count


def words_of_name(name: bytes) -> set[str]:
    """The words in a name, in lower case; `IRMAS-TestingData` has three."""
    return {word.lower() for word in re.findall(r"[A-Z]*[^\W\d_A-Z]+|[A-Z]+", name.decode("utf-8", "replace"))}


def splits_of_names(names: Iterable[bytes]) -> dict[bytes, str]:
    """The splits of names beside each other (`clean_trainset`, `tt05`): all have words of exactly one, and they have several; else
    none. Where others are for validation, and none for training, `dev` is for that."""
    splits, of_development = dict[bytes, str](), set[bytes]()
    for name in set(names):
        words = words_of_name(name) | words_of_name(name.lower())  # `AudioSet` is one word here
        told = [{meanings[word] for word in words & meanings.keys()} for meanings in (SPLIT_NAMES, _SPLITS_BESIDE_OTHERS)]
        if len(found := told[0] or told[1]) != 1:
            return {}
        splits[name] = found.pop()
        if splits[name] == "valid" and any(word.startswith("dev") for word in words):
            of_development.add(name)
    if "train" not in splits.values() and of_development < {name for name, split in splits.items() if split == "valid"}:
        splits |= dict.fromkeys(of_development, "train")
    return splits if len(set(splits.values())) > 1 else {}


def is_container(folder: bytes) -> bool:
    """Whether a folder's name says only that recordings are in it: `wavs`, `AudioWAV`, `wav48`."""
    return bool(words := words_of_name(folder)) and words <= CONTAINERS
