"""Score a family's generated sounds against real clips, with the ruler beside every score, and write the page to look at."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from soundmill import manifest, shards, stage
from soundmill.audio.flac import write_wav
from soundmill.errors import UserError
from soundmill.evaluation import embedders, features, memorisation, protocol, subsets
from soundmill.evaluation.report import GALLERY, Card, Chip, Heard, Section, best_and_worst, copies, write_report
from soundmill.params import SampleRate, Seed, StageParams
from soundmill.stage import Context, Input, Shown

CODEC_EXAMPLES = 4  # clips through the codec to hear on the page, at most


class EvaluateParams(StageParams):
    embedders: list[Literal["tagger", "yamnet", "vggish", "panns_cnn14_16k", "panns_cnn14_32k", "clap"]] = Field(
        min_length=1, description="who judges; each adds its own metrics"
    )
    reference: Literal["test", "all"] = Field(description="the real clips that generated sounds are measured against")
    bootstrap: int = Field(ge=0, le=100_000, description="resamples by clip for the 95 % intervals; 0: no intervals")
    probe_clips: int = Field(ge=0, description="real clips with one label that the linear probe is fitted on, at most; 0: no probe")
    training_clips: int = Field(ge=0, description="training clips among which copies are looked for, at most; 0: no search")
    subsets: list[Literal["events", "labels", "categories"]] = Field(
        description="ways to group the prompts; each group is scored by itself as well"
    )
    examples: int = Field(ge=0, le=100, description="generated sounds to hear on the page, each next to its reference")
    sample_rate: SampleRate = Field(description="of the clips")
    seed: Seed

    @field_validator("embedders", "subsets")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("one is named twice")
        return names


def run(
    params: EvaluateParams,
    ctx: Context,
    generated: Input,
    codec: Input,
    clips: Input,
    catalog: Input,
    tagger: Input,
    report: Shown,
) -> dict[str, Any]:
    """Score the sounds in `generated` (`<clip id>.wav`) and the family's codec in `codec` against real clips."""
    real = read_catalog(catalog)
    files = {"generated": sound_files(generated), "codec": {path.stem: path for path in sorted(codec.glob("*.wav"))}}
    how_made = "reconstructed" if made_by(generated) == "reconstruct" else "generated"
    names, unavailable = usable_embedders(params.embedders)
    digests = {name: embedders.digest(name, tagger) for name in names}
    judges = [features.Judge(name, tagger, params.sample_rate) for name in names]
    sets = protocol.choose_sets(real, files["generated"], files["codec"], params.reference, params.probe_clips, params.seed)
    wanted = by_shard(real, sets.real(), clips)
    sounds = len(sets.real()) + sum(map(len, files.values())) + len(features.MADE_UP) * len(files["generated"])
    with ctx.progress(sounds * len(judges), "embed") as tick:
        library = protocol.hear(judges, wanted, files, params.seed, ctx.scratch / "embeddings", ctx.workers, tick)
    ctx.found_damaged(ctx.scratch / "embeddings", library.damaged)
    parts = {grouping: grouped(real, sets, grouping) for grouping in params.subsets}
    scored = 1 + sum(subsets.can_be_scored(part) for found in parts.values() for part in found.values())
    with ctx.progress(scored * len(names) * (1 + params.bootstrap), "score", unit="resample") as tick:

        def score(part: protocol.Sets, name: str) -> dict[str, dict[str, Any]]:
            return protocol.score(library, names, part, params.bootstrap, params.seed, ctx.scratch / name, ctx.workers, tick)

        results = score(sets, "scores")
        of_parts = {
            grouping: {
                name: {"counts": {"generated": len(part.generated), "reference": len(part.reference)}}
                | (protocol.scores(score(part, f"scores-{grouping}-{name}")) if subsets.can_be_scored(part) else {})
                for name, part in found.items()
            }
            for grouping, found in parts.items()
        }
    metrics = protocol.publish(results, sets, library, digests, unavailable, params.reference)
    metrics |= {"subsets": of_parts} if of_parts else {}
    memorised = look_for_copies(params, ctx, judges[0], real, sets, files["generated"], clips)
    warnings = protocol.warnings(results, sets, library, unavailable) + about_subsets(sets, parts)
    if memorised:
        ctx.found_damaged(ctx.scratch / "embeddings", memorised.damaged)
        metrics |= {key: protocol.rounded(value) for key, value in memorised.metrics().items()}
        metrics["counts"] |= {"training": memorised.training, "held_out": len(memorised.held_out)}
        warnings += memorised.warnings()
    for warning in warnings:
        print(f"{ctx.name}: {warning}")

    by_id = {clip.clip_id: clip for clip in real}

    def show() -> None:
        shown = choose_examples(sets.generated, by_id, params.examples)
        shown_codec = choose_examples(sets.codec, by_id, min(params.examples, CODEC_EXAMPLES))
        heard = examples(shown, by_id, files["generated"], clips, results, params.sample_rate, how_made)
        coded = examples(shown_codec, by_id, files["codec"], clips, {}, params.sample_rate, "through the codec")
        back = "Real clips through the family's representation and back"
        through_codec = [Section(back, "what the codec alone loses", tuple(coded))] if coded else []
        write_report(
            report,
            ctx.family or ctx.name,
            metrics,
            warnings,
            [
                Section(f"{how_made.capitalize()} sounds next to real ones", "of the same clip id", tuple(heard)),
                *extremes(params, results, by_id, files["generated"], clips),
                *gallery(memorised, files["generated"], by_id, clips, params.sample_rate),
                *through_codec,
            ],
            by_label(results, by_id),
            f" (reference: {params.reference})",
        )
        track(ctx, report, heard, metrics, clips)

    ctx.show(f"the report ({report.name})", show)
    return metrics


def look_for_copies(
    params: EvaluateParams,
    ctx: Context,
    judge: features.Judge,
    real: list[protocol.Clip],
    sets: protocol.Sets,
    generated: dict[str, Path],
    clips: Path,
) -> memorisation.Memorisation | None:
    """The training clips that generated sounds are nearest to, and how near real sounds are that were not trained on."""
    training = protocol.training_clips(real, params.training_clips, params.seed)
    if not training:
        return None
    reference = set(sets.reference)
    held_out = {clip.clip_id for clip in real if clip.clip_id in reference and clip.split != "train"}
    roles = [
        protocol.sounds_in(generated),
        *(protocol.clips_in(by_shard(real, ids, clips), params.sample_rate) for ids in (held_out, training)),
    ]
    with ctx.progress(2 * sum(map(len, roles)), "look for copies") as tick:
        return memorisation.look(judge, *roles, ctx.scratch / "embeddings", ctx.workers, tick)


def extremes(
    params: EvaluateParams,
    results: dict[str, dict[str, Any]],
    by_id: dict[str, protocol.Clip],
    files: dict[str, Path],
    clips: Path,
) -> list[Section]:
    """The best, middling and worst generated sounds by the first classifier's KL, each next to its real clip."""
    judge = next((name for name in params.embedders if "kl_of" in results.get(name, {})), None)
    if judge is None or not params.examples:
        return []
    parts = best_and_worst(results[judge]["kl_of"], "lower")
    return [
        Section(name, f"by KL ({judge})", tuple(examples(ids, by_id, files, clips, results, params.sample_rate, "generated")))
        for name, ids in parts.items()
        if ids
    ]


def gallery(
    memorised: memorisation.Memorisation | None,
    generated: dict[str, Path],
    by_id: dict[str, protocol.Clip],
    clips: Path,
    sample_rate: int,
) -> list[Section]:
    """The closest pairs of a generated sound and a training clip, to hear."""
    if memorised is None:
        return []
    wanted = {near.copy_of or near.neighbour for near in memorised.worst(GALLERY)}
    waves: dict[str, np.ndarray] = {}
    for shard, ids in by_shard([by_id[clip_id] for clip_id in wanted], wanted, clips).items():
        waves |= dict(features.clips_of(shard, ids))

    def hear(role: str, clip_id: str) -> Heard:
        wave = waves[clip_id] if role == "training" else features.read_file(generated[clip_id], sample_rate)
        return Heard(role, wave, sample_rate)

    return [copies(memorised, hear)]


def grouped(real: list[protocol.Clip], sets: protocol.Sets, grouping: str) -> dict[str, protocol.Sets]:
    """The comparison within each group that a generated sound is in, by the group's name."""
    parts = {name: subsets.within(sets, ids) for name, ids in subsets.groups(real, grouping).items()}
    return {name: part for name, part in parts.items() if part.generated}


def about_subsets(sets: protocol.Sets, parts: dict[str, dict[str, protocol.Sets]]) -> list[str]:
    """What is in no group, and which groups are too small."""
    said = []
    for grouping, found in parts.items():
        outside = len(sets.generated) - sum(len(part.generated) for part in found.values())
        if outside:
            said.append(f"subsets {grouping}: {outside} of {len(sets.generated)} generated sounds are in no group of it.")
        small = [name for name, part in found.items() if not subsets.can_be_scored(part)]
        if small:
            said.append(f"subsets {grouping}: under {subsets.FEWEST} sounds, so not scored: {', '.join(small)}.")
    return said


def track(ctx: Context, report: Path, heard: list[Card], metrics: dict[str, Any], clips: Path) -> None:
    """The page, the picture, what was scored, and the sounds as files, each beside its reference."""
    for name in ("index.html", "scores.md", "scores.json", "scores.csv", "scores.tex"):
        ctx.tracking.log_file(report / name, "report")
    ctx.tracking.log_figure(report / "ruler.png", "ruler.png")
    ctx.tracking.log_dataset(
        "reference", metrics["files"]["reference"], metrics["counts"]["reference"], clips, context="evaluation"
    )
    for card in heard:
        for kind, sound in zip(("generated", "reference"), card.sounds, strict=True):
            path = ctx.scratch / "heard" / f"{card.clip_id}.{kind}.wav"
            write_wav(path, sound.wave, sound.sample_rate)
            ctx.tracking.log_file(path, "sounds")


def by_label(results: dict[str, dict[str, Any]], clips: dict[str, protocol.Clip]) -> dict[str, dict[str, float]]:
    """Of each label the number of generated sounds that have it alone, and their mean KL and label accuracy."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, result in results.items():
        said = {
            f"kl_{name}": result.get("kl_of", {}),
            f"label_accuracy_{name}": {
                clip_id: guess in clips[clip_id].labels for clip_id, guess in result.get("predicted", {}).items()
            },
        }
        for key, of in said.items():
            for clip_id, value in of.items():
                if len(clips[clip_id].labels) == 1:
                    values[clips[clip_id].labels[0]][key].append(float(value))
    return {
        label: {"generated": max(map(len, found.values()))} | {key: protocol.rounded(fmean(of)) for key, of in found.items()}
        for label, found in sorted(values.items())
    }


def read_catalog(path: Path) -> list[protocol.Clip]:
    """Every real clip, sorted by id."""
    rows = shards.read_table(path, manifest.CATALOG).to_pylist()
    if not rows:
        raise UserError(f"{path}: no clips to measure against; remake it with `dvc repro`")
    clips = [
        protocol.Clip(
            clip_id=row["clip_id"],
            recording_id=row["recording_id"],
            shard=row["shard"],
            split=row["split"],
            labels=tuple(row["labels"] or ()),
            captions=tuple(row["captions"] or ()),
        )
        for row in rows
    ]
    return sorted(clips, key=lambda clip: clip.clip_id)


def sound_files(directory: Path) -> dict[str, Path]:
    """The sounds `<clip id>.wav` of a directory by id; none is an error."""
    found = {path.stem: path for path in sorted(directory.glob("*.wav"))}
    if not found:
        raise UserError(f"{directory}: no sounds (*.wav) to score; make them with `dvc repro`")
    return found


def made_by(directory: Path) -> str:
    """Whether a family's sounds were generated, or are its reconstructions of the clips (`generate`, `reconstruct`)."""
    path = directory / manifest.ABOUT_SOUNDS
    return json.loads(path.read_text(encoding="utf-8"))["made_by"] if path.is_file() else "generate"


def usable_embedders(wanted: list[str]) -> tuple[list[str], dict[str, str]]:
    """The embedders whose weights are here, and what the metrics say of the others; none at all is an error."""
    unavailable = {}
    for name in wanted:
        reason = embedders.unavailable(name)
        if reason:
            print(f"evaluate: {name} is skipped: {reason}")
            unavailable[name] = embedders.MISSING[name]
    names = [name for name in wanted if name not in unavailable]
    if not names:
        raise UserError("no embedder can be used; add `tagger`, which needs no download, to evaluate.embedders")
    return names, unavailable


def by_shard(real: list[protocol.Clip], wanted: set[str], clips: Path) -> dict[Path, set[str]]:
    """Which of the wanted clips lie in which shard."""
    found: dict[Path, set[str]] = {}
    for clip in real:
        if clip.clip_id in wanted:
            found.setdefault(clips / shards.shard_name(clip.shard), set()).add(clip.clip_id)
    return found


def choose_examples(ids: tuple[str, ...], clips: dict[str, protocol.Clip], count: int) -> list[str]:
    """Ids to show, by label: one of each set of labels in turn, until there are enough."""
    turns: dict[tuple[str, ...], int] = {}
    order = []
    for clip_id in ids:
        labels = clips[clip_id].labels
        turns[labels] = turns.get(labels, 0) + 1
        order.append((turns[labels], labels, clip_id))
    return [clip_id for _, clip_id in sorted(turn[1:] for turn in sorted(order)[:count])]


def examples(
    ids: list[str],
    by_id: dict[str, protocol.Clip],
    files: dict[str, Path],
    clips: Path,
    results: dict[str, dict[str, Any]],
    sample_rate: int,
    what: str,
) -> list[Card]:
    """The sounds to hear, each with its real clip, what was asked for and what the embedders say of it."""
    real_clips = [by_id[clip_id] for clip_id in ids]
    waves = {}
    for shard, wanted in by_shard(real_clips, set(ids), clips).items():
        waves |= dict(features.clips_of(shard, wanted))
    cards = []
    for clip_id in ids:
        clip = by_id[clip_id]
        caption = clip.captions[0] if clip.captions else ""
        chips = [
            Chip(f"{name} hears {guess} {'✓' if guess in clip.labels else '✗'}", guess in clip.labels)
            for name, result in sorted(results.items())
            for guess in [result.get("predicted", {}).get(clip_id)]
            if guess is not None
        ]
        chips += [
            Chip(f"KL {name} {result['kl_of'][clip_id]:.2f}") for name, result in sorted(results.items()) if "kl_of" in result
        ]
        sounds = (
            Heard(what, features.read_file(files[clip_id], sample_rate), sample_rate),
            Heard("real", waves[clip_id], sample_rate),
        )
        cards.append(Card(clip_id, ", ".join(clip.labels) or caption, caption, sounds, tuple(chips)))
    return cards


if __name__ == "__main__":
    stage.main(run, section="evaluate")
