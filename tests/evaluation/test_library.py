"""Who embeds what in how many processes."""

from pathlib import Path

import pytest

from soundmill import shards
from soundmill.evaluation import embedders, features, protocols
from soundmill.evaluation.library import Setup


@pytest.mark.parametrize(
    ("gpus", "devices", "expected"),
    [
        ([], None, [(["yamnet", "clap"], 6)]),
        (["0", "1"], None, [(["clap"], 2), (["yamnet"], 6)]),
        (["0", "1"], 3, [(["clap"], 3), (["yamnet"], 6)]),
    ],
)
def test_embedders_of_gpus_get_a_process_for_each_and_others_all(monkeypatch, gpus, devices, expected):
    assert [embedders.find(name).gpu for name in ("yamnet", "clap")] == [False, True]
    calls = []

    def embed_all(configs, sounds, cache, workers, progress, refused=()):
        calls.append(([config.name for config in configs], workers))
        return [f"damaged by {configs[0].name}"] if refused or len(configs) == 1 else []

    monkeypatch.setattr(shards, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(features, "embed_all", embed_all)
    setup = Setup(protocols.load("project"), Path("cache"), 6, devices=devices)
    configs = [features.EmbedderConfig(name) for name in ("yamnet", "clap")]
    damaged = setup.embed(configs, [], lambda count: None, [{"path": "a", "detail": "b"}])
    assert calls == expected
    assert damaged == [f"damaged by {names[0]}" for names, _ in expected]
