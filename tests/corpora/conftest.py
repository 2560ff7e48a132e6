"""Corpora laid out by name: what matters to an adapter is what files are called and what metadata says."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from soundmill.corpora import inventory
from tests.corpora.tiny import write


@pytest.fixture
def lay(tmp_path) -> Callable[..., inventory.Inventory]:
    """`lay("a/x.wav", …, **{"m.json": value})` makes files of a few bytes and metadata (text, bytes or JSON), and takes stock."""

    def put(*names: str, **metadata: Any) -> inventory.Inventory:
        for name in names:
            write(tmp_path, name, f"RIFF{name}")
        for name, value in metadata.items():
            write(tmp_path, name, value if isinstance(value, str | bytes) else json.dumps(value, ensure_ascii=False))
        return inventory.list_files(tmp_path)

    return put
