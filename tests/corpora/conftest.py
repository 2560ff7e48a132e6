"""Corpora laid out by name: what matters to an adapter is what files are called and what metadata says."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from soundmill.corpora import inventory


@pytest.fixture
def lay(tmp_path) -> Callable[..., inventory.Inventory]:
    """`lay("a/x.wav", …, **{"m.json": value})` makes files of a few bytes and metadata (text, bytes or JSON), and takes stock."""

    def put(*names: str, **metadata: Any) -> inventory.Inventory:
        contents = {name: b"RIFF" + name.encode() for name in names}
        for name, value in metadata.items():
            text = value if isinstance(value, str | bytes) else json.dumps(value, ensure_ascii=False)
            contents[name] = text.encode() if isinstance(text, str) else text
        for name, content in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return inventory.list_files(tmp_path)

    return put
