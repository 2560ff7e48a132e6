"""Publishing a model: its checkpoint, attribution, card and sounds in one directory that lists every file with its SHA-256."""

import io
import json
import shutil
import warnings
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from soundmill import attribution, clips, hashing, manifest, params, provenance, shards, tracking
from soundmill.audio import figures
from soundmill.audio.tags import CHANGED, GENERATED, MadeBy
from soundmill.errors import UserError
from soundmill.exports import new_directory
from soundmill.models import live, registry
from soundmill.models.catalog import choose_balanced
from soundmill.models.components import registry as components
from soundmill.models.family import Model, can, check_weights, is_checkpoint, made_by, origin, use_weights
from soundmill.models.training import write_whole
from soundmill.models.waveform_unet.model import WaveformUNet
from soundmill.publishing import card
from soundmill.publishing.card import CODEC, NET
from soundmill.publishing.directory import CHECKPOINT, check_allowed, files_below, terms_of, write_sums

CARDS = ("MODEL_CARD.md", "README.md")  # equal; the hub shows the second
SAMPLES = 8
RATINGS = ("mos_", "preference_")  # tags of registered versions
NOT_TRAINED = "Train without them: `soundmill forget RECORDING`, then `dvc repro`; from another model if an earlier one used them"
LOADER, TAGS = "load.py", "tags.bin"


def find(model: str, root: Path | None) -> Path:
    """The checkpoint that is meant: a directory with one (of a codec or vocoder too), a published directory, or a family trained in
    the project."""
    path = Path(model)
    candidates = [path / CHECKPOINT, path, *([root / "data" / "models" / model] if root else [])]
    if (found := next((place for place in candidates if (place / "config.json").is_file()), None)) is None:
        trained = [place.parent.name for place in (root / "data" / "models").glob("*/config.json")] if root else []
        raise UserError(
            f"{model}: neither a directory with a checkpoint nor a family trained here{params.did_you_mean(model, trained)} "
            f"(there are: {', '.join(sorted(trained)) or 'none'}); `dvc repro` trains those in params.yaml"
        )
    return found


def recordings_of(root: Path | None) -> Path | None:
    return root / "data" / "corpus" / "recordings.parquet" if root else None


def publish(model: str, directory: Path, root: Path) -> list[Path]:
    """Write a new or empty directory with everything that goes with a model, or with a codec or vocoder; returns its files.

    UserError if a recording that it, its parts or an earlier training used may not be used for generative AI, or breaks the
    project's `corpus.terms`.
    """
    checkpoint = find(model, root)
    found = attribution.credits_of(checkpoint, recordings_of(root))
    check_allowed(model, found, terms_of(root), NOT_TRAINED)
    write = _write_model if is_checkpoint(checkpoint) else _write_component
    with new_directory(directory) as (partial, _):
        card.write_terms(found, partial)
        text = write(checkpoint, partial, found, directory.resolve().name, root)
        for file in CARDS:
            (partial / file).write_text(text, encoding="utf-8")
        write_sums(partial)
    return files_below(directory)


def _write_model(checkpoint: Path, directory: Path, found: list[attribution.Credit], name: str, root: Path) -> str:
    """Write a model with samples and its exported network; returns its card."""
    source = origin(checkpoint)
    family = registry.family(source["family"])
    check_weights(family.load(checkpoint), checkpoint)
    write_whole(checkpoint, directory / CHECKPOINT)
    whole = origin(directory / CHECKPOINT)  # another one if adapters were merged; sounds and scores are of the adapters
    trained = family.load(directory / CHECKPOINT)
    generated, metrics = root / "data/generated" / source["family"], root / "data/metrics/evaluate" / f"{source['family']}.json"
    samples, picture = _samples(root, source, directory, generated)
    command = 'generate "a dog barks"' if trained.condition == "caption" else "generate"
    changing = "upsample" if "upsample" in family.commands else "reconstruct"
    return card.of_model(
        name=name,
        family=source["family"],
        title=family.title,
        checkpoint=whole["checkpoint"],
        adapters=source["checkpoint"] if whole != source else None,
        condition=trained.condition,
        parameters=sum(weight.numel() for weight in trained.net.parameters()),
        corpus=tracking.corpus_name(params.read_yaml(root / "params.yaml")),
        found=found,
        labels=hours_by_label(checkpoint, root, source["family"]),
        metrics=params.read_json(metrics, "`dvc repro`") if metrics.is_file() and _is_of(generated, source) else {},
        listening=_listening(root, directory / CHECKPOINT),
        samples=samples,
        picture=picture,
        command=command if can(trained, "generate") else f"{changing} RECORDING",
        imported=params.read_json(directory / CHECKPOINT / "config.json", "`dvc repro`").get("imported"),
        exported=write_plain(directory / CHECKPOINT, trained, whole, directory),
        commit=provenance.capture(root).sha,
    )


def _write_component(checkpoint: Path, directory: Path, found: list[attribution.Credit], name: str, root: Path) -> str:
    """Write a codec or vocoder; returns its card. UserError if the checkpoint is neither."""
    what, kind = components.kind_in(checkpoint)
    if what == "codec":  # refused if it is not whole
        components.load_codec(checkpoint)
    else:
        components.load_vocoder(checkpoint, None)
    ignore = shutil.ignore_patterns(".gitignore")
    shutil.copytree(checkpoint, directory / CHECKPOINT, ignore=ignore, copy_function=shutil.copyfile)
    exported = write_codec(checkpoint, directory)
    digest, commit = hashing.tree_digest(checkpoint), provenance.capture(root).sha
    return card.of_component(name, what, kind, found, exported, digest=digest, commit=commit)


def _samples(root: Path, source: dict[str, str], directory: Path, made: Path) -> tuple[dict[str, str], str | None]:
    """Copy sounds in `made` that are of this very checkpoint, one of each set of labels (or prompt) in turn, with a picture.

    Returns their paths with what was asked for, and the picture's path.
    """
    catalog, asked = clips.of_family(root, source["family"]).catalog, {}
    if _is_of(made, source) and catalog.is_file():
        for row in shards.read_rows(catalog, manifest.CATALOG, ["clip_id", "labels", "captions"]):
            asked[row["clip_id"]] = sorted(row["labels"] or ()) or list(row["captions"] or ())[:1]
    if not (found := {clip_id: labels for clip_id, labels in asked.items() if (made / f"{clip_id}.wav").is_file()}):
        return {}, None
    (directory / "samples").mkdir()
    paths = {
        clip_id: Path(shutil.copyfile(made / f"{clip_id}.wav", directory / "samples" / f"{clip_id}.wav"))
        for clip_id in choose_balanced(found, SAMPLES)
    }
    words = {clip_id: ", ".join(found[clip_id]) for clip_id in paths}
    picture = directory / "samples" / "spectrograms.png"
    titles = [words[clip_id] or clip_id for clip_id in paths]
    figures.save_png(figures.draw_files(list(paths.values()), titles, 4, source["family"]), picture)
    named = {path.relative_to(directory).as_posix(): words[clip_id] for clip_id, path in paths.items()}
    return named, picture.relative_to(directory).as_posix()


def _listening(root: Path, checkpoint: Path) -> dict[str, float] | None:
    """Ratings of these weights in the project's listening tests; None if the store of runs does not answer."""
    try:
        versions = tracking.registered_models(root)
    except UserError:
        return None
    digest = hashing.model_digest(checkpoint)
    tags = [version.tags for version in versions if version.digest == digest]
    return {key: float(value) for of in tags for key, value in of.items() if key.startswith(RATINGS)}


def _is_of(made: Path, source: dict[str, str]) -> bool:
    about = made / manifest.ABOUT_SOUNDS
    return about.is_file() and params.read_json(about, "`dvc repro`").get("checkpoint") == source["checkpoint"]


def hours_by_label(checkpoint: Path, root: Path, family: str) -> dict[str, float]:
    """Hours of the clips that its own training used, by the labels that the project's catalog has for them, most first."""
    catalog, table = clips.of_family(root, family).catalog, checkpoint / manifest.TRAINED_ON_FILE
    if not catalog.is_file() or not table.is_file():
        return {}
    rows = shards.read_rows(table, manifest.TRAINED_ON, ["clip_id", "seconds", "earlier"])
    seconds = {row["clip_id"]: row["seconds"] or 0.0 for row in rows if not row["earlier"]}
    hours: dict[str, float] = defaultdict(float)
    for row in shards.read_rows(catalog, manifest.CATALOG, ["clip_id", "labels"]):
        for label in row["labels"] if row["clip_id"] in seconds else ():
            hours[label] += seconds[row["clip_id"]] / 3600
    return dict(sorted(hours.items(), key=lambda item: (-item[1], item[0])))


def write_plain(checkpoint: Path, model: Model, source: dict[str, str], directory: Path) -> str | None:
    """Write the network, the script and its tags into a directory, if the model can be exported; returns the network's name.

    `source` is the `origin` of the checkpoint.
    """
    if isinstance(model, WaveformUNet) and model.condition != "caption":
        use_weights(model, checkpoint, model.params.use)
        export_net(directory / NET, model)
        _write_script(directory, "generator.py", made_by(source, GENERATED))
        return NET
    return write_codec(checkpoint, directory)


def write_codec(checkpoint: Path, directory: Path) -> str | None:
    """Write the RAVE codec that a checkpoint is or has, its script and tags into a directory; returns the codec's name, if any."""
    try:
        codec = live.find(checkpoint)
    except UserError:
        return None
    live.export_streaming(directory / CODEC, codec)
    _write_script(directory, "codec.py", MadeBy(f"rave codec {codec.digest}", CHANGED))
    return CODEC


def _write_script(directory: Path, script: str, maker: MadeBy) -> None:
    shutil.copyfile(Path(__file__).with_name("scripts") / script, directory / LOADER)
    (directory / TAGS).write_bytes(maker.chunks)


class _Denoiser(nn.Module):
    """A waveform U-Net with the same inputs whether it has labels or not."""

    def __init__(self, model: WaveformUNet):
        super().__init__()
        self.net, self.by_label = model.net, model.condition == "labels"

    def forward(self, waves: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        return self.net(waves, level, labels) if self.by_label else self.net(waves, level)


def export_net(path: Path, model: WaveformUNet) -> None:
    """Write a waveform U-Net as TorchScript, for one sound (waves [1, C, T], level [1], label weights [1, labels]) → target."""
    labels = list(model.labels) if model.condition == "labels" else []
    sampling = model.params.sampling
    facts = {
        "sample_rate": model.sample_rate,
        "channels": model.channels,
        "samples": model.num_samples,
        "path": model.params.path,
        "labels": labels,
        "deviation": model.sigma_data,
        "steps": sampling.num_steps,
        "guidance": sampling.guidance_scale,
    }
    example = torch.zeros(1, model.channels, model.num_samples), torch.full((1,), 0.5), torch.zeros(1, len(labels))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prefers torch.export, whose files need the torch that wrote them
        traced = torch.jit.trace(_Denoiser(model).eval(), example, check_trace=False)
    buffer = io.BytesIO()  # torch would store a file's name in its bytes
    torch.jit.save(traced, buffer, {live.ABOUT: json.dumps(facts, sort_keys=True)})
    path.write_bytes(buffer.getvalue())
