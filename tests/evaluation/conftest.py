import pytest

from soundmill import shards
from soundmill.evaluation import features


@pytest.fixture
def in_this_process(monkeypatch):
    """Nothing is started, as worker processes would not know of weights that are patched in, and take seconds to import torch."""

    monkeypatch.setattr(shards, "map_values", lambda function, jobs, **_: [function(*job.args) for job in jobs])
    yield
    features._load.cache_clear()
