"""Where a sound comes from, and what came of it: recording → clips → mixes → shards → trainings → checkpoints → sounds and scores.

All of it is read: from tables below `data/`, from what lies in checkpoints (`trained_on.parquet`, `config.json`), and from MLflow.
What is missing is reported, not guessed. Cuts of several variants overlap: a stretch of a recording may be in all of them.
"""

from soundmill.lineage.project import TEXTS, Held, Piece, Project, Weights, named, overlap, overlapping, piece_of
from soundmill.lineage.tree import Lineage, Node, sound_facts, trace

__all__ = [
    "TEXTS",
    "Held",
    "Lineage",
    "Node",
    "Piece",
    "Project",
    "Weights",
    "named",
    "overlap",
    "overlapping",
    "piece_of",
    "sound_facts",
    "trace",
]
