"""The stages of dvc.yaml, each a program: `python -m stages.NAME`."""

import sys

from soundmill import forking

# Stages that map over shards, and what their workers need beside the stage's own module and what that imports at its top.
WORKERS_IMPORT = {
    "corpus": (),
    "encode_text": (),
    "latents": (),
    "mixup": (),
    "quality": (),
    "rename": ("soundfile",),
    "resample": (),
    "segment": (),
    "spectrogram": ("soundfile", "scipy.sparse"),
}


def _program() -> str:
    """NAME of `python -m stages.NAME`, where it is that which imports this package: before it, and what it needs, is imported."""
    given = sys.orig_argv
    return given[given.index("-m") + 1].rpartition(".")[2] if sys.argv[0] == "-m" and "-m" in given else ""


if (_name := _program()) in WORKERS_IMPORT:
    # Both import the same at the same time: where there are two cores, the workers are ready when the stage is.
    forking.start_server([f"{__name__}.{_name}", *WORKERS_IMPORT[_name]])
