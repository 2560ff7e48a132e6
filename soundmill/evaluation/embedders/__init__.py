"""The embedders by name, loaded where they are used."""

from __future__ import annotations

from pathlib import Path

from soundmill import hub, shards
from soundmill.errors import UserError
from soundmill.evaluation import weights
from soundmill.evaluation.embedders.base import Embedder
from soundmill.params import did_you_mean

NAMES = ("tagger", "yamnet", "clap")

# What metrics say where weights are missing: no path of the machine stands in them.
MISSING = {
    **{name: f"{entry.file} is not in the directory ${weights.VARIABLE}" for name, entry in weights.REGISTRY.items()},
    "clap": "laion/clap-htsat-unfused is neither below the directory $SOUNDMILL_WEIGHTS nor to be had from the Hugging Face hub",
}


def load(name: str, tagger: Path) -> Embedder:
    """The embedder of that name; `tagger` is the directory of the pipeline's own. Missing weights raise UserError."""
    if name == "tagger":
        from soundmill.evaluation.embedders.tagger import TaggerEmbedder

        return TaggerEmbedder(tagger)
    if name == "yamnet":
        from soundmill.evaluation.embedders import yamnet

        return yamnet.YamnetEmbedder(weights.path(name))
    if name == "clap":
        from soundmill.evaluation.embedders import clap

        return clap.ClapEmbedder(clap.weights())
    raise UserError(f"unknown embedder {name!r}{did_you_mean(name, list(NAMES))}; there are {', '.join(NAMES)}")


def digest(name: str, tagger: Path | None) -> str:
    """Digest of the embedder's weights, as `load(…).digest` tells it, without loading them: embeddings are kept under it."""
    if name in weights.REGISTRY:
        return weights.REGISTRY[name].sha256
    if name == "clap":
        from soundmill.evaluation.embedders import clap

        return hub.digest(clap.weights(), clap.FILES)
    if name == "tagger":
        return shards.file_digest(tagger / "model.safetensors")
    raise UserError(f"unknown embedder {name!r}{did_you_mean(name, list(NAMES))}; there are {', '.join(NAMES)}")


def unavailable(name: str) -> str | None:
    """Why the embedder's weights cannot be used here and what to do about it, or None: they are there."""
    if name in weights.REGISTRY:
        return weights.unavailable(name)
    if name == "clap":
        from soundmill.evaluation.embedders import clap

        return clap.unavailable()
    return None
