"""Mix pairs of training clips and join their captions.

The levels by `pairing`: `pressure`: equal pressure levels (Tokozume et al. 2018; TANGO §2.3); `random`: a drawn difference of them;
`fixed`: p = 0.5, whatever the levels.
"""

import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from soundmill import hashing, manifest, page, shards, stage, terminal
from soundmill.audio.figures import save_png
from soundmill.audio.flac import decode_flac, decode_mono, encode_flac, flac_rate
from soundmill.audio.levels import FULL_SCALE, join_captions, mix, mix_ratio, pressure_level
from soundmill.errors import UserError
from soundmill.page.sounds import Card, Chip, Section, Sound, draw_section
from soundmill.params import Seed, StageParams
from soundmill.stage import Context, Input, Output, Shown

LOWEST_SNR, HIGHEST_SNR = -5.0, 20.0  # dB, of `random`: AudioGen's (Kreuk et al. 2022), with the first sound as the signal
EXAMPLES = 6  # on the page
MIXES_AT_ONCE = 256  # limits the compressed clips in a worker's memory; larger batches read each row group less often


class MixupParams(StageParams):
    pairing: Literal["pressure", "random", "fixed", "none"]
    ratio: float = Field(ge=0, le=100, description="mixes per captioned training clip")
    partner: Literal["any", "other"] = Field(
        description="other: prefer a clip with different labels (or captions, if it has no labels)"
    )
    clips: str = Field(min_length=1, description="clip variant")
    seed: Seed


def run(
    params: MixupParams, ctx: Context, clips: Input, catalog: Input, mixes: Output, picture: Shown, report: Shown
) -> dict[str, Any]:
    """Write the mixes of the training split; clips without a caption cannot be mixed and are counted.

    `picture` has the distributions of p and of the level difference, `report` also some mixes with their two sounds.
    """
    rows = shards.read_table(catalog, manifest.CATALOG).to_pylist()
    training = [row for row in rows if row["split"] == "train"]
    captioned = {row["clip_id"]: row for row in training if row["captions"]}
    num_mixes = 0 if params.pairing == "none" else int(params.ratio * len(captioned) + 0.5)
    candidates = []
    for row in captioned.values():
        kinds = frozenset(row["labels"] or row["captions"]) if params.partner == "other" else frozenset()
        candidates.append(Candidate(row["clip_id"], row["recording_id"], kinds))
    pairs = plan_pairs(candidates, num_mixes, params.seed)
    places = _places(clips) if pairs else {}
    plans = [_plan(params, captioned[first.clip_id], captioned[second.clip_id], places, clips) for first, second in pairs]
    if len({plan["clip_id"] for plan in plans}) < len(plans):
        raise UserError("params.yaml: mixup.seed: two mixes have the same id; choose another seed")

    count = 1 + max((row["shard"] for row in rows), default=0)
    by_shard: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for plan in sorted(plans, key=lambda plan: plan["clip_id"]):
        by_shard[shards.shard_of(plan["clip_id"], count)].append(plan)
    # If there are no mixes, write one empty shard, so that readers of the directory need no special case.
    jobs = [
        shards.Job(shards.shard_name(index), (some,), len(some), hashing.digest(list(map(_key, some))))
        for index, some in sorted(by_shard.items()) or [(0, [])]
    ]
    made = ctx.map_shards(mix_shard, jobs, mixes, unit="mix")
    if len(pairs) < num_mixes:
        terminal.say(f"mixup: {len(pairs)} of {num_mixes} mixes: no more pairs of different recordings were found")
    if len(captioned) < len(training) and params.pairing != "none" and params.ratio > 0:
        terminal.say(f"mixup: {len(training) - len(captioned)} of {len(training)} training clips have no caption and are not mixed")
    spreads = _spreads(mixes)
    ctx.show(f"the distributions ({picture.name})", partial(_draw, spreads, picture), picture)
    ctx.show(f"the page ({report.name})", partial(_write_page, params.pairing, plans, mixes, picture, report), report)
    return {
        "mixes": len(pairs),
        "missing_mixes": num_mixes - len(pairs),
        "training_clips": len(training),
        "without_caption": len(training) - len(captioned),
        "scaled_down": made.counts.get("scaled_down", 0),
        "silent": made.counts.get("silent", 0),
        **({name: {"mean": round(of.mean(), 4), "deviation": round(of.std(), 4)} for name, of in spreads.items()} if pairs else {}),
    }


def _spreads(mixes: Path) -> dict[str, np.ndarray]:
    """Of each mix p, and how many dB of pressure level its first sound is above the second, before mixing and in the mix."""
    columns = ["ratio", "level_first", "level_second"]
    table = pa.concat_tables(shards.read_table(path, manifest.MIXES, columns) for path in shards.shard_paths(mixes))
    ratio, first, second = (column.to_numpy() for column in table.columns)
    after = first - second + 20 * np.log10(ratio / (1 - ratio))
    return {"ratio": ratio, "level_difference_before": first - second, "level_difference_after": after}


def _draw(spreads: dict[str, np.ndarray], picture: Path) -> None:
    from soundmill.drawing import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    shares, levels = figure.subplots(1, 2)
    shares.hist(spreads["ratio"], bins=np.linspace(0, 1, 41))
    shares.set_xlabel("p, share of the first sound")
    differences = {"before mixing": spreads["level_difference_before"], "in the mix": spreads["level_difference_after"]}
    widest = max(1.0, np.abs(np.concatenate(list(differences.values()))).max(initial=0))
    for name, values in differences.items():
        levels.hist(values, bins=np.linspace(-widest, widest, 41), alpha=0.6, label=name)
    levels.set_xlabel("level of the first sound above the second, dB")
    levels.legend()
    for axes in (shares, levels):
        axes.set_ylabel("mixes")
    save_png(figure, picture)


def _write_page(pairing: str, plans: list[dict[str, Any]], mixes: Path, picture: Path, report: Path) -> None:
    chosen = {plan["clip_id"]: plan for plan in sorted(plans, key=lambda plan: hashing.digest(plan["clip_id"]))[:EXAMPLES]}
    sounds = dict(_read_sounds(list(chosen.values())))
    cards = []
    for path in shards.shard_paths(mixes):
        clip_ids = shards.read_table(path, manifest.MIXES, ["clip_id"])["clip_id"].to_pylist()
        numbers = [number for number, clip_id in enumerate(clip_ids) if clip_id in chosen]
        for row in shards.read_rows(path, manifest.MIXES, rows=numbers):
            flacs = {"mix": row["audio"]["bytes"], **{f"{role} sound": sounds[row[role]] for role in ("first", "second")}}
            notes = {f"{role} sound": (f"{row[role]}, {row[f'level_{role}']:.1f} dB",) for role in ("first", "second")}
            shown = [Sound(role, decode_mono(flac), flac_rate(flac), notes=notes.get(role, ())) for role, flac in flacs.items()]
            cards.append(Card(row["clip_id"], row["caption"], "", tuple(shown), (Chip(f"p = {row['ratio']:.3f}"),)))
    faults: list[str] = []
    text = page.render(
        page.__name__,
        "mixes.html",
        title="Mixes of training clips",
        num_mixes=len(plans),
        pairing=pairing,
        picture=picture.read_bytes(),
        section=draw_section(Section("Examples", "each with its two sounds as they were", tuple(cards)), faults),
        faults=faults,
    )
    report.write_text(text, encoding="utf-8")


# Bounds of the search for a partner of another kind, before one of the same kind is used.
RECORDINGS_TRIED = 256
CLIPS_TRIED = 8  # per recording


@dataclass(frozen=True)
class Candidate:
    """A clip to mix, preferably with a clip that shares none of its `kinds`."""

    clip_id: str
    recording_id: str
    kinds: frozenset[str]


def plan_pairs(candidates: Sequence[Candidate], count: int, seed: int) -> list[tuple[Candidate, Candidate]]:
    """At most `count` distinct pairs (in either order), each of two recordings; fewer if there are not enough clips.

    Every clip is `first` equally often (±1). Clips and partners are chosen by hash, so the order of `candidates` does not matter,
    and an additional clip changes few other pairs.
    """
    turn = sorted(candidates, key=lambda one: (_hash(seed, "first", one.clip_id), one.clip_id))
    clips_of: dict[str, list[Candidate]] = {}
    for one in turn:
        clips_of.setdefault(one.recording_id, []).append(one)
    ring: list[tuple[int, str]] = []
    pairs: list[tuple[Candidate, Candidate]] = []
    used: set[frozenset[str]] = set()
    for index in range(count if len(clips_of) > 1 else 0):
        lap, place = divmod(index, len(turn))
        if not place:  # a new ring per lap: on a single ring, the recording after a wide gap would be chosen most often
            ring = sorted((_hash(seed, f"recording {lap}", name), name) for name in clips_of)
        first = turn[place]
        second = _partner(first, _hash(seed, f"second {lap}", first.clip_id), ring, clips_of, used)
        if second is not None:
            pairs.append((first, second))
            used.add(frozenset((first.clip_id, second.clip_id)))
    return pairs


def _partner(
    first: Candidate, point: int, ring: list[tuple[int, str]], clips_of: dict[str, list[Candidate]], used: set[frozenset[str]]
) -> Candidate | None:
    """The next clip on the ring from `point` that shares no kind with `first`, else the next allowed one."""
    start = bisect.bisect_left(ring, (point, ""))
    fallback = None
    for step in range(min(len(ring), RECORDINGS_TRIED)):
        _, name = ring[(start + step) % len(ring)]
        if name == first.recording_id:
            continue
        clips = clips_of[name]
        for turn in range(min(len(clips), CLIPS_TRIED)):
            second = clips[(point + turn) % len(clips)]
            if frozenset((first.clip_id, second.clip_id)) in used:
                continue
            if not first.kinds & second.kinds:
                return second
            fallback = fallback or second
    return fallback


def _hash(seed: int, role: str, key: str) -> int:
    return hashing.uint64(f"{seed}\0{role}\0{key}".encode())


def _places(clips: Path) -> dict[str, tuple[Path, int, str]]:
    """The location of each clip, shard and row, and the digest of the row."""
    places = {}
    for path in shards.shard_paths(clips):
        for number, row in enumerate(shards.read_rows(path, manifest.CLIPS, ["clip_id", "digest"])):
            places[row["clip_id"]] = path, number, row["digest"]
    return places


def _plan(
    params: MixupParams, first: dict[str, Any], second: dict[str, Any], places: dict[str, tuple[Path, int, str]], clips: Path
) -> dict[str, Any]:
    """Everything about a mix except its sound. `difference`: dB by which the first sound is louder in it; None: p is 0.5."""
    for row in (first, second):
        if row["clip_id"] not in places:
            raise UserError(f"{clips}: clip {row['clip_id']!r} of the catalog is missing; `dvc repro` rebuilds both")
    clip_id = "mix_" + hashing.digest(params.seed, first["clip_id"], second["clip_id"])[:12]
    captions = []
    for row in (first, second):
        drawn = int(hashing.digest(params.seed, clip_id, row["clip_id"]), 16)
        captions.append(row["captions"][drawn % len(row["captions"])])
    caption = join_captions(*captions)
    snr = LOWEST_SNR + (HIGHEST_SNR - LOWEST_SNR) * _hash(params.seed, "snr", clip_id) / 2**64
    difference = {"pressure": 0.0, "random": snr}.get(params.pairing)
    labels = sorted({*first["labels"], *second["labels"]})
    (*place_first, digest_first), (*place_second, digest_second) = places[first["clip_id"]], places[second["clip_id"]]
    return {
        "clip_id": clip_id,
        "caption": caption,
        "labels": labels,
        "difference": difference,
        "first": first["clip_id"],
        "second": second["clip_id"],
        "places": [tuple(place_first), tuple(place_second)],
        "digest": hashing.digest(difference, digest_first, digest_second, caption, labels),
    }


def mix_shard(plans: list[dict[str, Any]], output: Path, previous: Path | None = None) -> shards.Report:
    with shards.ItemWriter(output, manifest.MIXES, previous) as writer:
        for start in range(0, len(plans), MIXES_AT_ONCE):
            batch = {_key(plan): plan for plan in plans[start : start + MIXES_AT_ONCE]}
            sounds = dict(_read_sounds([plan for key, plan in batch.items() if key not in writer]))
            for _, plan, report in writer.new(batch.items()):
                writer.write(_mix(plan, sounds, report))
    return writer.report


def _key(plan: dict[str, Any]) -> str:
    return f"{plan['clip_id']} {plan['digest']}"


def _mix(plan: dict[str, Any], sounds: dict[str, bytes], report: shards.Report) -> dict[str, Any]:
    sample_rate = flac_rate(sounds[plan["first"]])
    first, second = decode_flac(sounds[plan["first"]]), decode_flac(sounds[plan["second"]])
    levels = pressure_level(first.mean(0), sample_rate), pressure_level(second.mean(0), sample_rate)
    ratio = 0.5 if plan["difference"] is None else mix_ratio(levels[0] - plan["difference"], levels[1])
    mixed = mix(first, second, ratio)
    peak = float(np.abs(mixed).max(initial=0))
    if peak > FULL_SCALE:  # avoid clipping; a mix that fits keeps its level
        mixed *= np.float32(FULL_SCALE / peak)
        report.count("scaled_down")
    report.count("silent", int(peak == 0))
    report.count("mixes")
    audio = {"bytes": encode_flac(mixed, sample_rate), "path": f"{plan['clip_id']}.flac"}
    kept = {key: plan[key] for key in ("clip_id", "caption", "labels", "first", "second", "digest")}
    numbers = {"ratio": ratio, "level_first": levels[0], "level_second": levels[1], "num_samples": mixed.shape[-1]}
    return {**kept, **numbers, "audio": audio}


def _read_sounds(plans: list[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """FLAC bytes of every clip in the plans; each row group is read once."""
    rows_of: dict[Path, list[int]] = defaultdict(list)
    for path, number in (place for plan in plans for place in plan["places"]):
        rows_of[path].append(number)
    for path, numbers in rows_of.items():
        for row in shards.read_rows(path, manifest.CLIPS, ["clip_id", "audio"], numbers):
            yield row["clip_id"], row["audio"]["bytes"]


if __name__ == "__main__":
    stage.main(run, section="mixup")
