"""A card of one result: what a paper says about it, and what is needed to make it again."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from soundmill import disk
from soundmill.evaluation import figures, tables
from soundmill.evaluation.ladder import climbed
from soundmill.evaluation.score_rows import rows_of

CARD = "card.md"
COMPARABLE = (
    "Two results are comparable if protocol, embedders, weights and the reference's digest are the same, and the numbers of sounds "
    "and candidates are equal."
)


def write(directory: Path, title: str, metrics: Mapping[str, Any], command: str, candidates: int | None) -> None:
    """Write the card into a directory, and beside it its tables as LaTeX and its figures; each file atomically.

    All bytes depend only on the arguments, except those of the card's last section, which names the hardware.
    """
    pictures, _, faults = figures.draw(metrics)
    files = {**pictures, **{name: text.encode() for name, text in tables.latex_files(metrics).items()}}
    files[CARD] = f"{text(title, metrics, command, candidates, [*pictures], faults)}\n## Hardware\n\n{hardware()}\n".encode()
    for name, content in files.items():
        disk.write_atomically(directory / name, lambda temporary, content=content: temporary.write_bytes(content))


def text(
    title: str,
    metrics: Mapping[str, Any],
    command: str,
    candidates: int | None,
    pictures: Sequence[str],
    faults: Sequence[str],
) -> str:
    """The card in Markdown, without the hardware. `candidates`: sounds made per prompt, of which one was kept; None if unknown."""
    return "\n".join(_lines(title, metrics, command, candidates, pictures, faults))


def _lines(
    title: str,
    metrics: Mapping[str, Any],
    command: str,
    candidates: int | None,
    pictures: Sequence[str],
    faults: Sequence[str],
) -> Iterator[str]:
    yield from (f"# {title}", "", "```sh", command, "```", "")
    yield from ("| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(metrics, candidates)), "", COMPARABLE, "")
    yield from ("## Scores", "", tables.markdown(metrics))
    yield from (line for name in pictures for line in (f"![{name}]({name})", ""))
    why = {row.key: row.note for row in rows_of(metrics) if row.note} | metrics["left_out"]
    if why:
        yield from ("## Unfit or not measured", "", *(f"- `{key}`: {reason}" for key, reason in why.items()), "")
    if climbs := climbed(metrics):
        missing = metrics["ladder"].get("missing_class")
        yield from ("## The ladder", "", f"{metrics['ladder']['clips']} sounds each; (…): the metric is deaf to it.", "")
        yield from (tables.ladder_markdown(metrics), *(f"- {one.sentence()}" for one in climbs))
        yield from ([f"- The missing class is {missing}."] if missing else [])
        yield ""
    yield from ("## Warnings", "", *(f"- {text}" for text in [*metrics["warnings"], *faults] or ["none"]), "")


def _facts(metrics: Mapping[str, Any], candidates: int | None) -> Iterator[tuple[str, Any]]:
    counts, rate = metrics["counts"], metrics["sample_rate"]
    yield "protocol", f"{metrics['protocol']}, soundmill {metrics['soundmill']}"
    for role in metrics["files"]:
        seconds = f", {metrics['seconds'][role]:.0f} s" if role in metrics["seconds"] else ""
        yield f"{role} sounds", f"{counts[role]}{seconds}, digest {metrics['files'][role]}"
    others = {name: count for name, count in counts.items() if name not in metrics["files"]}
    yield "other counts", ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in others.items())
    yield "candidates per prompt", "unknown" if candidates is None else candidates
    yield "checkpoint", metrics.get("weights", "unknown")
    yield "trained against", ", ".join(metrics["trained_against"]) or "no embedder"
    if "chosen_by" in metrics:
        yield "weights chosen by", ", ".join(metrics["chosen_by"])
    yield "seed, resamples", f"{metrics['seed']}, {metrics['replicates']}"
    yield (
        "resampling",
        f"{metrics['resampler']}, {'directly to' if rate is None else f'to {rate} Hz, then to'} each embedder's rate",
    )
    yield "level of sounds", metrics["level"]
    for name, facts in metrics["embedders"].items():
        options = (
            {key: value for key, value in facts.items() if key not in ("weights", "embeddings")} if isinstance(facts, dict) else {}
        )
        shown = f"weights {facts['weights']}" if isinstance(facts, dict) else facts
        yield f"embedder {name}", ", ".join([shown, *(f"{key} {value}" for key, value in options.items())])
    for key in sorted(key for key in metrics if key.startswith("memorised_")):
        yield key.replace("_", " "), f"{metrics[key]:.1%}"


def hardware() -> str:
    """The machine that this process runs on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores, {platform.system()}"
