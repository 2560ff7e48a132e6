"""The whole graph, made once by `dvc repro`: the real configuration over the embedded corpus, shrunk to what a test needs."""

import fcntl
import os
import subprocess
from pathlib import Path

from soundmill import params
from tests.checkouts import copy_project, repro

SHRUNK = [
    *"model=[ddpm_mel,tango] corpus.recordings=16 corpus.test_fraction=0.25 corpus.shards=3 execution.workers=1".split(),
    *"tagger.epochs=2 evaluate.bootstrap=5 evaluate.examples=2".split(),
    *"ddpm_mel.train.steps=24 ddpm_mel.train.log_every_steps=1 ddpm_mel.train.checkpoint_seconds=0".split(),
    *"ddpm_mel.train.validate_every_steps=10 ddpm_mel.train.batch_size=4 ddpm_mel.train.network.widths=[16,16,32]".split(),
    *"ddpm_mel.train.hardware.threads=1 ddpm_mel.train.sampling.num_steps=2".split(),
    "ddpm_mel.train.sampling.griffin_lim_iterations=2",
    *"ddpm_mel.generate.count=6 ddpm_mel.generate.batch_size=4 ddpm_mel.generate.codec_count=4".split(),
    "vocoder=hifigan_laptop",
    "vocoder_families=${latent_families}",  # its rates are those of TANGO's hop
    *"vocoder.network.channels=16 vocoder.weights.steps=2 vocoder.hardware.threads=1".split(),
    *"tango.autoencoder.network.widths=[8,16,16] tango.autoencoder.weights.steps=2".split(),
    *"tango.autoencoder.hardware.threads=1 tango.train.network.widths=[16,16,32] tango.train.steps=2".split(),
    *"tango.train.accumulate=2 tango.train.real_items=1 tango.train.hardware.threads=1 tango.train.grid.columns=1".split(),
    *"tango.train.sampling.num_steps=2 tango.train.sampling.griffin_lim_iterations=2".split(),
    *"tango.generate.count=4 tango.generate.codec_count=2".split(),
]


def built(root: Path, directory: Path) -> Path:
    """The checkout with all outputs, at `directory`; made by the first process that asks, while the others wait."""
    directory.mkdir(exist_ok=True)
    checkout, done = directory / "a checkout", directory / "done"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            assert not checkout.exists(), "the graph could not be built; another test tells why"
            copy_project(root, checkout)
            params.write_yaml(params.compose(checkout / "conf", SHRUNK), checkout / "params.yaml")
            repro(checkout)
            done.touch()
    return checkout


def copy(checkout: Path, target: Path) -> Path:
    """The same project elsewhere, its outputs linked to its cache as DVC linked them."""
    done = subprocess.run(["cp", "--archive", checkout, target], env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True)
    said = done.stderr.splitlines()
    assert all("No such file" in line for line in said), said  # what other tests' processes removed meanwhile, such as locks
    return target
