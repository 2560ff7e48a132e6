"""Trained models on disk: a directory with `config.json` and safetensors, enough to rebuild the model or to train on.

Families, vocoders, codecs and the tagger are all saved and loaded here. Loading a checkpoint runs no code from it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from soundmill import disk, hub, manifest, params, shards
from soundmill.errors import UserError, first_of
from soundmill.params import StageParams

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_CONFIG_BYTES = 8 << 20  # of a `config.json`: a thousand labels have about 20,000
BEST = "best.safetensors"  # weights with the lowest held-out loss
BEST_FAD = "best_fad.safetensors"  # weights with the lowest FAD while training
NAMED = 3  # differences listed in an error
AGREE = "make them agree, or train from nothing (`start_from: null`)"


class Config(StageParams):
    """The contents of a `config.json`: everything but the weights that is needed to rebuild a model."""


C = TypeVar("C", bound=Config)


def weights_of_step(step: int) -> str:
    """Name of the weights file of a step before the last."""
    return f"step-{step}.safetensors"


def save(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    weights: str = WEIGHTS,
    metadata: dict[str, str] | None = None,
    parts: Sequence[Path] = (),
) -> None:
    """Write a checkpoint into a new directory; `parts` are checkpoints that it needs, copied into it under their names.

    The config is written last: a directory that has one is complete.
    """
    directory.mkdir(parents=True)
    for part in parts:
        shutil.copytree(part, directory / part.name, copy_function=shutil.copyfile)
    write_weights(tensors, directory / weights, metadata)
    write_config(config, directory)


def write_config(config: Mapping[str, Any], directory: Path, sort_keys: bool = True) -> None:
    disk.write_json(directory / CONFIG, config, sort_keys=sort_keys, allow_nan=True)


def write_weights(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; UserError if the disk does not take it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contents = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        disk.write_atomically(path, lambda temporary: save_file(contents, temporary, metadata))
    except SafetensorError as error:  # its error for a full disk
        raise UserError(f"{path}: the weights could not be written ({error}); free some space and run again") from None


def read(directory: Path, what: str = "checkpoint", remedy: str = "`dvc repro` makes one") -> dict[str, Any]:
    """The `config.json` of a vocoder, an autoencoder, …; UserError if it is missing or unreadable."""
    try:
        size = (directory / CONFIG).stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise UserError(f"{directory / CONFIG}: has {size:,} bytes, and a model's has at most {MAX_CONFIG_BYTES:,}; {remedy}")
        config = params.read_json(directory / CONFIG, "remake it with `dvc repro`")
    except (FileNotFoundError, NotADirectoryError):
        remedy = f"name its directory, {directory.parent}" if directory.is_file() else remedy
        raise UserError(f"{directory}: no {what} here ({CONFIG} is missing); {remedy}") from None
    if not isinstance(config, dict):
        raise UserError(f"{directory / CONFIG}: not a JSON object; remake it with `dvc repro`")
    return config


def load_config(directory: Path, model: type[C], what: str = "checkpoint") -> C:
    """The `config.json` in a directory, parsed as `model`; UserError names the keys that do not fit."""
    path = directory / CONFIG
    try:
        return params.parse(model, read(directory, what), str(path))
    except UserError as error:
        if not str(error).startswith(f"{path}."):
            raise
        raise UserError(
            f"{error}\nThe {what} does not fit this version of Soundmill. Train it again; or edit {path}: remove unknown keys, and "
            "add missing ones with the values it was trained with"
        ) from None


def read_weights(path: Path, remedy: str = "remake them with `dvc repro`") -> dict[str, Tensor]:
    """Tensors of a safetensors file; UserError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: weights cannot be read ({error}); {remedy}") from None


def built(make: Callable[[], nn.Module], path: Path, beside: Collection[str] = ()) -> nn.Module:
    """The net that `make` makes, if it has the tensors of the file, but for those `beside` it.

    UserError names a tensor that differs, before the net takes memory: a config may ask for any size, and a file has what it has.
    """
    import torch

    remedy = "remake them with `dvc repro`"
    declared = {name: value for name, value in hub.declared(path, remedy).items() if name not in beside}
    with must_fit(path):
        with hub.bounded(f"{path}: by {CONFIG}", remedy, len(declared)), torch.device("meta"):
            state = make().state_dict()
        asked = {name: (value.is_floating_point(), list(value.shape)) for name, value in state.items()}
        for name in {**asked, **declared}:
            if asked.get(name) != declared.get(name):
                there, here = (_described(tensors.get(name)) for tensors in (declared, asked))
                raise RuntimeError(f"{name} is {there} in the file and {here} in the net")
    return make()


def _described(tensor: tuple[bool, list[int]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[1]} of {'floating-point' if tensor[0] else 'whole'} numbers"


def load_weights(net: nn.Module | Callable[[], nn.Module], path: Path, adapter: str = "default") -> nn.Module:
    """Load exactly the weights of a file into the net, or into its `adapter` if it has some, and set evaluation mode.

    UserError names a tensor that does not fit. A net that a config describes is given as what makes it (`built`).
    """
    from torch import nn

    from soundmill.training import adapters

    net = net if isinstance(net, nn.Module) else built(net, path)
    tensors = read_weights(path)
    with must_fit(path):
        adapters.give_weights(net, tensors, adapter)
    return net.eval()


@contextmanager
def must_fit(path: Path) -> Iterator[None]:
    """Raise a UserError if the names or shapes of the tensors in `path` differ from the net's."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError, ArithmeticError) as error:
        first = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise UserError(
            f"{path}: the weights do not fit the architecture in {CONFIG} ({first}); remake them with `dvc repro`"
        ) from None


def start_directory(where: Path) -> Path:
    """`where`; UserError if it is no directory."""
    if not where.is_dir():
        raise UserError(
            f"start_from: {where}: no such directory. To start from an output of this project, copy it elsewhere first: DVC "
            "removes the outputs of a stage before it runs"
        )
    return where


def compare(where: str, there: Mapping[str, Any], here: Mapping[str, Any], keys: Sequence[str] | None = None) -> None:
    """UserError that lists the differences of two nested mappings below `keys` (dotted; None: all keys)."""
    there, here = params.flat(there), params.flat(here)
    compared = [key for key in {**here, **there} if keys is None or any(f"{key}.".startswith(f"{part}.") for part in keys)]
    differing = [key for key in compared if there.get(key) != here.get(key)]
    if differing:
        named = [f"{key} is {there.get(key, 'absent')} there and {here.get(key, 'absent')} here" for key in differing]
        raise UserError(f"start_from: {where}: {first_of(named, NAMED, '; ')}; {AGREE}")


# The table of soundmill/attribution.py for a start that says nothing of what trained it.
UNKNOWN_START = "recording,creator,licence,ai_terms,url,clips,seconds,in_mixes,used_for\n,,unknown,unknown,,0,0.0,0,model\n"
FROM_CATALOG = ["clip_id", "recording_id", "source", "start", "seconds", "digest"]


def write_trained_on(
    directory: Path,
    catalog: Path,
    clip_ids: Iterable[str],
    mixes: Mapping[str, tuple[str, str]] | None = None,
    start: Path | None = None,
) -> None:
    """Write the table of manifest.TRAINED_ON into a directory of weights: the clips, both clips of each of the `mixes` (by id).

    The catalog may know more mixes among the clips.

    `start` is the directory of weights that the training started from; the rows of its tables are added, and the attribution that
    was published with it is kept; that of one without table or attribution is unknown.
    """
    table = shards.read_table(catalog, manifest.MIXED_CATALOG, [*FROM_CATALOG, manifest.MIXED]).to_pylist()
    both_of = {row["clip_id"]: both for row in table if (both := row.pop(manifest.MIXED))}
    catalogued = {row["clip_id"]: row for row in table}
    known = dict(mixes or {}) | {clip_id: both_of[clip_id] for clip_id in clip_ids if clip_id in both_of}
    clips = [(None, clip_id) for clip_id in sorted(set(clip_ids) - both_of.keys())]
    clips += [(mix, clip_id) for mix, both in sorted(known.items()) for clip_id in both]
    rows = ({"clip_id": clip_id, **catalogued.get(clip_id, {}), "mix": mix, "earlier": False} for mix, clip_id in clips)
    with shards.ShardWriter(directory / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON) as writer:
        for row in (*rows, *_earlier(start)):
            writer.write(row)
    if start:
        known = manifest.attribution_of(start) or start / manifest.EARLIER_ATTRIBUTION
        if known.is_file():
            shutil.copyfile(known, directory / manifest.EARLIER_ATTRIBUTION)
        elif not (start / manifest.TRAINED_ON_FILE).is_file():
            disk.write_text(directory / manifest.EARLIER_ATTRIBUTION, UNKNOWN_START)
        copy_terms(start, directory)


def copy_terms(source: Path, directory: Path) -> None:
    """Copy the licences that came with published weights."""
    for path in (*source.glob("LICENSE*"), *source.glob("NOTICE*")):
        if path.is_file():
            shutil.copyfile(path, directory / path.name)


def _earlier(start: Path | None) -> Iterator[dict[str, Any]]:
    """Distinct rows of all tables below a directory of weights."""
    seen = set()
    for table in sorted(start.rglob(manifest.TRAINED_ON_FILE)) if start else ():
        for row in shards.read_rows(table, manifest.TRAINED_ON):
            row["earlier"] = True
            if (key := tuple(row.values())) not in seen:
                seen.add(key)
                yield row
