"""Which of a corpus's clips and a family's sounds are compared: determined by ids, splits and the seed only; and which groups of
them are scored separately: by events in the prompt, number of labels, or kind of sound.

No real clip is measured against a reference with clips of the same recording or, if the reference spans splits, of the same split:
all takes of one source are in one split.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from soundmill import hashing, manifest, params
from soundmill.errors import UserError, first_of
from soundmill.evaluation import probe
from soundmill.evaluation.features import SYNTHETIC
from soundmill.evaluation.library import Library, Members
from soundmill.evaluation.scorer import Comparisons

# Words of prompts that describe several events (Ghosal et al. 2023).
SEVERAL = re.compile(r"\b(while|before|after|then|follow(?:s|ed)?)\b", re.IGNORECASE)
FEWEST = 2  # sounds needed to score a group
CATEGORIES = Path(__file__).with_name("categories.yaml")


@dataclass(frozen=True)
class CatalogClip:
    clip_id: str
    recording_id: str
    shard: int
    split: str
    labels: tuple[str, ...]
    captions: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return hashing.prompt_of(self.clip_id, self.captions)


@dataclass(frozen=True)
class Sets:
    """Ids of the sounds that are compared; all tuples are sorted, so nothing depends on the order of a listing."""

    reference: tuple[str, ...]
    generated: tuple[str, ...]
    floor: tuple[str, ...]
    floor_reference: tuple[str, ...]
    codec: tuple[str, ...]  # at most as many as `generated`
    codec_reference: tuple[str, ...]
    partners: tuple[tuple[str, str], ...]  # generated id, another real clip with the same labels
    probe: tuple[tuple[str, str, int], ...]  # real clip with one label, its label, its fold
    requested: tuple[tuple[str, str], ...]  # generated id, its single requested label, if it is a class of the probe

    def real(self) -> set[str]:
        """All real clips to embed."""
        paired = {real for _, real in self.partners}
        probed = {clip_id for clip_id, _, _ in self.probe}
        return {*self.reference, *self.generated, *self.floor, *self.codec} | paired | probed


def choose_sets(
    catalog: Sequence[CatalogClip],
    generated: Iterable[str],
    codec: Iterable[str],
    reference: Literal["test", "all"],
    probe_clips: int,
    seed: int,
) -> Sets:
    """Choose the sets from ids and the seed only; a generated or codec id without a real clip raises UserError."""
    clips = {clip.clip_id: clip for clip in catalog}
    judged = manifest.judged_split(clip.split for clip in catalog)
    members = [clip for clip in catalog if reference == "all" or clip.split == judged]
    reference_ids = tuple(sorted(clip.clip_id for clip in members))
    generated, codec = tuple(sorted(generated)), tuple(sorted(codec))
    _check_ids("generated", generated, set(reference_ids), f"the reference (evaluate.reference: {reference})")
    codec = codec if len(codec) > 1 else ()  # none if the sounds are reconstructions; one has no score
    if codec:
        _check_ids("codec", codec, set(clips), "the catalog")
    train = [clip for clip in catalog if clip.split == "train"]
    partners, partner_ids = _partners([clips[clip_id] for clip_id in generated], train, seed)
    if reference == "test":
        floor = partner_ids
    else:
        held_out = [clip.clip_id for clip in catalog if clip.split == "test"] or [clip.clip_id for clip in train]
        floor = hashing.hash_order(held_out, "floor", seed)[: len(generated)]
    codec_sample = hashing.hash_order(codec, "codec", seed)[: len(generated)]
    probed = _probe_clips(catalog, probe_clips, seed)
    classes = {label for _, label, _ in probed}
    requested = [(clip_id, clips[clip_id].labels[0]) for clip_id in generated if len(clips[clip_id].labels) == 1]
    return Sets(
        reference=reference_ids,
        generated=generated,
        floor=tuple(sorted(floor)),
        floor_reference=_apart(members, [clips[clip_id] for clip_id in floor]),
        codec=tuple(sorted(codec_sample)),
        codec_reference=_apart(members, [clips[clip_id] for clip_id in codec_sample]),
        partners=tuple(partners),
        probe=tuple(probed),
        requested=tuple((clip_id, label) for clip_id, label in requested if label in classes),
    )


def _check_ids(what: str, ids: Sequence[str], real: set[str], where: str) -> None:
    if len(ids) < 2:
        raise UserError(f"a score needs 2 or more {what} sounds, not {len(ids)}; raise generate.count, or add recordings")
    unpaired = [clip_id for clip_id in ids if clip_id not in real]
    if unpaired:
        raise UserError(f"{what} {first_of(unpaired)}: no real clip of that id in {where}; pairs are never skipped")


def _partners(generated: Sequence[CatalogClip], train: Sequence[CatalogClip], seed: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Another real clip for every generated sound: (pairs with equal labels, all chosen clips, at most as many as generated)."""
    by_labels: dict[tuple[str, ...], list[str]] = defaultdict(list)
    recording = {clip.clip_id: clip.recording_id for clip in [*train, *generated]}
    for clip in train:
        by_labels[tuple(sorted(clip.labels))].append(clip.clip_id)
    unused = {labels: hashing.hash_order(ids, "floor", seed) for labels, ids in by_labels.items()}
    pairs = []
    for clip in generated:
        candidates = unused.get(tuple(sorted(clip.labels)), []) if clip.labels else []
        partner = next((other for other in candidates if recording[other] != clip.recording_id), None)
        if partner is not None:
            candidates.remove(partner)
            pairs.append((clip.clip_id, partner))
    chosen = dict.fromkeys(partner for _, partner in pairs)
    rest = [name for name in hashing.hash_order((clip.clip_id for clip in train), "floor", seed) if name not in chosen]
    return pairs, [*chosen, *rest[: len(generated) - len(chosen)]]


def _apart(reference: Sequence[CatalogClip], clips: Sequence[CatalogClip]) -> tuple[str, ...]:
    """The reference without clips related to these: of the same splits, or, if the reference has one split, recordings."""
    splits, recordings = {clip.split for clip in clips}, {clip.recording_id for clip in clips}
    others = [clip.clip_id for clip in reference if clip.split not in splits]
    if len({clip.split for clip in reference}) == 1 or not others:
        others = [clip.clip_id for clip in reference if clip.recording_id not in recordings]
    return tuple(sorted(others))


def _probe_clips(catalog: Sequence[CatalogClip], limit: int, seed: int) -> list[tuple[str, str, int]]:
    """(id, label, fold) of single-label real clips, of classes with at least two recordings; none if under two classes."""
    single = {clip.clip_id: clip for clip in catalog if len(clip.labels) == 1}
    kept = sorted(hashing.hash_order(single, "probe", seed)[:limit])
    recordings: dict[str, set[str]] = defaultdict(set)
    for clip_id in kept:
        recordings[single[clip_id].labels[0]].add(single[clip_id].recording_id)
    kept = [clip_id for clip_id in kept if len(recordings[single[clip_id].labels[0]]) > 1]
    labels = [single[clip_id].labels[0] for clip_id in kept]
    if len(set(labels)) < 2:
        return []
    fold_of = probe.folds([single[clip_id].recording_id for clip_id in kept], labels, seed)
    return list(zip(kept, labels, fold_of, strict=True))


def training_clips(catalog: Sequence[CatalogClip], limit: int, seed: int) -> set[str]:
    ids = [clip.clip_id for clip in catalog if clip.split == "train"]
    return set(hashing.hash_order(ids, "training", seed)[:limit])


def comparisons(sets: Sets, library: Library, reconstructed: bool) -> Comparisons:
    """What the scorer measures. Roles in the library: `real`, `generated`, `codec`; `reconstructed`: sounds are made from clips."""
    generated, codec = Members.of("generated", sets.generated), Members.of("codec", sets.codec)
    reference = Members.of("real", sets.reference)
    roles = {
        "generated": (generated, reference),
        "floor": (Members.of("real", sets.floor), Members.of("real", sets.floor_reference)),
        "codec": (codec, Members.of("real", sets.codec_reference)),
        "codec_floor": (Members.of("real", sets.codec), Members.of("real", sets.codec_reference)),
    }
    pairs = {
        "generated": (generated, Members.of("real", sets.generated)),
        "floor": (Members("real", dict(sets.partners)), Members.of("real", dict(sets.partners))),
        "codec": (codec, Members.of("real", sets.codec)),
    }
    for role in SYNTHETIC:
        ids = [clip_id for clip_id in sets.reference if clip_id in library.sounds[role]]
        roles[role] = (Members.of(role, ids), reference)
        pairs[role] = (Members.of(role, ids), Members.of("real", ids))
    prompts = {}
    if library.texts.keys() >= set(sets.generated):
        texts = Members.of("prompts", sets.generated)
        prompts = {"generated": (generated, texts), "floor": (Members.of("real", sets.generated), texts)}
        prompts |= {role: (library.synthetic(role, sets.generated), texts) for role in SYNTHETIC}
    return Comparisons(
        sets={role: sides for role, sides in roles.items() if all(map(len, sides))},
        pairs={role: sides for role, sides in pairs.items() if all(map(len, sides))},
        waves=pairs["generated"] if reconstructed else pairs["codec"] if sets.codec else None,
        waves_prefix="" if reconstructed else "codec_",
        prompts=prompts,
        why_not={"prompts": "not every clip has a caption"},
    )


def category_of(label: str) -> str | None:
    """The category of a label, or None; case does not matter, and `_` counts as a space."""
    return _categories().get(_plain(label))


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").split()).casefold()


@cache
def _categories() -> dict[str, str]:
    tables = params.read_yaml(CATEGORIES)
    parts = [*tables["others"].items(), *tables["classes"].items()]
    return {_plain(name): category for category, names in parts for name in names.split(";")}


def events(clip: CatalogClip) -> list[str]:
    """By the words of the prompt."""
    return [("several events" if SEVERAL.search(clip.prompt) else "one event")] if clip.prompt else []


def labels(clip: CatalogClip) -> list[str]:
    """By the number of labels; clips of two are in two groups, as in TANGO's table 7."""
    count = len(set(clip.labels))
    return {0: [], 1: ["1 label"], 2: ["2 labels", "2 or more labels"]}.get(count, ["2 or more labels"])


def categories(clip: CatalogClip) -> list[str]:
    """By the categories of the labels; labels without a known category are ignored."""
    kinds = {category_of(label) for label in clip.labels} - {None}
    return [" and ".join(sorted(kinds))] if kinds else []


GROUPINGS: dict[str, Callable[[CatalogClip], list[str]]] = {"events": events, "labels": labels, "categories": categories}


def groups(clips: Iterable[CatalogClip], grouping: str) -> dict[str, set[str]]:
    """Ids of the clips of each group, by its name; a clip may be in none or several."""
    by_name: dict[str, set[str]] = {}
    for clip in clips:
        for name in GROUPINGS[grouping](clip):
            by_name.setdefault(name, set()).add(clip.clip_id)
    return dict(sorted(by_name.items()))


def within(sets: Sets, ids: set[str]) -> Sets:
    """The same comparison restricted to these clips; the linear probe remains that of all clips."""
    of_ids = ("reference", "generated", "floor", "floor_reference", "codec", "codec_reference")
    kept = {field: tuple(clip_id for clip_id in getattr(sets, field) if clip_id in ids) for field in of_ids}
    kept |= {field: tuple(pair for pair in getattr(sets, field) if pair[0] in ids) for field in ("partners", "requested")}
    return replace(sets, **kept)


def can_be_scored(sets: Sets) -> bool:
    return min(len(sets.generated), len(sets.reference)) >= FEWEST
