"""RAVE's measurement, shrunken; beside acids-rave where $SOUNDMILL_RAVE_PEER names the Python of an environment that has it."""

import os

import pytest

from tests.bench.test_measurements import bench

SMALL = [
    "rave.autoencoder.network.channels=4",
    "rave.autoencoder.network.latent_channels=8",
    "rave.autoencoder.weights.num_samples=16384",
]
SIZES = ["--repetitions", "1", "--seconds", "1", "--sound", "1", "--steps", "1"]


@pytest.mark.slow(minutes=1)
def test_measurement(root, tmp_path):
    document = bench(root, tmp_path, "rave", *SIZES, *SMALL)
    assert set(document["seconds"]) == {"soundmill, codec", "soundmill, training step"}
    assert document["live"]["causal"]["latency"] == 368
    for told in document["live"].values():
        assert told["blocks"] == 23
        assert (told["drawn_latents"], told["noise"]) == (7, True)  # as what ships
        assert 0 < told["median_ms"] <= told["p99_ms"] <= told["worst_ms"]
        assert 0 < told["cpu_p99_ms"]
    assert len(document["targets"]) == 2


@pytest.mark.slow(minutes=2)
def test_beside_acids_rave(root, tmp_path):
    peer = os.environ.get("SOUNDMILL_RAVE_PEER")
    if not peer:
        pytest.skip("$SOUNDMILL_RAVE_PEER names no Python with acids-rave (bench/rave.py says how it is made)")
    document = bench(root, tmp_path, "rave", *SIZES, "--peer", peer)
    names = {f"{side}, {what}" for side in ("soundmill", "acids-rave") for what in ("codec", "training step")}
    assert set(document["seconds"]) == names
    assert len(document["targets"]) == 4
