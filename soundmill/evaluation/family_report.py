"""The report of a family: its sounds beside real ones, the best and the worst, the codec's, and the nearest training clips."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import manifest
from soundmill.audio import tags
from soundmill.evaluation import features, report
from soundmill.evaluation.family import FamilyEvaluation, Source, shards_of
from soundmill.evaluation.library import means_by_class
from soundmill.evaluation.sets import CatalogClip
from soundmill.page.sounds import Card, Chip, Section, Sound

CODEC_EXAMPLES = 4  # clips through the codec on the page, at most


def write(
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
    files = source.transferred
    pairs = [
        (clip_id, path, files[f"{clip_id}{manifest.INPUT}"])
        for clip_id, path in files.items()
        if f"{clip_id}{manifest.INPUT}" in files
    ]
    shown = [
        Card(clip_id, clip_id, "", (_file("transferred", output, source), _file("real", original, source)))
        for clip_id, output, original in pairs
    ]
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
    return [
        Card(
            clip_id,
            ", ".join(clips[clip_id].labels) or clips[clip_id].prompt,
            clips[clip_id].prompt,
            (_file(role, files[clip_id], source), Sound("real", *real[clip_id], loops=source.about.loops)),
            tuple(_chips(clips[clip_id], evaluation)) if files is source.generated else (),
        )
        for clip_id in ids
    ]


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
