"""Checkpoints of any kind: what is saved comes back, and what does not fit is named with its remedy."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from soundmill.errors import UserError
from soundmill.training import checkpoint
from tests.lost_bits import room_in_files


class Config(checkpoint.Config):
    kind: str
    width: int
    labels: list[str]


CONFIG = Config(kind="linear", width=3, labels=["bell", "ä"])


def save(directory: Path, net: nn.Module, **more) -> None:
    checkpoint.save(directory, CONFIG.model_dump(mode="json"), net.state_dict(), **more)


def test_what_is_saved_comes_back(tmp_path):
    part = tmp_path / "vocoder"
    save(part, nn.Linear(1, 1))
    net = nn.Linear(3, 2)
    save(tmp_path / "one", net, metadata={"format": "pt"}, parts=[part])
    assert checkpoint.load_config(tmp_path / "one", Config) == CONFIG
    assert (tmp_path / "one" / "config.json").read_text() == (
        '{\n  "kind": "linear",\n  "labels": [\n    "bell",\n    "ä"\n  ],\n  "width": 3\n}\n'
    )
    loaded = checkpoint.load_weights(nn.Linear(3, 2), tmp_path / "one" / "model.safetensors")
    assert not loaded.training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())
    with safe_open(tmp_path / "one" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / "vocoder" / name).read_bytes() == (part / name).read_bytes()


def test_a_directory_with_a_config_is_complete(tmp_path, monkeypatch):
    """The config is written last, each file is there whole or not at all, and nothing is overwritten."""

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path / "one", nn.Linear(3, 2))
    assert list((tmp_path / "one").iterdir()) == []
    with pytest.raises(FileExistsError):
        save(tmp_path / "one", nn.Linear(3, 2))


def test_weights_that_the_disk_does_not_take_are_named(tmp_path):
    with room_in_files(100), pytest.raises(UserError, match=r"model\.safetensors: the weights could not be written .*run again"):
        save(tmp_path / "one", nn.Linear(30, 2))
    assert list((tmp_path / "one").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"one: no vocoder here \(config\.json is missing\); `dvc repro` makes one"),
        ("{", r"config\.json: not readable as JSON: .*; remake it with `dvc repro`"),
        ("[" * 100_000, r"config\.json: not readable as JSON: nested too deeply"),
        ("[]", r"config\.json: not a JSON object; remake it with `dvc repro`"),
        (
            {"kind": "linear", "widht": 3, "labels": []},
            r"(?s)config\.json\.width: missing.*config\.json\.widht: unknown key; did you mean 'width'.*Train it again; or edit",
        ),
        ({"kind": "linear", "width": "3", "labels": []}, r"(?s)config\.json\.width: .*found '3'.*The vocoder does not fit"),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path, content, message):
    (tmp_path / "one").mkdir()
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "one" / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        checkpoint.load_config(tmp_path / "one", Config, "vocoder")


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(3, 4), r"model\.safetensors: the weights do not fit the architecture .*size mismatch for weight.*dvc repro"),
        (nn.Linear(3, 2, bias=False), r"model\.safetensors: the weights do not fit the architecture .*Unexpected key.*bias"),
        (nn.Sequential(nn.Linear(3, 2)), r'model\.safetensors: the weights do not fit the architecture .*Missing key.*"0\.weight"'),
    ],
)
def test_weights_of_another_net_are_named(tmp_path, net, message):
    save(tmp_path / "one", nn.Linear(3, 2))
    with pytest.raises(UserError, match=message):
        checkpoint.load_weights(net, tmp_path / "one" / "model.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"torn", b"\0" * 100])
def test_weights_that_are_damaged_are_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: weights cannot be read .*remake them with `dvc repro`"):
        checkpoint.read_weights(path)


def test_a_pickle_is_not_read(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="weights cannot be read"):
        checkpoint.load_weights(nn.Linear(3, 2), tmp_path / "model.safetensors")
