"""Convert published weights into checkpoints and vocoders of this project."""

import re
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ruamel.yaml import YAMLError

from soundmill import disk, hub, params, terminal
from soundmill.errors import UserError
from soundmill.hashing import file_digest
from soundmill.models import registry
from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.diffwave import published as diffwave
from soundmill.stage import publish

DIRECTORY = "/"  # in place of a suffix


def import_published(name: str, output: Path, conf: Callable[[], Path], revision: str | None = None) -> int:
    """Convert a directory, or a file with a family's suffix, into a checkpoint; any other, as DiffWave weights, into a vocoder.

    `name` may also be an id of the hub, with its commit as `revision`: a StableAudioPipeline. `output` must not exist; it is
    written atomically. `conf` returns the project's conf. Returns the number of parameters.
    """
    if output.exists():
        raise UserError(f"{output}: already exists; name a new directory")
    _, pipelines = _reads(DIRECTORY)
    path = Path(name)
    called = path.absolute().name
    if path.exists() and revision is not None:
        raise UserError(f"--revision {revision}: is for models on the hub, and {name} is here; leave it out")
    if not path.exists():
        remedy = "name a file or directory that is there"
        if revision is None:
            raise UserError(f"{name}: no such file or directory; an id on the hub (OWNER/NAME) needs --revision")
        path, _ = hub.find(str(name), revision, Path(), pipelines.HUB_FILES, pipelines.missing, remedy)
        called = f"{name}@{revision}"  # not the directory in the hub's cache
    if path.is_file() and any((path.parent / index).is_file() for index in _reads(DIRECTORY, path.parent)[1].INDICES):
        raise UserError(f"{path}: is a part of a model; name its directory, {path.parent}")
    family, published = _reads(DIRECTORY, path) if path.is_dir() else _reads(path.suffix)
    if family:
        model, facts, save = published.read(path, params.compose(conf(), [f"model={family}", "scale=paper"]), called)
        if path.is_dir():
            facts["imported"]["licence"] = _licence(path, called)
        save = partial(save, model, facts=facts)
    else:
        model = diffwave.read(path)
        save = partial(save_vocoder, model, source={"kind": "load", "name": path.name, "digest": file_digest(path)})
    disk.make_directory(output.parent)
    with tempfile.TemporaryDirectory(prefix=".soundmill-", dir=output.parent) as folder:
        staged = Path(folder) / output.name
        save(staged)
        for terms in {file for pattern in hub.TERMS for file in path.glob(pattern) if file.is_file()}:  # none in a file
            shutil.copyfile(terms, staged / terms.name)
        publish(staged, output)
    return sum(weight.numel() for weight in model.net.parameters())


def _reads(suffix: str, directory: Path | None = None) -> tuple[str, Any]:
    """The family that reads published files with a suffix, and its module for that; ("", None) if none does.

    Of those that read directories, the one that has one of its INDICES there, else the first.
    """
    named = [name for name in registry.FAMILIES if registry.family(name).published]
    modules = [(name, import_module(f"soundmill.models.{name}.published")) for name in named]
    reading = [(name, published) for name, published in modules if suffix == published.SUFFIX]
    shown = [one for one in reading if directory and any((directory / index).is_file() for index in one[1].INDICES)]
    return next(iter(shown or reading), ("", None))


def _licence(path: Path, name: str) -> str | None:
    """Print the terms of the model `name`, and return what the card in its directory calls them, if it does."""
    card, stated = path / "README.md", {}
    text = card.read_text(encoding="utf-8-sig", errors="replace") if card.is_file() else ""
    if match := re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", text, re.DOTALL):
        try:
            stated = params.parse_yaml(match[1])
        except (YAMLError, ValueError) as error:
            raise UserError(f"{card}: its front matter is not readable as YAML: {error}") from None
    named = [str(stated[key]) for key in ("license", "license_name") if isinstance(stated, dict) and stated.get(key)]
    files = sorted(file.name for file in path.glob("LICEN[SC]E*") if file.is_file())
    licence = ", ".join(named) or None
    terminal.say(
        f"{name}: licence: {licence or 'not named in a README.md'} ({', '.join(files) or 'no LICENSE file'}); it also "
        "applies to what is generated with these weights or trained from them: read it before you use them"
    )
    return licence
