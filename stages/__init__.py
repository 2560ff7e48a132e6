"""The stages of dvc.yaml, each a program: `python -m stages.NAME`."""

import os
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


def _start_server() -> None:
    """Where `python -m stages.NAME` imports this package, before NAME and what it needs, have the server import the same meanwhile.

    Where there are two cores, the workers are then ready when the stage is. Elsewhere the server starts with the first worker.
    """
    given = sys.orig_argv
    if sys.argv[0] != "-m" or "-m" not in given:  # Python's own sign that it still looks for the module to run
        return
    module, *arguments = given[given.index("-m") + 1 :]
    package, _, name = module.rpartition(".")
    wanted = not os.environ.get("DASK_SCHEDULER_ADDRESS") and not {"-h", "--help"} & set(arguments)
    if package == __name__ and name in WORKERS_IMPORT and wanted:
        forking.start_server([module, *WORKERS_IMPORT[name]])


_start_server()
