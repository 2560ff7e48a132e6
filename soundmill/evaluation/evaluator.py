"""Scores of folders of sounds under a protocol, with baselines and provenance: a table in the terminal, and a page with sounds."""

import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from soundmill import hashing, manifest, terminal
from soundmill.audio import tags
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.evaluation import comparison, features, folders, ladder, memorisation, protocols, report, scorer, waveforms
from soundmill.evaluation.library import Library, Members, Setup, about_damaged, embed, means_by_class, rounded
from soundmill.evaluation.score_rows import BETTER, METRICS, TITLES, rows_of
from soundmill.evaluation.scorer import Comparisons
from soundmill.page.sounds import LONGEST_SECONDS, Card, Chip, Section, Sound

MAX_CLASSES = 200  # folders that are shown as classes
NO_PROMPTS = "no prompts are given (--captions)"
UNPAIRED = "equal names are ignored (--unpaired)"
NO_PAIRS = "the folders have no ids in common"
WIDTH = 120  # of tables that are written to a file


@dataclass(frozen=True)
class Evaluation:
    """A result: `metrics` is the JSON document, `of` has values of single clips by score and id."""

    metrics: dict[str, Any]
    of: dict[str, dict[str, float]]
    generated: folders.Folder
    reference: folders.Folder
    paired: bool
    training: folders.Folder | None = None
    memorised: memorisation.Memorisation | None = None


def evaluate(
    setup: Setup,
    generated: Path,
    reference: Path,
    unpaired: bool = False,
    training: Path | None = None,
    captions: Path | None = None,
    reconstructions: bool = False,
) -> Evaluation:
    """Score the sounds below one folder against those below another.

    Sounds that cannot be decoded, or that lack a partner, raise a UserError naming them all. `unpaired`: equal ids are ignored.
    `reconstructions`: sounds are reconstructions of the reference's sounds with the same ids, so distances of waves are measured,
    too. `training`: a folder of training sounds, to search for copies of them. `captions`: a csv of prompts.
    """
    if training:
        memorisation.first_embedder(setup)  # raises before anything is scored
    folders_read = setup.read(generated, reference, *([training] if training else []))
    sides, trained = {"generated": folders_read[0], "reference": folders_read[1]}, folders_read[2] if training else None
    about = folders.about(generated)
    paired = not unpaired and folders.pairs(sides["generated"], sides["reference"])
    if reconstructions and not paired:
        raise UserError(
            f"{generated}: its names are not those in {reference}, so these are not reconstructions; leave out --paired"
        )
    if captions and not any(protocols.supports(name, protocols.CLAP_SCORE) for name in setup.protocol.embedders):
        raise UserError(f"{captions}: no embedder of {setup.protocol.label} reads captions; add --embedder clap")
    prompts = folders.read_captions(captions, sides["generated"]) if captions else {}
    members = {role: Members.of(role, folder.ids) for role, folder in sides.items()}
    sounds = {role: {sound.clip_id: sound for sound in folder.sounds} for role, folder in sides.items()}
    half, _ = _halves(members["reference"], setup.protocol.seed)
    classes_of_half = {name: _class_of(name) for name in half.ids}
    rungs = ladder.choose(half, len(members["generated"]), setup.ladder, classes_of_half, setup.protocol.seed)
    climbing = scorer.climbing(setup, len(members["reference"]))
    library = embed(setup, sounds, members["reference"], rungs.clips if rungs else None, climbing)
    library.texts = prompts
    reconstructions |= paired and about.made_by == "reconstruct"
    why_not = {"pairs": UNPAIRED if unpaired else NO_PAIRS, "prompts": NO_PROMPTS}
    comparisons = _comparisons(library, members, paired, reconstructions, why_not)
    scored = scorer.score(setup, library, replace(comparisons, ladder=rungs), about.seen)
    if not reconstructions:
        scorer.check_measured(setup.protocol, scored.left_out)
    metrics = scorer.metrics_of(library, members, scored)
    metrics["counts"] |= {"pairs": len(members["generated"]) if paired else 0}
    metrics["counts"] |= {role: len(library.sounds[role]) for role in features.SYNTHETIC}
    metrics["trained_against"] = list(about.trained_against)
    metrics |= about.facts()
    metrics["warnings"] += [f"{folder.root}: {remark}" for folder in sides.values() for remark in folder.remarks]
    classes = means_by_class(scored.of, _class_of)
    if 2 <= len(classes) <= MAX_CLASSES:
        metrics["classes"] = classes
    memorised = None
    if trained:
        roles = [folder.sounds for folder in (*sides.values(), trained)]
        memorised = memorisation.search_for_copies(setup, *roles)
        memorised.publish(metrics)
        metrics["files"]["training"] = features.list_digest({sound.clip_id: sound.key for sound in trained.sounds})
        library.damaged += memorised.damaged
    if library.damaged:
        metrics["counts"]["damaged"] = len(library.damaged)
        metrics["warnings"].append(about_damaged(library.damaged))
    return Evaluation(metrics, scored.of, sides["generated"], sides["reference"], paired, trained, memorised)


def _comparisons(
    library: Library, members: Mapping[str, Members], paired: bool, reconstructions: bool, why_not: Mapping[str, str]
) -> Comparisons:
    generated, reference = members["generated"], members["reference"]
    sets = {"generated": (generated, reference), "floor": _halves(reference, library.setup.protocol.seed)}
    pairs, prompts = {"generated": (generated, reference)} if paired else {}, {}
    for role in features.SYNTHETIC:
        sounds = Members.of(role, library.sounds[role])
        sets[role] = sounds, reference
        pairs |= {role: (sounds, reference.only(sounds.ids))} if paired else {}
    if library.texts:
        texts = Members.of("prompts", library.texts)
        prompts = {"generated": (generated, texts)} | ({"floor": (reference, texts)} if paired else {})
        prompts |= {role: (library.synthetic(role, texts.ids), texts) for role in features.SYNTHETIC}
    waves = (generated, reference) if reconstructions else None
    return Comparisons(sets, pairs, prompts, waves, why_not=why_not)


def _halves(members: Members, seed: int) -> tuple[Members, Members]:
    ids = hashing.hash_order(members.ids, "halves", seed)
    return members.only(ids[: len(ids) // 2]), members.only(ids[len(ids) // 2 :])


def compare(setup: Setup, a: Path, b: Path, reference: Path, unpaired: bool = False) -> dict[str, Any]:
    """Compare two sets of sounds with the same ids; returns the JSON document, with the results of `comparison.compare` by score.

    For a score that ranks no models, `better` is "unranked".
    """
    protocol = setup.protocol
    sides = dict(zip(("a", "b", "reference"), setup.read(a, b, reference), strict=True))
    paired = not unpaired and folders.pairs(sides["a"], sides["reference"])
    if not folders.pairs(sides["a"], sides["b"], "add them; both models need the same names"):
        raise UserError(f"{a} and {b} have no ids in common: models are compared on the same prompts")
    members = {role: Members.of(role, folder.ids) for role, folder in sides.items()}
    sounds = {role: {sound.clip_id: sound for sound in folder.sounds} for role, folder in sides.items()}
    library = embed(setup, sounds, members["reference"])
    seen = folders.about(a).seen | folders.about(b).seen
    of_a = {"generated": members["a"], "reference": members["reference"]}
    why_not = {"pairs": UNPAIRED if unpaired else NO_PAIRS, "prompts": "two models are compared without prompts"}
    comparisons = _comparisons(library, of_a, paired, False, why_not)
    without_intervals = replace(setup, protocol=protocol.model_copy(update={"replicates": 0}))
    scored = scorer.score(without_intervals, library, comparisons, seen)
    results, left_out = {}, dict(scored.left_out)
    specs = [spec for spec in protocol.scores if spec.key not in left_out]
    with setup.progress(len(specs) * (1 + protocol.replicates), "compare", "resample") as tick:
        for spec in specs:
            views = [library.view(spec.embedder, members[role]) for role in sides]
            first, second, real = (scorer.side(view, spec.metric) for view in views)
            try:
                results[spec.key] = comparison.compare(
                    spec.metric, first, second, real, seed=protocol.seed, replicates=protocol.replicates, progress=tick
                )
            except UserError as error:
                left_out[spec.key] = str(error)
    scorer.check_measured(protocol, left_out)
    for key in scored.unranked.keys() & results.keys():
        results[key]["better"] = "unranked"
    return {
        **scorer.provenance(setup),
        "counts": {role: len(folder.sounds) for role, folder in sides.items()}
        | ({"damaged": len(library.damaged)} if library.damaged else {}),
        "files": {role: library.digest(members[role]) for role in sides},
        "comparison": {
            key: {name: rounded(value) if isinstance(value, float) else value for name, value in result.items()}
            for key, result in results.items()
        },
        "left_out": left_out,
        "unranked": scored.unranked,
        "warnings": [f"{key}: {text}" for key, result in results.items() for text in result["warnings"]]
        + [f"{key} is left out: {why}." for key, why in left_out.items()]
        + [f"{key} ranks no models: {why}." for key, why in scored.unranked.items()]
        + ([about_damaged(library.damaged)] if library.damaged else []),
    }


def _class_of(clip_id: str) -> str:
    """The top-level folder; empty if there is none."""
    return clip_id.partition("/")[0] if "/" in clip_id else ""


def show(metrics: Mapping[str, Any]) -> None:
    console = open_console()
    rows = rows_of(metrics)
    counts, seconds = metrics["counts"], metrics["seconds"]
    label = escape(metrics["protocol"])
    console.print(
        f"[bold]{label}[/bold]  {counts['generated']} generated sounds ({seconds['generated']:.0f} s) against "
        f"{counts['reference']} real ones ({seconds['reference']:.0f} s)"
    )
    cells = report.texts(rows, named="key")
    table = terminal.table("score", *cells.columns[1:], bold="value")
    for line in cells.to_numpy().tolist():
        table.add_row(*line)
    console.print(table)
    if any(row.unranked for row in rows):
        console.print(report.DAGGER)
    for sentence in metrics["comparable"]:
        console.print(f"= {sentence}", soft_wrap=True, markup=False)
    for one in ladder.climbed(metrics):
        console.print(one.sentence(), soft_wrap=True, markup=False)
    for key in sorted(key for key in metrics if key.startswith("memorised_") and not key.endswith("_real")):
        real = metrics.get(f"{key}_real")
        console.print(f"{key}: {metrics[key]:.1%} of generated sounds" + ("" if real is None else f", {real:.1%} of real ones"))
    show_warnings(console, metrics["warnings"])


def show_comparison(document: Mapping[str, Any], a: Path, b: Path) -> None:
    console = open_console()
    sides = escape(f"A {a}, B {b}: {document['counts']['a']} sounds each")
    console.print(f"[bold]{escape(document['protocol'])}[/bold]  {sides}")
    table = terminal.table("score", "A", "B", "A − B", "95 %", "p", "better")
    for key, result in document["comparison"].items():
        interval = f"{result['low']:.3g} … {result['high']:.3g}" if "low" in result else "–"
        better = {"a": "A", "b": "B", "neither": "neither", "unranked": "ranks none"}.get(result.get("better"), "–")
        values = [f"{result[name]:.3g}" for name in ("a", "b", "difference")]
        table.add_row(key, *values, interval, f"{result['p']:.3g}" if "p" in result else "–", better)
    console.print(table)
    show_warnings(console, document["warnings"])


def show_warnings(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        console.print(f"· {warning}", style="yellow", soft_wrap=True, markup=False)  # markup off: warnings may contain file names


def open_console() -> Console:
    """A console for tables: as wide as the terminal, or WIDTH in a file."""
    console = terminal.console(highlight=False)
    return console if console.is_terminal else terminal.console(highlight=False, width=WIDTH)


def write(evaluation: Evaluation, directory: Path) -> None:
    """Write the page, and beside it the numbers as JSON, CSV, LaTeX and Markdown."""
    sections = _best_and_worst(evaluation)
    if evaluation.memorised:
        of = {"generated": evaluation.generated, "training": evaluation.training}
        sections.append(report.copies(evaluation.memorised, lambda role, clip_id: _beginning(role, of[role], clip_id)))
    classes = evaluation.metrics.get("classes")
    report.write_report(directory, title(evaluation), evaluation.metrics, sections, evaluation.of, classes)


def title(evaluation: Evaluation) -> str:
    folders = (os.fsencode(side.root.resolve().name) for side in (evaluation.generated, evaluation.reference))
    return " against ".join(manifest.escape_path(name) for name in folders)


def _best_and_worst(evaluation: Evaluation) -> list[Section]:
    """By KL if sounds are paired, else by the Fréchet distance per clip, which may rate silence well."""
    kl = ("kl_", "reverse_kl_", "exact_kl_")
    ranking = min(evaluation.of, key=lambda key: (not key.startswith(kl), not key.startswith(scorer.PER_CLIP)), default=None)
    if ranking is None:
        return []
    metric = max((name for name in METRICS if ranking.startswith(name)), key=len)
    by = ranking.removeprefix(metric).strip("_") or ("waves" if metric in waveforms.METRICS else "clap")
    note = f"sounds by {TITLES[metric]} ({by}){f'; {report.DAGGER}' if ranking in evaluation.metrics['unranked'] else ''}"
    parts = report.best_and_worst(evaluation.of[ranking], BETTER[metric])
    return [Section(name, note, tuple(_card(evaluation, clip_id) for clip_id in ids)) for name, ids in parts.items()]


def _card(evaluation: Evaluation, clip_id: str) -> Card:
    sounds = [_beginning("generated", evaluation.generated, clip_id)]
    if evaluation.paired:
        sounds.append(_beginning("real", evaluation.reference, clip_id))
    scored = {key: of for key, of in sorted(evaluation.of.items()) if evaluation.metrics.get(key) is not None}
    chips = [Chip(f"{key} {of[clip_id]:.3g}") for key, of in scored.items() if clip_id in of]
    return Card(clip_id, clip_id.rpartition("/")[2], clip_id.rpartition("/")[0], tuple(sounds), tuple(chips))


def _beginning(role: str, folder: folders.Folder, clip_id: str) -> Sound:
    """The beginning of a sound at its own sample rate."""
    sound = next(sound for sound in folder.sounds if sound.clip_id == clip_id)
    parts = [np.zeros(0, np.float32)]
    try:
        rate, blocks = decode.decode_blocks(sound.path, features.MAX_SECONDS)
        with closing(blocks):
            while sum(map(len, parts)) <= LONGEST_SECONDS * rate and (block := next(blocks, None)) is not None:
                parts.append(block)
    except decode.DecodeError as error:
        return Sound(role, parts[0], 1, f"{sound.shown}: {error}; it could be decoded when it was scored")
    return Sound(role, np.concatenate(parts), rate, made_by=tags.read(Path(os.fsdecode(sound.path))))
