"""A catalog of clips for tests of sets and scores."""

from soundmill.evaluation.sets import CatalogClip

LABELS = ("bark", "rain", "bell")


def catalog(train: int, valid: int, test: int) -> list[CatalogClip]:
    """So many clips of each split, two of each recording, in 3 classes."""
    splits = ["train"] * train + ["valid"] * valid + ["test"] * test
    clips = []
    for index, split in enumerate(splits):
        label = LABELS[(index // 2) % 3]
        clips.append(CatalogClip(f"clip{index:03d}", f"recording{index // 2}", 0, split, (label,), (f"a {label}",)))
    return clips
