"""Weights that others published, as what this project makes itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

from torch import nn

from soundmill import params
from soundmill.errors import UserError
from soundmill.hashing import file_digest
from soundmill.models import registry
from soundmill.models.components.diffwave import published as diffwave
from soundmill.models.components.diffwave import vocoder as vocoders
from soundmill.models.generation import make_directory
from soundmill.stage import publish

Read = tuple[nn.Module, Callable[[Path], object]]  # a net, and what writes it into a directory


def import_published(path: Path, output: Path, conf: Callable[[], Path]) -> int:
    """Make a file that a family knows by its suffix a checkpoint, and any other, as DiffWave's weights, the directory of a vocoder.

    `output` must not be there yet, and appears whole or not at all; `conf` is the project's. Returns the number of parameters.
    """
    if output.exists():
        raise UserError(f"{output}: already exists; name a new directory")
    net, save = _of_family(path, conf) or _vocoder(path)
    make_directory(output.parent)
    with tempfile.TemporaryDirectory(prefix=".soundmill-", dir=output.parent) as folder:
        staged = Path(folder) / output.name
        save(staged)
        publish(staged, output)
    return sum(weight.numel() for weight in net.parameters())


def _of_family(path: Path, conf: Callable[[], Path]) -> Read | None:
    for name in registry.FAMILIES:
        if (module := registry.family(name).published) and (published := import_module(module)).SUFFIX == path.suffix:
            document = params.compose(conf(), [f"model={name}", "scale=paper"])
            model, facts, save = published.read(path, document)
            about = {**facts, "imported": {"name": path.name, "digest": file_digest(path)}}
            return model.net, partial(save, model, facts=about)
    return None


def _vocoder(path: Path) -> Read:
    model = diffwave.read(path)
    source = {"kind": "load", "name": path.name, "digest": file_digest(path)}
    return model.net, lambda directory: vocoders.save(model, directory, source)
