"""What the originals of our networks say of a few sounds at random weights, in `tests/originals`.

`python -m tests.bench.originals` records it, `make test-bench` compares it with the originals, other tests compare ours with it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import references
from soundmill.evaluation import embedders

PLACE = Path(__file__).parent / "originals"
TRANSFORM = re.compile(r"_(real|imag)(\.weight|_kernels)$")  # a Fourier transform that a checkpoint holds
# (kind, seconds) of the sounds that each embedder is asked about.
SOUNDS = {
    "vggish": (("noise", 3.3), ("hum", 0.975)),
    **dict.fromkeys(references.CNN14, (("noise", 2.0), ("hum", 2.0), ("silence", 2.0), ("quiet", 2.5), ("noise", 0.2))),
    "openl3_env": (("noise", 1.25), ("noise", 0.3), ("silence", 0.5), ("late", 1.25)),
    "passt": (("noise", 1.3), ("hum", 1.0), ("silence", 1.0), ("quiet", 0.5), ("noise", 10.0)),
    "clap_music_speech": (("noise", 10.0), ("quiet", 0.9), ("silence", 1.0)),
    "msclap": (("noise", 7.0), ("quiet", 0.9), ("silence", 1.0)),
    "audiobox": (("noise", 2.5),),
    "audiobox_short": (("noise", 0.02), ("hum", 1.99), ("noise", 2.0), ("noise", 2.46)),  # by windows of two seconds
}
TEXTS = {
    "clap_music_speech": ["a dog barks", "rain", "thunder " * 50],
    "msclap": ["a dog barks", "", "Help! Rain!!", "Grüße, 雨", "thunder and rain " * 20],
}


def sounds(name: str) -> list[np.ndarray]:
    rate = references.RATES[name.removesuffix("_short")]
    return [sound(kind, seconds, rate) for kind, seconds in SOUNDS[name]]


def sound(kind: str, seconds: float, rate: int) -> np.ndarray:
    """A hum has nothing in its high bands; noise comes and goes, and late comes after silence."""
    time = np.arange(round(seconds * rate)) / rate
    if kind == "hum":
        return (0.3 * np.sin(2 * np.pi * 120 * time)).astype(np.float32)
    noise = uniform(len(time)) * (1.2 + np.sin(2 * np.pi * time)) + np.sin(2 * np.pi * (200 + 300 * time) * time)
    levels = {"noise": 0.2, "quiet": 0.001, "silence": 0.0, "late": 0.2 * (time > seconds / 2)}
    return (noise * levels[kind]).astype(np.float32)


def uniform(*shape: int) -> np.ndarray:
    """Random values from −0.35 to 0.35, the same with every version of NumPy."""
    (values,) = references.random_weights({"noise": [np.prod(shape)]}).values()
    return values.reshape(shape)


def thinned(values: np.ndarray | Tensor, most: int = 1000) -> np.ndarray:
    """About `most` of the values, at an odd stride; of more than 500 every ninth."""
    flat = np.asarray(values).ravel()
    some = flat[:: flat.size // most | 1]
    return some[::9] if some.size > 500 else some


@cache
def said(name: str) -> dict[str, np.ndarray]:
    """All that is recorded of an original."""
    with np.load(PLACE / f"{name}.npz") as file:
        return dict(file)


def check(name: str, what: str, values: np.ndarray | Tensor, atol: float = 1e-4, rtol: float = 0) -> None:
    """Whether `values` are what the original said."""
    expected = said(name)[what]
    np.testing.assert_allclose(thinned(values), expected, rtol=rtol, atol=atol, err_msg=f"{what} of {name}")


def layout(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """What `state` makes a state of: the shape of every weight, and the values of what is none."""
    names: dict[str, object] = {}
    fixed: dict[str, np.ndarray] = {}
    first = {values.data_ptr(): name for name, values in reversed(state.items())}
    for name, values in state.items():
        if part := TRANSFORM.search(name):
            names[name] = f"{part[1]} {values.shape[-1]}"
        elif values.is_floating_point() and not references.FIXED.search(name):
            known = first[values.data_ptr()]
            names[name] = list(values.shape) if known == name else f"as {known}"
        else:
            same = (key for key, known in fixed.items() if known.dtype == values.numpy().dtype and np.array_equal(known, values))
            names[name] = next(same, f"fixed {len(fixed)}")
            fixed[str(names[name])] = values.numpy()
    return {"layout": np.array(json.dumps(names)), **fixed}


def state(name: str, blank: bool = False) -> dict[str, Tensor]:
    """The state that the original had when it was recorded; `blank`: zeros, which take no memory, in place of the weights."""
    recording = said(name)
    found: dict[str, Tensor] = {}
    names = json.loads(str(recording["layout"]))
    shapes = {key: about for key, about in names.items() if isinstance(about, list)}
    weights = {} if blank else references.random_weights(shapes)
    for key, about in names.items():
        if key in shapes:
            found[key] = torch.zeros(()).expand(about) if blank else torch.from_numpy(weights[key])
        elif about.startswith("as "):
            found[key] = found[about.removeprefix("as ")]
        elif about.startswith("fixed"):
            found[key] = torch.tensor(recording[about])
        else:
            part, size = about.split()
            found[key] = getattr(transform(int(size)), part).float()[:, None].contiguous()
    return found


def transform(size: int) -> Tensor:
    """Fourier's of `size` samples with a periodic Hann window, complex."""
    window = np.sin(np.pi * np.arange(size) / size) ** 2
    return torch.from_numpy(np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size) * window)


def write(name: str, path: Path) -> Path:
    """The file that is published of an embedder, with random weights."""
    references.write_published(name, state(name), path)
    return path


def publish(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put such a file into $SOUNDMILL_WEIGHTS, as the one whose digest is pinned."""
    declared = embedders.find(name)
    path = write(name, place / declared.weights.file)
    about = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "num_bytes": path.stat().st_size}
    about |= {"md5": None, "git_blob": None}
    made = replace(declared, weights=replace(declared.weights, **about))
    monkeypatch.setitem(embedders.EMBEDDERS, name, made)
    return path
