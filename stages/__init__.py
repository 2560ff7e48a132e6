"""The stages of dvc.yaml, each a program: `python -m stages.NAME`."""

import sys

from soundmill import forking, lifetime

# Stages that map over shards.
MAPPING = {"corpus", "duplicates", "encode_text", "latents", "mixup", "rename", "resample", "segment", "spectrogram"}


def _prepare() -> None:
    """Where `python -m stages.NAME` imports this package, before NAME and what it needs."""
    given = sys.orig_argv
    if sys.argv[0] == "-m" and "-m" in given:  # Python's own sign that it still looks for the module to run
        package, _, name = given[given.index("-m") + 1].rpartition(".")
        if package == __name__:
            lifetime.die_with_dvc()
            if name in MAPPING:
                forking.prepare()


_prepare()
