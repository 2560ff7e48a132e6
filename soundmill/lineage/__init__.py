"""The lineage of a sound: recording → clips → mixes → shards → trainings → checkpoints → sounds and scores.

It is read from tables below `data/`, from files of checkpoints (`trained_on.parquet`, `config.json`), and from MLflow. Missing
provenance is reported, not guessed. Cuts of several variants overlap: one stretch of a recording may be in all of them.
"""

from soundmill.lineage.project import TEXTS, Held, Piece, Project, Weights, named, overlap, overlapping, piece_of
from soundmill.lineage.tree import Lineage, Node, sound_facts, trace
