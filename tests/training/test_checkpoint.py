"""Checkpoints of any kind: what is saved comes back, and what does not fit is named with its remedy; and those of a running
training: whole or not there, the last good one kept, no code run on load."""

import json
import pickle
import random
import resource
import struct
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from soundmill import params
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.components.contracts import GriffinLimParams
from soundmill.training import checkpoint, loop
from soundmill.training.fitting import Fitted
from soundmill.training.loop import LAST, PREVIOUS, load, resume_point
from tests.imports import ROOT
from tests.lost_bits import Code, lose_a_bit, room_in_files


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
    text = '{\n  "kind": "linear",\n  "labels": [\n    "bell",\n    "ä"\n  ],\n  "width": 3\n}\n'
    assert (tmp_path / "one" / "config.json").read_text() == text
    loaded = checkpoint.load_weights(nn.Linear(3, 2), tmp_path / "one" / "model.safetensors")
    assert not loaded.training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())
    with safe_open(tmp_path / "one" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / "vocoder" / name).read_bytes() == (part / name).read_bytes()


def test_the_weights_that_use_names_are_loaded(tmp_path):
    checkpoint.write_weights({"weight": torch.full((1, 1), 4.0)}, tmp_path / "8")
    best, best_fad = ({"weight": torch.full((1, 1), value)} for value in (2.0, 3.0))
    fitted = Fitted([], {}, best, {8: tmp_path / "8"}, best_fad, [])
    for use, value in (("last", 1.0), ("best", 2.0), ("best_fad", 3.0), (8, 4.0)):
        net = nn.Linear(1, 1, bias=False)
        nn.init.ones_(net.weight)
        fitted.load_into(SimpleNamespace(net=net), use)
        assert net.weight.item() == value


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
    with room_in_files(100), pytest.raises(UserError, match=r"model\.safetensors: the weights could not be written .*run again"):
        save(tmp_path / "two", nn.Linear(30, 2))
    assert list((tmp_path / "two").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"one: no vocoder here \(config\.json is missing\); `dvc repro` makes one"),
        ("{", r"config\.json: not readable as JSON: .*; remake it with `dvc repro`"),
        ("[" * 100_000, r"config\.json: not readable as JSON: nested too deeply"),
        (json.dumps([""] * 3_000_000), r"config\.json: has 12,.* bytes"),
        ("[]", r"config\.json: not a JSON object; remake it with `dvc repro`"),
        (
            {"kind": "linear", "widht": 3, "labels": []},
            r"(?s)width: missing.*widht: unknown key; did you mean 'width'.*Train it again",
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
    [(nn.Linear(3, 4), "size mismatch"), (nn.Linear(3, 2, bias=False), "Unexpected"), (nn.Sequential(nn.Linear(3, 2)), "Missing")],
)
def test_weights_of_another_net_are_named(tmp_path, net, message):
    save(tmp_path / "one", nn.Linear(3, 2))
    with pytest.raises(UserError, match=rf"model\.safetensors: the weights do not fit the architecture .*{message}.*dvc repro"):
        checkpoint.load_weights(net, tmp_path / "one" / "model.safetensors")


def header(**about: object) -> bytes:
    """Of weights of six numbers."""
    text = json.dumps({"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **about}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(24)


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"", b"torn", b"\0" * 100, "pickle", struct.pack("<Q", 10**15)),
        *(header(shape=[200_000, 200_000]), header(data_offsets=[0, 10**12]), header(shape=[2**63, 2**63])),
        *(header(data_offsets=[24, 0]), header(dtype="X9")),
    ],
)
def test_weights_that_are_damaged_pickled_or_lie_are_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content == "pickle":
        torch.save(nn.Linear(3, 2).state_dict(), path)
    elif content is not None:
        path.write_bytes(content)
    for read in (checkpoint.read_weights, partial(checkpoint.load_weights, partial(nn.Linear, 3, 2, bias=False))):
        with pytest.raises(UserError, match=r"model\.safetensors: weights cannot be read .*remake them with `dvc repro`"):
            read(path)


OWN = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("make", "tensors", "found"),
    [
        (partial(nn.Linear, 200_000, 200_000), OWN, r"weight is \[2, 3\] .* and \[200000, 200000\]"),  # 160 GB
        (partial(nn.Embedding, 3_000_000_000, 16), {"weight": OWN["weight"]}, r"weight is \[2, 3\]"),
        (lambda: nn.Sequential(*(nn.Linear(3, 2) for _ in range(10**9))), OWN, "larger than its weights, which have 2 tensors"),
        (partial(nn.Linear, 10**30, 2), OWN, "Overflow"),
        (partial(nn.Linear, 3, 2, bias=False), OWN, r"bias is \[2\] .* absent in the net|bias is .* and absent"),
        (partial(nn.Linear, 3, 2), {"weight": OWN["weight"]}, "bias is absent"),
        (partial(nn.Linear, 3, 2), {**OWN, "bias": torch.ones(2, dtype=torch.int32)}, "bias is .* whole numbers"),
        (partial(nn.Linear, 3, 2), {**OWN, "bias": torch.ones(2, dtype=torch.bool)}, "bias is .* whole numbers"),
    ],
)
def test_a_net_is_not_made_unless_its_weights_are_there(tmp_path, make, tensors, found):
    path = tmp_path / "model.safetensors"
    save_file(OWN, path)
    net = checkpoint.load_weights(partial(nn.Linear, 3, 2), path)  # what is imported for the first one counts for none
    assert torch.equal(net.weight, OWN["weight"])
    assert not net.training
    assert nn.Linear(1, 1).weight.device.type == "cpu"
    save_file(tensors, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=rf"model\.safetensors: .*config\.json.*{found}"):
        checkpoint.load_weights(make, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_numbers_without_sense_are_refused_by_their_key(name):
    """In each family's sections `train` and `generate`, whatever is in them."""
    values = {
        "guidance_scale": [1e30, -1.0, float("nan"), float("inf"), 101.0],
        "num_steps": [0, -1, 10**9],
        "griffin_lim_iterations": [0, 10**9],
        "seed": [-1, 2**63, 2**64],
        "steps": [0, 10**9],
        "batch_size": [0, 10**9],
    }
    document, kind = params.compose(ROOT / "conf", [f"model={name}"])[name], registry.family(name)
    tried = 0
    for part, model in (("train", kind.train_params), ("generate", kind.generate_params)):
        for where in (document[part], document[part].get("sampling") or {}):
            for key in values.keys() & where.keys():
                own = where[key]
                for value in values[key]:
                    where[key], tried = value, tried + 1
                    with pytest.raises(UserError, match=rf"\b{key}\b"):
                        params.parse(model, document[part], f"{name}.{part}")
                where[key] = own
    assert tried >= 4
    with pytest.raises(UserError, match="griffin_lim_iterations"):
        params.override(
            GriffinLimParams(griffin_lim_iterations=2, griffin_lim_momentum=0.9, griffin_lim_grain="none"),
            ["griffin_lim_iterations=1000000000"],
            "sampling",
        )


def test_keeps_the_one_before_and_a_failed_write_leaves_the_good_one(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        loop.save({"step": step}, tmp_path / LAST)
    assert load(tmp_path / LAST)["step"] == 3
    assert load(tmp_path / PREVIOUS)["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert resume_point(tmp_path) == tmp_path / LAST
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        loop.save({"step": lambda: 2}, tmp_path / LAST)
    assert load(resume_point(tmp_path))["step"] == 3

    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed\nmore")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="free some space and run again"):
        loop.save({"step": 2}, tmp_path / LAST)
    assert load(resume_point(tmp_path))["step"] == 3


def test_no_lost_bit_is_trained_on(tmp_path, capsys):
    checkpoint = {"weights": torch.randn(3, 400), "step": 7, "names": ["a", "b"]}
    for _ in range(2):
        loop.save(checkpoint, tmp_path / LAST)
    whole = (tmp_path / LAST).read_bytes()
    rng, passed_over = random.Random(5), 0
    for turn in range(300):
        lose_a_bit(tmp_path / LAST, rng.random() if turn % 2 else 1 - 0.2 * rng.random() ** 2)  # the last part is the index
        found = resume_point(tmp_path)
        damaged = found == tmp_path / PREVIOUS
        assert damaged == ("last.ckpt: damaged" in capsys.readouterr().out)
        passed_over += damaged
        read = load(found)  # a bit of what nobody reads, as the time of writing, may be another
        assert torch.equal(read.pop("weights"), checkpoint["weights"])
        assert read == {"step": 7, "names": ["a", "b"]}
        (tmp_path / LAST).write_bytes(whole)
    assert passed_over > 200


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_nothing_to_resume_from(tmp_path, capsys, content):
    assert resume_point(tmp_path) is None
    assert capsys.readouterr().out == ""
    (tmp_path / LAST).write_bytes(content)
    assert resume_point(tmp_path) is None
    assert "training starts from the beginning" in capsys.readouterr().out


def test_loading_runs_no_code_and_one_of_an_earlier_version_is_passed_over_and_named(tmp_path, capsys):
    torch.save({"weights": Code()}, tmp_path / LAST)
    assert resume_point(tmp_path) is None
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / LAST)
    assert "it ran" not in capsys.readouterr().out
    loop.save({"state_dict": {}, "optimizer_states": [], "global_step": 3}, tmp_path / LAST)
    assert resume_point(tmp_path) is None
    said = capsys.readouterr().out
    assert f"{LAST}: written by an earlier version of Soundmill, which alone can resume it" in said
    assert "training starts from the beginning" in said
