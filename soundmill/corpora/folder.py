"""Any directory of recordings: first-level folders are classes, a `.txt` beside a recording is its caption."""

from __future__ import annotations

import re

from soundmill.corpora.inventory import MAX_TEXT_BYTES, AudioFile, Inventory
from soundmill.corpora.resolver import clip_of_file, looks_random
from soundmill.corpora.tables import SPLIT_NAMES, CorpusTables, Format
from soundmill.manifest import escape_path

FORMAT = Format(
    name="folder",
    layout="any tree of recordings",
    id="`{ytid}_{start}` names, else a hash of the relative path",
    caption="`x.txt` beside `x.wav`; else made from the label",
    label='first-level folders (`001 - Dog bark` → "dog bark")',
    split="folders named `train`, `valid`, `test` above the classes; else dealt out",
)
# A lone first-level folder of such a name holds the corpus; it is no class.
CONTAINERS = frozenset(
    {b"audio", b"wav", b"wavs", b"flac", b"mp3", b"ogg", b"clips", b"sounds", b"recordings", b"samples", b"data"}
)


def detect(inventory: Inventory) -> bool:
    return bool(inventory.audio)


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of a plain directory tree; `train/dog/x.wav` gives a split and a label, `dog/x.wav` a label, `x.wav` neither."""
    tables = CorpusTables()
    level, has_splits = _layout(inventory.audio)
    sidecars = {_without_extension(name): name for name in inventory.metadata if name.lower().endswith(b".txt")}
    for file in inventory.audio:
        folders = file.folders
        split = SPLIT_NAMES.get(folders[0].decode("utf-8", "replace").lower()) if has_splits else None
        label = class_label(folders[level]) if len(folders) > level else None
        clip = clip_of_file(file)
        video = clip if clip and clip[1] is not None and looks_random(clip[0]) else None
        recording_id = f"{video[0]}_{video[1]:g}" if video else None
        recording_id = tables.add_recording(
            file,
            num_shards,
            recording_id=recording_id,
            start_time=video[1] if video else 0.0,
            labels=[label] if label else [],
            split=split,
            group=video[0] if video else None,
        )
        if sidecar := sidecars.get(_without_extension(file.raw_path)):
            _read_sidecar(inventory, sidecar, recording_id, tables)
    return tables


def _layout(audio: list[AudioFile]) -> tuple[int, bool]:
    """Which level of folders tells the class, and whether the first one tells the split."""
    first = {file.folders[0] if file.folders else b"" for file in audio}
    if len(first) == 1 and next(iter(first)).lower() in CONTAINERS:
        return 1, False
    if first and all(name.decode("utf-8", "replace").lower() in SPLIT_NAMES for name in first):
        return 1, True
    return 0, False


def class_label(folder: bytes) -> str:
    """The class that a folder's name tells: `001 - Dog bark` and `dog_bark` are both "dog bark"."""
    name = escape_path(folder)
    words = re.sub(r"^\d+\s*[-_.)]+\s*|^\d+\s+", "", name).replace("_", " ").strip().lower()
    return " ".join(words.split()) or name


def _without_extension(raw_path: bytes) -> bytes:
    head, _, name = raw_path.rpartition(b"/")
    return head + b"/" + (name.rpartition(b".")[0] or name)


def _read_sidecar(inventory: Inventory, name: bytes, recording_id: str, tables: CorpusTables) -> None:
    """The whole text is one caption; what is no text is quarantined, for it fails one recording's caption and not the corpus."""
    try:
        with open(inventory.metadata[name], "rb") as file:
            raw = file.read(MAX_TEXT_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        tables.reject(name, "unreadable caption", str(error))
        return
    if len(raw) > MAX_TEXT_BYTES:
        tables.reject(name, "caption too long", f"over {MAX_TEXT_BYTES} bytes")
    elif not text.strip():
        tables.reject(name, "empty caption")
    else:
        tables.add_caption(recording_id, text, escape_path(name))
