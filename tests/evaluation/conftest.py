import pytest

from soundmill import shards
from soundmill.evaluation import features


@pytest.fixture
def in_this_process(monkeypatch):
    """Nothing is started, as worker processes would not know of weights that are patched in, and take seconds to import torch."""

    def map_here(function, jobs, directory, **_):
        directory.mkdir(parents=True)
        total = shards.Report()
        for job in jobs:
            total.add(function(*job.args, directory / job.name))
        return total

    monkeypatch.setattr(shards, "map_shards", map_here)
    yield
    features._load.cache_clear()
