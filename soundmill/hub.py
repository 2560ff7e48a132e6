"""Pretrained models: from a local directory, or from a repository of the Hugging Face hub at one commit; loaded within bounds."""

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from soundmill import hashing, params, terminal
from soundmill.errors import UserError

REMEDY = "its files do not belong together: download them again"
LARGEST = 1 << 20  # number in a configuration: libraries make lists of such lengths before they read any weights
NO_LENGTHS = ("model_max_length", "rope_theta")  # 1e30 for a tokenizer without limit; a wavelength
TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "README.md")  # under which a model is published
_COMMIT = re.compile(r"[0-9a-f]{40}")


def directory_of(name: str, home: Path) -> Path:
    """The directory of that name, relative to `home`, whether or not it exists."""
    return home / os.path.expanduser(name)  # unlike pathlib's, it leaves users who do not exist


def find(
    name: str, revision: str | None, home: Path, files: Sequence[str], missing: Callable[[Path], str | None], remedies: str
) -> tuple[Path, str | None]:
    """The directory of a model, and its commit. `name` is a directory (relative to `home`; commit None) or an id of the hub.

    Only files that match the patterns `files` are taken from the hub's cache or downloaded. `missing(directory)` names what the
    directory lacks, or returns None. If the model cannot be found, a UserError ends with `remedies`.
    """
    directory = directory_of(name, home)
    if directory.is_dir():
        revision = None
    elif name.startswith(("/", ".", "~")):
        raise UserError(f"{name}: no such directory ({directory}); {remedies}")
    else:
        directory = _fetch(name, revision, files, missing, remedies)
    if lacking := missing(directory):
        raise UserError(f"{name}: {directory} has no {lacking}, so it cannot be loaded; {remedies}")
    return directory, revision


def is_directory(name: str, home: Path) -> bool:
    """Whether `find` takes the name for a directory, not for an id of the hub."""
    return name.startswith(("/", ".", "~")) or (home / name).is_dir()


def digest(directory: Path, files: Sequence[str], cache: Path | None = None) -> str:
    """Digest of the names and contents of the files that match the patterns; `cache` as in hashing.file_digests."""
    return hashing.files_digest(directory, sorted({path for pattern in files for path in directory.glob(pattern)}), cache)


def read_config(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a published model; UserError if it is missing or none."""
    if not file.is_file():
        raise UserError(f"{file}: is missing; {REMEDY}")
    config = params.read_json(file, "download it again")
    if not isinstance(config, dict):
        raise UserError(f"{file}: not a JSON object; download it again")
    return config


def shards(index: Path) -> list[Path]:
    """The files of weights that an index lists; UserError unless they are files beside it. No name becomes a path unchecked."""
    listed = read_config(index).get("weight_map")
    beside = {file.name: file for file in index.parent.glob("*.safetensors")}
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index}: weight_map is {listed!r}, not a list of files; download it again")
    if absent := [name for name in listed.values() if not isinstance(name, str) or name not in beside]:
        raise UserError(f"{index}: weight_map names {absent[0]!r}, which is no *.safetensors in this directory; {REMEDY}")
    return [beside[name] for name in sorted(set(listed.values()))]


def declared(path: Path, remedy: str = "download them again") -> dict[str, tuple[bool, list[int]]]:
    """Whether it has floating-point numbers, and the shape, of each tensor of a safetensors file, from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}
            return {name: (tensor.get_dtype().startswith(("F", "BF")), tensor.get_shape()) for name, tensor in tensors.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: weights cannot be read ({error}); {remedy}") from None


@contextmanager
def bounded(where: str, remedy: str, tensors: int, numbers: float = math.inf) -> Iterator[None]:
    """Within it, UserError if nets are built with far more parameters, or numbers in them, than their weights have.

    A configuration may ask for any depth, which takes time even on the meta device, and for any width, which takes memory.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    left = [1000 + 10 * tensors, (1 << 20) + 10 * numbers]  # some parameters are replaced while a net is built and loaded

    def count(module: Any, name: str, parameter: Any) -> None:
        left[:] = left[0] - 1, left[1] - (0 if parameter is None else parameter.numel())
        if min(left) < 0:
            raise UserError(f"{where}: the net is far larger than its weights, which have {tensors} tensors; {remedy}")

    counting = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        counting.remove()


@contextmanager
def loading(directory: Path, kind: str) -> Iterator[None]:
    """Within it a library loads a model in silence; UserError says why it cannot, or that its weights would not fill the net."""
    quieten()
    try:
        largest, key = _largest({file.name: read_config(file) for file in directory.glob("*config.json")}, "")
        if largest > LARGEST:
            raise UserError(f"{directory}/{key[1:]} is more than {LARGEST}, and no net has so much of anything; download it again")
        for index in directory.glob("*.safetensors.index.json"):
            shards(index)
        sizes = [math.prod(shape) for path in directory.glob("*.safetensors") for _, shape in declared(path).values()]
        with bounded(f"{directory}/{key[1:]} is {largest}", REMEDY, len(sizes), sum(sizes)):
            yield
    except UserError:
        raise
    except Exception as error:  # configurations that make no sense raise many kinds of errors
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{directory}: cannot be loaded as {kind} ({type(error).__name__}: {reason})") from None


def check_finite(net: Any, where: Path, remedy: str = REMEDY) -> None:
    if broken := [name for name, value in net.state_dict().items() if not value.isfinite().all()]:
        raise UserError(f"{where}: {broken[0]!r} has values that are not finite; {remedy}")


def quieten() -> None:
    """Switch off the libraries' progress bars and warnings; what matters is checked and raised as errors."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def _largest(value: Any, key: str) -> tuple[int, str]:
    """The largest whole number in a configuration, and its dotted key; items of a list add up, each at least a hundred."""
    if isinstance(value, dict):
        return max((_largest(one, f"{key}.{name}") for name, one in value.items() if name not in NO_LENGTHS), default=(0, key))
    if isinstance(value, list):
        return sum(max(100, _largest(one, key)[0]) for one in value), key
    # Each extra token takes as long as a thousand entries of a vocabulary.
    return abs(value) * (1000 if key.endswith(".extra_ids") else 1) if isinstance(value, int) else 0, key


def _fetch(name: str, revision: str | None, files: Sequence[str], missing: Callable[[Path], str | None], remedies: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if revision is None or not _COMMIT.fullmatch(revision):
        raise UserError(
            f"{name}: revision {revision!r} must be a commit of its repository on the hub (40 hex digits), "
            "because a branch may move to another model"
        )
    options = {"revision": revision, "allow_patterns": list(files)}
    try:
        with suppress(LocalEntryNotFoundError):
            cached = Path(snapshot_download(name, **options, local_files_only=True))
            if not missing(cached):
                return cached
        terminal.say(f"{name}: downloading from the Hugging Face hub")
        return Path(snapshot_download(name, **options))
    except HFValidationError:
        raise UserError(f"{name}: neither a directory nor a model id of the Hugging Face hub; {remedies}") from None
    except GatedRepoError as error:
        raise UserError(
            f"{name}: accept its licence on the hub with the account of `hf auth login` ({error.server_message}); {remedies}"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} at {revision}: not in the cache, and the download failed ({reason}); {remedies}") from None
