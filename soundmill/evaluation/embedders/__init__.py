"""The embedders by name, loaded where they are used."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from soundmill import hashing, hub, pretrained
from soundmill.errors import UserError
from soundmill.evaluation.embedders.base import Embedder
from soundmill.params import did_you_mean

NAMES = ("tagger", "yamnet", "vggish", "panns_cnn14_16k", "panns_cnn14_32k", "clap")

# What metrics say where weights are missing: no path of the machine stands in them.
MISSING = {
    **{name: f"{entry.file} is not in the directory ${pretrained.VARIABLE}" for name, entry in pretrained.REGISTRY.items()},
    "clap": "laion/clap-htsat-unfused is neither below the directory $SOUNDMILL_WEIGHTS nor to be had from the Hugging Face hub",
}


def load(name: str, tagger: Path | None, **options: Any) -> Embedder:
    """The embedder of that name; `tagger` is the directory of the pipeline's own. Missing weights raise UserError.

    `options` are those of the protocol: only `vggish` has one, `front_end`.
    """
    if options and name != "vggish":
        raise UserError(f"{name}: has no option {', '.join(map(repr, options))}; only vggish has one, 'front_end'")
    if name == "tagger":
        from soundmill.evaluation.embedders.tagger import TaggerEmbedder

        return TaggerEmbedder(tagger)
    if name == "yamnet":
        from soundmill.evaluation.embedders import yamnet

        return yamnet.YamnetEmbedder(pretrained.path(name))
    if name == "vggish":
        from soundmill.evaluation.embedders import vggish

        return vggish.VggishEmbedder(pretrained.path(name), **options)
    if name in ("panns_cnn14_16k", "panns_cnn14_32k"):
        from soundmill.evaluation.embedders import panns

        return panns.Cnn14Embedder(name, pretrained.path(name))
    if name == "clap":
        from soundmill.evaluation.embedders import clap

        return clap.ClapEmbedder(clap.weights())
    raise UserError(f"unknown embedder {name!r}{did_you_mean(name, list(NAMES))}; there are {', '.join(NAMES)}")


def digest(name: str, tagger: Path | None) -> str:
    """Digest of the embedder's weights, which are not loaded: part of the cache's key."""
    if name in pretrained.REGISTRY:
        return pretrained.REGISTRY[name].sha256
    if name == "clap":
        from soundmill.evaluation.embedders import clap

        return _digest_of_files(clap.weights(), clap.FILES)
    if name == "tagger":
        return hashing.file_digest(tagger / "model.safetensors")
    raise UserError(f"unknown embedder {name!r}{did_you_mean(name, list(NAMES))}; there are {', '.join(NAMES)}")


@cache
def _digest_of_files(directory: Path, files: tuple[str, ...]) -> str:
    """Read once in a process: they are large."""
    return hub.digest(directory, files)


def unavailable(name: str) -> str | None:
    """Why the embedder's weights cannot be used here and what to do about it, or None: they are there."""
    if name in pretrained.REGISTRY:
        return pretrained.unavailable(name)
    if name == "clap":
        from soundmill.evaluation.embedders import clap

        return clap.unavailable()
    return None
