"""Publishing a model: its checkpoint, attribution, card and sounds in one directory that lists every file with its SHA-256."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from soundmill import attribution, manifest, params, provenance, shards, tracking
from soundmill.errors import UserError
from soundmill.exports import new_directory
from soundmill.models import registry
from soundmill.models.family import origin
from soundmill.models.merging import write_whole
from soundmill.publishing import card, plain
from soundmill.publishing.directory import SUMS, check_allowed, files_below, read_sums, write_sums

CHECKPOINT = "checkpoint"
CARDS = ("MODEL_CARD.md", "README.md")  # equal; the hub shows the second
SAMPLES = 8
NOT_TRAINED = "Train without them: `soundmill forget RECORDING`, then `dvc repro`"


def find(model: str, root: Path | None) -> Path:
    """The checkpoint that is meant: a directory with one, a published directory, or a family trained in the project."""
    path = Path(model)
    candidates = [path / CHECKPOINT, path, *([root / "data" / "models" / model] if root else [])]
    found = next((place for place in candidates if (place / "config.json").is_file()), None)
    if found is None:
        raise UserError(f"{model}: neither a directory with a checkpoint nor a family trained here; train it with `dvc repro`")
    return found


def recordings_of(root: Path | None) -> Path | None:
    return root / "data" / "corpus" / "recordings.parquet" if root else None


def publish(model: str, directory: Path, root: Path) -> list[Path]:
    """Write a new or empty directory with everything that goes with a model; returns its files.

    UserError if a recording that it was trained on may not be used for generative AI.
    """
    checkpoint = find(model, root)
    source = origin(checkpoint)
    found = attribution.credits_of(checkpoint, recordings_of(root))
    check_allowed(model, found, NOT_TRAINED)
    family = registry.family(source["family"])
    trained = family.load(checkpoint)
    name = directory.resolve().name
    with new_directory(directory) as (partial, _):
        write_whole(checkpoint, partial / CHECKPOINT)
        attribution.write(found, partial / manifest.ATTRIBUTION)
        samples, picture = _samples(root, source, partial)
        facts = card.Facts(
            name=name,
            family=source["family"],
            title=family.title,
            checkpoint=source["checkpoint"],
            condition=trained.condition,
            parameters=sum(weight.numel() for weight in trained.net.parameters()),
            corpus=tracking.corpus_name(params.read_yaml(root / "params.yaml")),
            found=found,
            labels=hours_by_label(checkpoint, root, source["family"]),
            metrics=_metrics(root, source),
            samples=samples,
            picture=picture,
            exported=plain.write(checkpoint, trained, source, partial),
            commit=provenance.capture(root).sha,
        )
        for file in CARDS:
            (partial / file).write_text(card.text(facts), encoding="utf-8")
        write_sums(partial)
    return files_below(directory)


def pull(directory: Path, output: Path) -> list[Path]:
    """Copy a published model to a new or empty directory, checking every file against its SHA-256; returns the files.

    UserError if a file is missing or differs, or if its name leaves the directory.
    """
    sums = read_sums(directory)
    with new_directory(output) as (partial, _):
        for name, expected in sums.items():
            try:
                content = (directory / name).read_bytes()
            except OSError as error:
                raise UserError(f"{directory / name}: {error.strerror}; download the model again") from None
            if hashlib.sha256(content).hexdigest() != expected:
                raise UserError(f"{directory / name}: is not the file that was published; download the model again")
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        shutil.copyfile(directory / SUMS, partial / SUMS)
        origin(partial / CHECKPOINT)  # is it a checkpoint?
    return files_below(output)


def _samples(root: Path, source: dict[str, str], directory: Path) -> tuple[list[str], str | None]:
    """Copy sounds that the project made with this very checkpoint, with a picture of them."""
    from soundmill.audio import figures

    made = root / "data" / "generated" / source["family"]
    if not _is_of(made, source):
        return [], None
    chosen = sorted(made.glob("*.wav"))[:SAMPLES]
    (directory / "samples").mkdir()
    paths = [Path(shutil.copyfile(path, directory / "samples" / path.name)) for path in chosen]
    picture = directory / "samples" / "spectrograms.png"
    figures.save_png(figures.draw_files(paths, [path.stem for path in paths], 4, source["family"]), picture)
    return [path.relative_to(directory).as_posix() for path in paths], picture.relative_to(directory).as_posix()


def _is_of(made: Path, source: dict[str, str]) -> bool:
    """Whether the sounds in a directory of the graph are of this checkpoint."""
    about = made / manifest.ABOUT_SOUNDS
    return about.is_file() and params.read_json(about, "`dvc repro`").get("checkpoint") == source["checkpoint"]


def _metrics(root: Path, source: dict[str, str]) -> dict[str, Any]:
    """The metrics of the evaluation of this very checkpoint; empty if there is none."""
    path = root / "data" / "metrics" / "evaluate" / f"{source['family']}.json"
    fitting = path.is_file() and _is_of(root / "data" / "generated" / source["family"], source)
    return params.read_json(path, "`dvc repro`") if fitting else {}


def hours_by_label(checkpoint: Path, root: Path, family: str) -> dict[str, float]:
    """Hours of the clips that its own training used, by the labels that the project's catalog has for them, most first."""
    document = params.read_yaml(root / "params.yaml")
    variant = document.get("families", {}).get(family, {}).get("clips")
    catalog, table = root / "data" / "catalog" / f"{variant}.parquet", checkpoint / manifest.TRAINED_ON_FILE
    if not catalog.is_file() or not table.is_file():
        return {}
    rows = shards.read_rows(table, manifest.TRAINED_ON, ["clip_id", "seconds", "earlier"])
    seconds = {row["clip_id"]: row["seconds"] or 0.0 for row in rows if not row["earlier"]}
    hours: dict[str, float] = defaultdict(float)
    for row in shards.read_rows(catalog, manifest.CATALOG, ["clip_id", "labels"]):
        for label in row["labels"] if row["clip_id"] in seconds else ():
            hours[label] += seconds[row["clip_id"]] / 3600
    return dict(sorted(hours.items(), key=lambda item: (-item[1], item[0])))
