"""Mix pairs of training clips at equal pressure level and join their captions (Tokozume et al. 2018; TANGO §2.3)."""

import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from soundmill import hashing, manifest, shards, stage, terminal
from soundmill.audio.flac import decode_mono, encode_flac, flac_rate
from soundmill.audio.levels import FULL_SCALE, join_captions, mix, mix_ratio, pressure_level
from soundmill.errors import UserError
from soundmill.params import Seed, StageParams
from soundmill.stage import Context, Input, Output

MIXES_AT_ONCE = 256  # limits the compressed clips in a worker's memory; larger batches read each row group less often


class MixupParams(StageParams):
    pairing: Literal["pressure", "random", "none"]  # random: both clips have equal weight, regardless of their levels
    ratio: float = Field(ge=0, le=100, description="mixes per captioned training clip")
    partner: Literal["any", "other"] = Field(
        description="other: prefer a clip with different labels (or captions, if it has no labels)"
    )
    clips: str = Field(min_length=1, description="clip variant; channels are averaged")
    seed: Seed


def run(params: MixupParams, ctx: Context, clips: Input, catalog: Input, mixes: Output) -> dict[str, Any]:
    """Write the mixes of the training split; clips without a caption cannot be mixed and are counted."""
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
        shards.Job(
            shards.shard_name(index),
            (by_shard[index], params.pairing),
            len(by_shard[index]),
            hashing.digest([_key(plan) for plan in by_shard[index]]),
        )
        for index in sorted(by_shard) or [0]
    ]
    report = ctx.map_shards(mix_shard, jobs, mixes, unit="mix")
    if len(pairs) < num_mixes:
        terminal.say(f"mixup: {len(pairs)} of {num_mixes} mixes: there are no more pairs of different recordings")
    if len(captioned) < len(training) and params.pairing != "none" and params.ratio > 0:
        terminal.say(f"mixup: {len(training) - len(captioned)} of {len(training)} training clips have no caption and are not mixed")
    return {
        "mixes": len(pairs),
        "missing_mixes": num_mixes - len(pairs),
        "training_clips": len(training),
        "without_caption": len(training) - len(captioned),
        "scaled_down": report.counts.get("scaled_down", 0),
        "silent": report.counts.get("silent", 0),
    }


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
    first: Candidate,
    point: int,
    ring: list[tuple[int, str]],
    clips_of: dict[str, list[Candidate]],
    used: set[frozenset[str]],
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


def _places(clips: Path) -> dict[str, tuple[str, int, str]]:
    """The location of each clip: shard, row group, digest of the row."""
    places = {}
    for path in shards.shard_paths(clips):
        with shards.open_parquet(path) as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group, columns=["clip_id", "digest"], use_threads=False).to_pylist():
                    places[row["clip_id"]] = (str(path), group, row["digest"])
    return places


def _plan(
    params: MixupParams, first: dict[str, Any], second: dict[str, Any], places: dict[str, tuple[str, int, str]], clips: Path
) -> dict[str, Any]:
    """Everything about a mix except its sound."""
    for row in (first, second):
        if row["clip_id"] not in places:
            raise UserError(f"{clips}: clip {row['clip_id']!r} of the catalog is missing; `dvc repro` rebuilds both")
    clip_id = "mix_" + hashing.digest(params.seed, first["clip_id"], second["clip_id"])[:12]
    captions = []
    for row in (first, second):
        drawn = int(hashing.digest(params.seed, clip_id, row["clip_id"]), 16)
        captions.append(row["captions"][drawn % len(row["captions"])])
    caption = join_captions(*captions)
    labels = sorted({*first["labels"], *second["labels"]})
    (*place_first, digest_first), (*place_second, digest_second) = places[first["clip_id"]], places[second["clip_id"]]
    return {
        "clip_id": clip_id,
        "caption": caption,
        "labels": labels,
        "first": first["clip_id"],
        "second": second["clip_id"],
        "places": [tuple(place_first), tuple(place_second)],
        "digest": hashing.digest(params.model_dump(mode="json"), digest_first, digest_second, caption, labels),
    }


def mix_shard(plans: list[dict[str, Any]], pairing: str, output: Path, previous: Path | None = None) -> shards.Report:
    with shards.ItemWriter(output, manifest.MIXES, previous) as writer:
        for start in range(0, len(plans), MIXES_AT_ONCE):
            batch = {_key(plan): plan for plan in plans[start : start + MIXES_AT_ONCE]}
            sounds = dict(_read_sounds([plan for key, plan in batch.items() if key not in writer]))
            for key, plan in batch.items():
                if not writer.copy(key):
                    with writer.item(key) as report:
                        writer.write(_mix(plan, sounds, pairing, report))
    return writer.report


def _key(plan: dict[str, Any]) -> str:
    return f"{plan['clip_id']} {plan['digest']}"


def _mix(plan: dict[str, Any], sounds: dict[str, bytes], pairing: str, report: shards.Report) -> dict[str, Any]:
    sample_rate = flac_rate(sounds[plan["first"]])
    first, second = decode_mono(sounds[plan["first"]]), decode_mono(sounds[plan["second"]])
    levels = pressure_level(first, sample_rate), pressure_level(second, sample_rate)
    ratio = mix_ratio(*levels) if pairing == "pressure" else 0.5
    mixed = mix(first, second, ratio)
    peak = float(np.abs(mixed).max(initial=0))
    if peak > FULL_SCALE:  # avoid clipping; a mix that fits keeps its level
        mixed *= np.float32(FULL_SCALE / peak)
        report.count("scaled_down")
    report.count("silent", int(peak == 0))
    report.count("mixes")
    audio = {"bytes": encode_flac(mixed, sample_rate), "path": f"{plan['clip_id']}.flac"}
    kept = {key: plan[key] for key in ("clip_id", "caption", "labels", "first", "second", "digest")}
    numbers = {"ratio": ratio, "level_first": levels[0], "level_second": levels[1], "num_samples": len(mixed)}
    return {**kept, **numbers, "audio": audio}


def _read_sounds(plans: list[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """FLAC bytes of every clip in the plans; each row group is read once."""
    clips_at: dict[tuple[str, int], set[str]] = defaultdict(set)
    for plan in plans:
        for role, place in zip(("first", "second"), plan["places"], strict=True):
            clips_at[place].add(plan[role])
    for path in sorted({path for path, _ in clips_at}):
        with shards.open_parquet(path) as file:
            for group in sorted(group for name, group in clips_at if name == path):
                table = file.read_row_group(group, columns=["clip_id", "audio"], use_threads=False)
                for row in range(table.num_rows):
                    clip_id = table["clip_id"][row].as_py()
                    if clip_id in clips_at[path, group]:
                        yield clip_id, table["audio"][row].as_py()["bytes"]


if __name__ == "__main__":
    stage.main(run, section="mixup")
