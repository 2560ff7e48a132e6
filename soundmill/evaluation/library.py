"""All sounds of one evaluation, embedded by every judge: those at hand, and the silence and noise of the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from soundmill import hashing
from soundmill.errors import UserError
from soundmill.evaluation import features, folders, protocols
from soundmill.evaluation.cache import Facts

SIGNIFICANT_DIGITS = 6  # of published numbers: the last bits differ between processors
BASELINE_SOUNDS = 1000  # of silence and of noise at most

Progress = Callable[[int, str, str], AbstractContextManager[Callable[[int], object]]]


def no_bar(total: int, label: str, unit: str) -> AbstractContextManager[Callable[[int], object]]:
    return nullcontext(lambda count: None)


@dataclass(frozen=True)
class Setup:
    """The way sounds are scored; `cache` is the directory of embeddings, `tagger` that of a pipeline's own, if there is one."""

    protocol: protocols.Protocol
    cache: Path
    workers: int
    tagger: Path | None = None
    progress: Progress = no_bar

    @property
    def judges(self) -> list[features.Judge]:
        return [
            features.Judge(
                name, self.tagger if name == "tagger" else None, self.protocol.sample_rate, tuple(sorted(options.items()))
            )
            for name, options in self.protocol.embedders.items()
        ]

    def without_intervals(self) -> Setup:
        return replace(self, protocol=self.protocol.model_copy(update={"replicates": 0}))

    def read(self, *roots: Path) -> list[folders.Folder]:
        """The sounds of these folders. Where a file cannot even be opened, all others are decoded, so that one error names all."""
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.cache}: embeddings cannot be kept there ({error.strerror}); name another by --cache") from None
        read = [folders.read(root, self.workers, self.cache / "files.sqlite") for root in roots]
        if refused := [row for folder in read for row in folder.refused]:
            sounds = [sound for folder in read for sound in folder.sounds]
            with self.progress(len(sounds) * len(self.judges), "embed", "clip") as tick:
                features.embed_all(self.judges, sounds, self.cache, self.workers, tick, refused)
        return read


@dataclass(frozen=True)
class Members:
    """Sounds of one role of the library: the id in a comparison → the id in that role."""

    role: str
    ids: Mapping[str, str]

    @classmethod
    def of(cls, role: str, ids: Iterable[str]) -> Members:
        return cls(role, {clip_id: clip_id for clip_id in ids})

    def only(self, ids: Iterable[str]) -> Members:
        return Members(self.role, {clip_id: self.ids[clip_id] for clip_id in ids})

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Library:
    """Sounds by role and id, and what the first judge's cache knows of each; `damaged` are kept files that were made anew."""

    setup: Setup
    sounds: dict[str, dict[str, features.Sound]]
    facts: dict[str, dict[str, Facts]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # prompts by id, as clap reads them

    def view(self, embedder: str, members: Members) -> features.View:
        """The members as an embedder has embedded them."""
        judge = next(judge for judge in self.setup.judges if judge.name == embedder)
        if members.role == "prompts":
            return features.embed_texts(
                judge, {clip_id: self.texts[name] for clip_id, name in members.ids.items()}, self.setup.cache
            )
        sounds = self.sounds[members.role]
        keys = {clip_id: sounds[name].key for clip_id, name in sorted(members.ids.items())}
        return features.View(judge.directory(self.setup.cache), keys)

    def made_up(self, role: str, ids: Iterable[str]) -> Members:
        """Silence or noise in the place of each of these sounds: its own where it has one, else that of another in turn."""
        own = list(self.sounds[role])
        return Members(
            role, {clip_id: clip_id if clip_id in self.sounds[role] else own[turn % len(own)] for turn, clip_id in enumerate(ids)}
        )

    def digest(self, members: Members) -> str:
        sounds = self.sounds[members.role]
        return features.list_digest({clip_id: sounds[name].key for clip_id, name in members.ids.items()})


def embed(setup: Setup, sounds: Mapping[str, Mapping[str, features.Sound]], reference: Members) -> Library:
    """Embed sounds (role → id → sound), then silence and noise as long as the reference's, for BASELINE_SOUNDS of these at most.

    So the baselines of metrics are those of the reference and the seed, whatever is compared with it.
    """
    judges, seed = setup.judges, setup.protocol.seed
    library = Library(setup, {role: dict(of) for role, of in sounds.items()})
    ranked = hashing.hash_order(reference.ids.values(), "baselines", seed)[:BASELINE_SOUNDS]
    total = sum(map(len, sounds.values())) + len(features.MADE_UP) * len(ranked)
    with setup.progress(total * len(judges), "embed", "clip") as tick:
        wanted = [sound for of in sounds.values() for sound in of.values()]
        library.damaged += features.embed_all(judges, wanted, setup.cache, setup.workers, tick)
        for role, of in sounds.items():
            library.facts[role] = features.view(judges[0], of.values(), setup.cache).facts()
        known = library.facts[reference.role]
        library.sounds["silence"] = {clip_id: features.silence(known[clip_id]) for clip_id in sorted(ranked)}
        library.sounds["noise"] = {clip_id: features.noise(clip_id, known[clip_id], seed) for clip_id in sorted(ranked)}
        made_up = [sound for role in features.MADE_UP for sound in library.sounds[role].values()]
        library.damaged += features.embed_all(judges, made_up, setup.cache, setup.workers, tick)
    return library


def in_files(files: Mapping[str, Path]) -> dict[str, features.Sound]:
    """The files (id → path) as sounds."""
    return {clip_id: features.file(clip_id, path, hashing.file_digest(path)) for clip_id, path in sorted(files.items())}


def in_shards(clips: Mapping[Path, Iterable[str]]) -> dict[str, features.Sound]:
    """The clips (shard → ids) as sounds."""
    digests = {shard: hashing.file_digest(shard) for shard in sorted(clips)}
    return {name: features.clip(name, shard, digest) for shard, digest in digests.items() for name in sorted(clips[shard])}


def about_damaged(names: Sequence[str]) -> str:
    return f"{len(names)} files of kept embeddings were damaged, and made anew: the scores are right, look after the disk."


def rounded(value: float) -> float:
    """As numbers are published."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
