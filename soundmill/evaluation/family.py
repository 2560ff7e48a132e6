"""Scores of a family's generated sounds against real clips, with the codec line, a linear probe and a search for copies.

The report has its sounds beside real ones, the best and the worst, the codec's, and the nearest training clips.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import manifest, shards
from soundmill.audio import tags
from soundmill.errors import UserError
from soundmill.evaluation import embedders, features, folders, ladder, memorisation, probe, report, scorer
from soundmill.evaluation import sets as sets_of
from soundmill.evaluation.library import Library, Members, Setup, about_damaged, embed, means_by_class, rounded
from soundmill.evaluation.protocols import EvaluateParams, Protocol
from soundmill.evaluation.scorer import Scored
from soundmill.evaluation.sets import CatalogClip, Sets
from soundmill.metrics import scores
from soundmill.page.sounds import Card, Chip, Section, Sound

CODEC_EXAMPLES = 4  # clips through the codec on the page, at most


@dataclass(frozen=True)
class Source:
    catalog: Sequence[CatalogClip]
    clips: Path  # directory of shards
    generated: Mapping[str, Path]
    codec: Mapping[str, Path]
    about: folders.About
    transferred: Mapping[str, Path] = field(default_factory=dict)  # left-out clips, in the model's timbre

    @property
    def reconstructed(self) -> bool:
        return self.about.made_by == "reconstruct"


@dataclass
class FamilyEvaluation:
    """A result: `metrics` is the JSON document, `of` has values of single clips by score, `guesses` the probes' by embedder."""

    metrics: dict[str, Any]
    of: dict[str, dict[str, float]]
    sets: Sets
    guesses: dict[str, probe.Guesses]
    memorised: memorisation.Memorisation | None = None
    damaged: list[str] = field(default_factory=list)


def read(catalog: Path, clips: Path, generated: Path, codec: Path) -> Source:
    """The sounds and clips in these places; an empty catalog or no generated sounds raise UserError."""
    sounds = sound_files(generated)
    if not sounds:
        raise UserError(f"{generated}: no sounds (*.wav) to score; generate them with `dvc repro`")
    transferred = sound_files(codec / manifest.TRANSFERRED)
    return Source(read_catalog(catalog), clips, sounds, sound_files(codec), folders.about(generated), transferred)


def read_catalog(path: Path) -> list[CatalogClip]:
    """Every real clip, sorted by id."""
    columns = [field.name for field in fields(CatalogClip)]
    rows = shards.read_table(path, manifest.CATALOG, columns).to_pylist()
    if not rows:
        raise UserError(f"{path}: no clips to compare with; rebuild it with `dvc repro`")
    for row in rows:
        row |= {name: tuple(row[name] or ()) for name in ("labels", "captions")}
    return sorted((CatalogClip(**row) for row in rows), key=lambda clip: clip.clip_id)


def shards_of(catalog: Iterable[CatalogClip], clips: Path, clip_ids: Collection[str]) -> dict[Path, set[str]]:
    """Ids of these clips by their shard in the directory `clips`."""
    by_shard: dict[Path, set[str]] = {}
    for clip in catalog:
        if clip.clip_id in clip_ids:
            by_shard.setdefault(clips / shards.shard_name(clip.shard), set()).add(clip.clip_id)
    return by_shard


def sound_files(directory: Path) -> dict[str, Path]:
    """The files `<clip id>.wav` of a directory by id."""
    return {path.stem: path for path in sorted(directory.glob("*.wav"))}


def evaluate(setup: Setup, source: Source, options: EvaluateParams, unavailable: Mapping[str, str]) -> FamilyEvaluation:
    """Score a family; `unavailable` has embedders that cannot be used, with the reason."""
    seed = setup.protocol.seed
    if options.training_clips:
        memorisation.first_embedder(setup)  # raises before anything is scored
    sets = sets_of.choose_sets(source.catalog, source.generated, source.codec, options.reference, options.probe_clips, seed)
    sounds = {
        "generated": features.in_files(source.generated),
        "codec": features.in_files(source.codec),
        "real": features.in_shards(shards_of(source.catalog, source.clips, sets.real())),
    }
    reference = Members.of("real", sets.reference)
    classes = {clip.clip_id: clip.labels[0] for clip in source.catalog if clip.labels}
    rungs = ladder.choose(Members.of("real", sets.floor), len(sets.generated), setup.ladder, classes, seed)
    climbing = scorer.climbing(setup, len(reference))
    library = embed(setup, sounds, reference, rungs.clips if rungs else None, climbing)
    library.texts = {clip.clip_id: clip.prompt for clip in source.catalog if clip.captions}
    guesses = _guess(library, sets) if sets.probe and sets.requested else {}
    scored = _score(library, sets, source, guesses, rungs)
    sides = {"generated": Members.of("generated", sets.generated), "reference": reference, "codec": Members.of("codec", sets.codec)}
    metrics = scorer.metrics_of(library, sides, scored) | {
        "reference": options.reference,
        "trained_against": list(source.about.trained_against),
        **source.about.facts(),
    }
    metrics["embedders"] |= {name: f"unavailable: {reason}" for name, reason in unavailable.items()}
    sizes = {name: len(getattr(sets, name)) for name in ("floor", "floor_reference", "codec_reference", "probe")}
    metrics["counts"] |= {**sizes, "labelled": len(sets.requested), "same_label_pairs": len(sets.partners)}
    metrics["warnings"] = [*_warnings(sets, unavailable), *metrics["warnings"]]
    if options.reference == "test" and (judged := manifest.judged_split(clip.split for clip in source.catalog)) != "test":
        metrics["warnings"].insert(0, f"Test has fewer than two clips, so the sounds are compared with {judged} clips.")
    if options.subsets:
        metrics["subsets"], warnings = _subsets(library, sets, source, guesses, options.subsets)
        metrics["warnings"] += warnings
    evaluation = FamilyEvaluation(metrics, scored.of, sets, guesses)
    training = sets_of.training_clips(source.catalog, options.training_clips, seed)
    if training:
        evaluation.memorised = _look_for_copies(setup, source, sets, training)
        evaluation.memorised.publish(metrics)
        library.damaged += evaluation.memorised.damaged
    if library.damaged:
        metrics["warnings"].append(about_damaged(library.damaged))
    evaluation.damaged = library.damaged
    return evaluation


def add_protocol(setup: Setup, source: Source, options: EvaluateParams, evaluation: FamilyEvaluation) -> None:
    """Add the scores of another protocol to a result, as a block of `protocols` by its name."""
    other = evaluate(setup, source, options.model_copy(update={"probe_clips": 0, "training_clips": 0}), {})
    name = setup.protocol.name
    remarks = [text for text in other.metrics.pop("warnings") if text not in evaluation.metrics["warnings"]]
    evaluation.metrics["warnings"] += [f"{name}: {text}" for text in remarks]
    evaluation.metrics.setdefault("protocols", {})[name] = other.metrics
    evaluation.damaged += other.damaged


def _score(
    library: Library, sets: Sets, source: Source, guesses: Mapping[str, probe.Guesses], rungs: ladder.Ladder | None = None
) -> Scored:
    """The protocol's scores, and the label accuracy by each embedder's probe."""
    seen = source.about.seen
    comparisons = replace(sets_of.comparisons(sets, library, source.reconstructed), ladder=rungs)
    scored = scorer.score(library.setup, library, comparisons, seen)
    for name, guessed in guesses.items():
        if sets.requested:
            _add_label_accuracy(scored, library.setup.protocol, sets, name, guessed)
            scored.check_rank(f"label_accuracy_{name}", "label_accuracy", name, seen)
    return scored


def _add_label_accuracy(scored: Scored, protocol: Protocol, sets: Sets, name: str, guessed: probe.Guesses) -> None:
    """The accuracy over the classified sounds; it is left out if there are none."""
    key = f"label_accuracy_{name}"
    requested = {clip_id: label for clip_id, label in sets.requested if clip_id in guessed.generated}
    if not requested:
        scored.left_out[key] = f"too few sounds are long enough for a patch of {name}"
        scored.warnings.append(f"{key} is left out: {scored.left_out[key]}.")
        return
    of, baselines = probe.label_accuracy(guessed, sets.probe, requested, sets.codec)
    scored.add(key, scores.mean_with_interval(of, protocol.seed, protocol.replicates))
    scored.baselines[key] = {role: rounded(value) for role, value in sorted(baselines.items())}


def _guess(library: Library, sets: Sets) -> dict[str, probe.Guesses]:
    members = (
        Members.of("real", (clip_id for clip_id, _, _ in sets.probe)),
        Members.of("generated", (clip_id for clip_id, _ in sets.requested)),
        Members.of("codec", sets.codec),
    )
    setup = library.setup
    names = [name for name in setup.protocol.embedders if not embedders.find(name).ratings]
    jobs = [shards.Job(name, (sets.probe, *(library.view(name, part) for part in members))) for name in names]
    with setup.progress(len(jobs), "probe", "embedder") as tick:
        guesses = shards.map_values(probe.guess, jobs, workers=setup.workers, progress=tick)
    return {job.name: guessed for job, guessed in zip(jobs, guesses, strict=True)}


def _subsets(
    library: Library, sets: Sets, source: Source, guesses: Mapping[str, probe.Guesses], groupings: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Scores of each group of generated sounds by grouping and name, and warnings."""
    scored, warnings = {}, []
    for grouping in groupings:
        groups = sets_of.groups(source.catalog, grouping)
        parts = {name: part for name, ids in groups.items() if (part := sets_of.within(sets, ids)).generated}
        scored[grouping] = {}
        for name, part in parts.items():
            scored[grouping][name] = {"counts": {"generated": len(part.generated), "reference": len(part.reference)}}
            if sets_of.can_be_scored(part):
                scored[grouping][name] |= _score(library, part, source, guesses).document()
        outside = len(sets.generated) - sum(len(part.generated) for part in parts.values())
        if outside:
            warnings.append(f"subsets {grouping}: {outside} of {len(sets.generated)} generated sounds are in no group.")
        small = [name for name, part in parts.items() if not sets_of.can_be_scored(part)]
        if small:
            warnings.append(f"subsets {grouping}: fewer than {sets_of.FEWEST} sounds, so not scored: {', '.join(small)}.")
    return scored, warnings


def _warnings(sets: Sets, unavailable: Mapping[str, str]) -> list[str]:
    warnings = [f"{name} was not used: {reason}. Then score again with `dvc repro -f`." for name, reason in unavailable.items()]
    if len(sets.floor) < len(sets.generated):
        warnings.append(f"The floor has only {len(sets.floor)} real clips, not {len(sets.generated)}, so its bias is larger.")
    if 0 < len(sets.codec) < len(sets.generated):
        warnings.append(
            f"The codec line has only {len(sets.codec)} clips, not {len(sets.generated)}, so its bias is larger; "
            "compare it with codec_floor, the same clips before the codec."
        )
    return warnings


def _look_for_copies(setup: Setup, source: Source, sets: Sets, training: set[str]) -> memorisation.Memorisation:
    """The nearest training clips of generated sounds and, for comparison, of held-out real ones."""
    reference = set(sets.reference)
    held_out = {clip.clip_id for clip in source.catalog if clip.clip_id in reference and clip.split != "train"}
    by_shard = [shards_of(source.catalog, source.clips, ids) for ids in (held_out, training)]
    real, trained = (list(features.in_shards(ids_of_shards).values()) for ids_of_shards in by_shard)
    return memorisation.search_for_copies(setup, list(features.in_files(source.generated).values()), real, trained)


def write_report(
    directory: Path, title: str, evaluation: FamilyEvaluation, source: Source, examples: int, terms: Mapping[str, Any]
) -> list[Card]:
    """Write the report; returns the cards of its `examples`. `terms`: `hours` of its training material, and `marks`."""
    kind = "reconstructed" if source.reconstructed else "generated"
    shown = cards(choose_examples(evaluation.sets.generated, source, examples), evaluation, source, kind)
    coded_ids = choose_examples(evaluation.sets.codec, source, min(examples, CODEC_EXAMPLES))
    coded = cards(coded_ids, evaluation, source, "through the codec")
    sections = [Section(f"{kind.capitalize()} sounds next to real ones", "of the same clip id", tuple(shown))]
    sections += _best_and_worst(evaluation, source) if examples else []
    if evaluation.memorised:
        sections.append(_copies(evaluation, source))
    if coded:
        back = "Real clips through the family's representation and back"
        sections.append(Section(back, "what the codec alone loses", tuple(coded)))
    if source.transferred:
        sections.append(_transferred(source))
    weights = f", {source.about.weights}" if source.about.weights else ""
    note = f" (reference: {evaluation.metrics['reference']}){weights}"
    of, classes, again = evaluation.of, by_label(evaluation, source), f"dvc repro evaluate@{title}"
    report.write_report(directory, title, evaluation.metrics, sections, of, classes, note, again, source.about.candidates, terms)
    return shown


def _transferred(source: Source) -> Section:
    """Sounds with labels that the model was not trained on, beside their transformations."""
    shown = []
    for clip_id, path in source.transferred.items():
        if original := source.transferred.get(f"{clip_id}{manifest.INPUT}"):
            sounds = _file("transferred", path, source), _file("real", original, source)
            shown.append(Card(clip_id, clip_id, "", sounds))
    return Section("Other sounds in the model's timbre", "clips of labels that it was not trained on", tuple(shown))


def choose_examples(ids: Iterable[str], source: Source, count: int) -> list[str]:
    """Ids to show: one of each set of labels in turn, until there are `count`."""
    labels_of = {clip.clip_id: clip.labels for clip in source.catalog}
    turns: dict[tuple[str, ...], int] = {}
    order = []
    for clip_id in ids:
        labels = labels_of[clip_id]
        turns[labels] = turns.get(labels, 0) + 1
        order.append((turns[labels], labels, clip_id))
    return [clip_id for _, clip_id in sorted(turn[1:] for turn in sorted(order)[:count])]


def cards(ids: Sequence[str], evaluation: FamilyEvaluation, source: Source, role: str) -> list[Card]:
    """Cards of sounds, each with its real clip, labels and scores."""
    files = source.codec if role == "through the codec" else source.generated
    clips = {clip.clip_id: clip for clip in source.catalog if clip.clip_id in set(ids)}
    real = _real(source, set(ids))
    made = []
    for clip_id in ids:
        clip = clips[clip_id]
        sounds = _file(role, files[clip_id], source), Sound("real", *real[clip_id], loops=source.about.loops)
        chips = tuple(_chips(clip, evaluation)) if files is source.generated else ()
        made.append(Card(clip_id, ", ".join(clip.labels) or clip.prompt, clip.prompt, sounds, chips))
    return made


def _chips(clip: CatalogClip, evaluation: FamilyEvaluation) -> Iterable[Chip]:
    for name, guesses in sorted(evaluation.guesses.items()):
        if (label := guesses.generated.get(clip.clip_id)) is not None:
            right = label in clip.labels
            yield Chip(f"{name} predicts {label} {'✓' if right else '✗'}", right)
    for key, of in sorted(evaluation.of.items()):
        if evaluation.metrics.get(key) is not None and clip.clip_id in of and not key.startswith("label_accuracy"):
            yield Chip(f"{key} {of[clip.clip_id]:.3g}")


def _file(role: str, path: Path, source: Source) -> Sound:
    wave, rate = features.read_channels(features.file(path.stem, path, ""))
    return Sound(role, wave.mean(axis=0), rate, loops=source.about.loops, made_by=tags.read(path))


def _real(source: Source, ids: set[str]) -> dict[str, tuple[np.ndarray, int]]:
    by_shard = shards_of(source.catalog, source.clips, ids)
    of_shards = (features.clips_of(shard, clip_ids) for shard, clip_ids in by_shard.items())
    return {clip_id: (wave.mean(axis=0), rate) for clips in of_shards for clip_id, wave, rate in clips}


def _best_and_worst(evaluation: FamilyEvaluation, source: Source) -> list[Section]:
    """The best, middling and worst generated sounds by the first classifier's KL, each next to its real clip."""
    key = next((f"kl_{name}" for name in evaluation.metrics["embedders"] if f"kl_{name}" in evaluation.of), None)
    if key is None:
        return []
    parts = report.best_and_worst(evaluation.of[key], "lower")
    note = f"by KL ({key.removeprefix('kl_')})"
    return [Section(name, note, tuple(cards(ids, evaluation, source, "generated"))) for name, ids in parts.items() if ids]


def _copies(evaluation: FamilyEvaluation, source: Source) -> Section:
    nearest = evaluation.memorised.worst(report.GALLERY)
    training = _real(source, {near.copy_of or near.neighbour for near in nearest})

    def sound_of(role: str, clip_id: str) -> Sound:
        if role == "generated":
            return _file(role, source.generated[clip_id], source)
        return Sound(role, *training[clip_id], loops=source.about.loops)

    return report.copies(evaluation.memorised, sound_of)


def by_label(evaluation: FamilyEvaluation, source: Source) -> dict[str, dict[str, float]]:
    """For each label, the number of generated sounds with only this label, and their mean KL and label accuracy."""
    labels = {clip.clip_id: clip.labels[0] for clip in source.catalog if len(clip.labels) == 1}
    by_classifier = {key: of for key, of in evaluation.of.items() if key.startswith(("kl_", "label_accuracy_"))}
    return means_by_class(by_classifier, labels.get)
