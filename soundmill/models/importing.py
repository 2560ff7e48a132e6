"""Convert published weights into checkpoints and vocoders of this project."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

from torch import nn

from soundmill import hub, params
from soundmill.errors import UserError
from soundmill.hashing import file_digest
from soundmill.models import registry
from soundmill.models.audio_dit import published as pipelines
from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.diffwave import published as diffwave
from soundmill.models.generation import make_directory
from soundmill.stage import publish

Read = tuple[nn.Module, Callable[[Path], object]]  # network, and a function that writes it into a directory


def import_published(name: str, output: Path, conf: Callable[[], Path], revision: str | None = None) -> int:
    """Convert a directory, or a file with a family's suffix, into a checkpoint; any other, as DiffWave weights, into a vocoder.

    `name` may also be an id of the hub, with its commit as `revision`: a StableAudioPipeline. `output` must not exist; it is
    written atomically. `conf` returns the project's conf. Returns the number of parameters.
    """
    if output.exists():
        raise UserError(f"{output}: already exists; name a new directory")
    path = Path(name)
    if not path.exists():
        path, _ = hub.find(
            str(name), revision, Path(), pipelines.HUB_FILES, pipelines.missing, "name a file or directory that is there"
        )
    if path.is_file() and any((path.parent / index).is_file() for index in pipelines.INDICES):
        raise UserError(f"{path}: is a part of a model; name its directory, {path.parent}")
    net, save = _of_family(path, str(name), revision, conf) or _vocoder(path)
    make_directory(output.parent)
    with tempfile.TemporaryDirectory(prefix=".soundmill-", dir=output.parent) as folder:
        staged = Path(folder) / output.name
        save(staged)
        publish(staged, output)
    return sum(weight.numel() for weight in net.parameters())


def _of_family(path: Path, named: str, revision: str | None, conf: Callable[[], Path]) -> Read | None:
    suffix = "/" if path.is_dir() else path.suffix
    for name in registry.FAMILIES:
        if (module := registry.family(name).published) and (published := import_module(module)).SUFFIX == suffix:
            document = params.compose(conf(), [f"model={name}", "scale=paper"])
            model, facts, save = published.read(path, document)
            if revision:
                facts["imported"] |= {"name": f"{named}@{revision}"}  # not that of the directory in the hub's cache
            about = facts if path.is_dir() else {**facts, "imported": {"name": path.name, "digest": file_digest(path)}}
            return model.net, partial(save, model, facts=about)
    return None


def _vocoder(path: Path) -> Read:
    model = diffwave.read(path)
    source = {"kind": "load", "name": path.name, "digest": file_digest(path)}
    return model.net, partial(save_vocoder, model, source=source)
