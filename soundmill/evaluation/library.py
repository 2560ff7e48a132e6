"""All sounds of one evaluation with their embeddings: the given ones, silence and noise of the baselines, degraded ones."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Self

from soundmill import disk, hashing, shards
from soundmill.evaluation import features, folders, protocols
from soundmill.evaluation.cache import Facts
from soundmill.evaluation.degradations import DEGRADATIONS

SIGNIFICANT_DIGITS = 6  # of published numbers, as last bits differ between processors
BASELINE_SOUNDS = 1000  # of silence and of noise, at most

Progress = Callable[[int, str, str], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True)
class Setup:
    """How sounds are scored; `cache` is the directory of embeddings, `tagger` that of the pipeline's tagger, if there is one."""

    protocol: protocols.Protocol
    cache: Path
    workers: int
    tagger: Path | None = None
    progress: Progress = lambda total, label, unit: nullcontext(lambda count: None)
    ladder: Sequence[str] = ()  # metrics that are also measured on real sounds degraded in known ways
    devices: int | None = None  # processes of embedders that run on GPUs; None: one for each GPU

    @property
    def configs(self) -> list[features.EmbedderConfig]:
        protocol = self.protocol
        return [
            features.EmbedderConfig(name, self.tagger, protocol.sample_rate, tuple(sorted(options.items())), protocol.level)
            for name, options in protocol.embedders.items()
        ]

    def read(self, *roots: Path) -> list[folders.Folder]:
        """The sounds of these folders. If a file cannot be opened, all others are decoded first, so that one error names all."""
        disk.make_directory(self.cache)
        read = [folders.read(root, self.workers, self.cache / "files.sqlite") for root in roots]
        if refused := [row for folder in read for row in folder.refused]:
            sounds = [sound for folder in read for sound in folder.sounds]
            with self.progress(len(sounds) * len(self.configs), "embed", "clip") as tick:
                self.embed(self.configs, sounds, tick, refused)
        return read

    def embed(
        self,
        configs: Sequence[features.EmbedderConfig],
        sounds: Sequence[features.Sound],
        progress: Callable[[int], object],
        refused: Sequence[Mapping[str, str]] = (),
    ) -> list[str]:
        """`features.embed_all`, with embedders that run on GPUs in a process for each GPU, as each process holds their networks."""
        gpus = len(shards.visible_gpus())
        on_gpus = [config for config in configs if gpus and config.runs_on_gpu]
        damaged = features.embed_all(on_gpus, sounds, self.cache, self.devices or gpus, progress) if on_gpus else []
        others = [config for config in configs if config not in on_gpus]
        return damaged + features.embed_all(others, sounds, self.cache, self.workers, progress, refused)


@dataclass(frozen=True)
class Members:
    """A set of sounds: the role in the library, and id in a comparison → id in that role."""

    role: str
    ids: Mapping[str, str]

    @classmethod
    def of(cls, role: str, ids: Iterable[str]) -> Self:
        return cls(role, {clip_id: clip_id for clip_id in ids})

    def only(self, ids: Iterable[str]) -> Self:
        return replace(self, ids={clip_id: self.ids[clip_id] for clip_id in ids})

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Library:
    """Sounds by role and id, and their facts from the first embedder's cache; `damaged` cache files were rebuilt."""

    setup: Setup
    sounds: dict[str, dict[str, features.Sound]]
    facts: dict[str, dict[str, Facts]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # prompts by id, for clap

    def view(self, embedder: str, members: Members) -> features.View:
        config = next(config for config in self.setup.configs if config.name == embedder)
        if members.role == "prompts":
            texts = {clip_id: self.texts[name] for clip_id, name in members.ids.items()}
            return features.embed_texts(config, texts, self.setup.cache)
        sounds = self.sounds[members.role]
        keys = {clip_id: sounds[name].key for clip_id, name in sorted(members.ids.items())}
        return features.View(config.directory(self.setup.cache), keys)

    def synthetic(self, role: str, ids: Iterable[str]) -> Members:
        """Silence or noise in place of each of these sounds; those that have none reuse the others', in turn."""
        own = list(self.sounds[role])
        named = {clip_id: clip_id if clip_id in self.sounds[role] else own[turn % len(own)] for turn, clip_id in enumerate(ids)}
        return Members(role, named)

    def digest(self, members: Members) -> str:
        sounds = self.sounds[members.role]
        return features.list_digest({clip_id: sounds[name].key for clip_id, name in members.ids.items()})


def embed(
    setup: Setup,
    sounds: Mapping[str, Mapping[str, features.Sound]],
    reference: Members,
    degraded: Members | None = None,
    climbing: Collection[str] = (),
) -> Library:
    """Embed sounds (role → id → sound), then silence and noise as long as at most BASELINE_SOUNDS of the reference's sounds.

    The baselines thus depend only on the reference and the seed. `degraded`: sounds that the embedders in `climbing` also embed
    degraded in every way.
    """
    configs, seed = setup.configs, setup.protocol.seed
    of_degraded = [config for config in configs if config.name in climbing]
    library = Library(setup, {role: dict(of) for role, of in sounds.items()})
    ranked = hashing.hash_order(reference.ids.values(), "baselines", seed)[:BASELINE_SOUNDS]
    names = sorted(degraded.ids.values()) if degraded else []
    total = (sum(map(len, sounds.values())) + len(features.SYNTHETIC) * len(ranked)) * len(configs)
    with setup.progress(total + len(DEGRADATIONS) * len(names) * len(of_degraded), "embed", "clip") as tick:
        given = [sound for by_id in sounds.values() for sound in by_id.values()]
        library.damaged += setup.embed(configs, given, tick)
        for role, of in sounds.items():
            library.facts[role] = features.view(configs[0], of.values(), setup.cache).facts()
        facts = library.facts[reference.role]
        for role in features.SYNTHETIC:
            library.sounds[role] = {name: features.synthetic(role, name, facts[name], seed) for name in sorted(ranked)}
        synthetic = [sound for role in features.SYNTHETIC for sound in library.sounds[role].values()]
        library.damaged += setup.embed(configs, synthetic, tick)
        if degraded and of_degraded:
            for kind in DEGRADATIONS:
                library.sounds[kind] = {name: features.degraded(sounds[degraded.role][name], kind, seed) for name in names}
            rungs = [sound for kind in DEGRADATIONS for sound in library.sounds[kind].values()]
            library.damaged += setup.embed(of_degraded, rungs, tick)
    return library


def about_damaged(names: Sequence[str]) -> str:
    return (
        f"{len(names)} files of cached embeddings were damaged and have been rebuilt: the scores are correct, but check the disk."
    )


def rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def means_by_class(of: Mapping[str, Mapping[str, float]], class_of: Callable[[str], str | None]) -> dict[str, dict[str, float]]:
    """The number of sounds (`generated`) and the means of their values (by score and id) by class; without those of no class."""
    by_class: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, values in of.items():
        for clip_id, value in values.items():
            if (name := class_of(clip_id)) is not None:
                by_class[name][key].append(value)
    return {
        name: {"generated": max(map(len, by_key.values()))} | {key: rounded(fmean(values)) for key, values in by_key.items()}
        for name, by_key in sorted(by_class.items())
    }
