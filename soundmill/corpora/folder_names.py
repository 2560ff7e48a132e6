"""Names of folders and files that give a split, and of folders that say nothing."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# Names of folders that say nothing of the recordings in them; a single first-level one is not a class.
CONTAINERS = frozenset(
    {b"audio", b"wav", b"wavs", b"flac", b"mp3", b"ogg", b"clips", b"sounds", b"recordings", b"samples", b"data"}
)
