"""The checkpoints of the page, what a person asks of them, kept sounds and votes. From a kept request a sound is made again, bit
for bit."""

import json
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from soundmill import attribution, disk, hashing, params, terminal, tracking
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.listening import answers
from soundmill.models import generation, transforming
from soundmill.models.family import Model, can, family_of, is_checkpoint
from soundmill.params import Probability, Seconds, Seed, StageParams
from soundmill.training import checkpoint

KEPT = Path("data/kept")
VOTES = KEPT / "votes"
QUESTION = "quality"  # of a vote
STEPS = 5  # sounds of an interpolation
SHOWN_SCORES = ("fad_tagger", "label_accuracy_tagger")
Kind = Literal["generate", "reconstruct", "restyle", "inpaint", "continue", "interpolate", "upsample"]


@dataclass(frozen=True)
class Found:
    """A checkpoint of the project at `root`, or another one on disk."""

    directory: Path
    root: Path

    @property
    def name(self) -> str:
        """Its path in the project."""
        inside = self.directory.is_relative_to(self.root)
        return str(self.directory.relative_to(self.root) if inside else self.directory)

    @property
    def home(self) -> Path:
        """The checkout that trained it, or the project."""
        data = self.directory.parent.parent
        return data.parent if data.name == "data" and (data.parent / "params.yaml").is_file() else self.root

    @property
    def scores(self) -> dict[str, float]:
        """Those of the stage `evaluate`."""
        path = self.home / "data" / "metrics" / "evaluate" / f"{self.directory.name}.json"
        found = params.read_json(path, "`dvc repro`") if path.is_file() else {}
        return {key: value for key, value in found.items() if isinstance(value, float)}

    @property
    def trained(self) -> float:
        return (self.directory / checkpoint.CONFIG).stat().st_mtime

    @property
    def title(self) -> str:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.trained))
        shown = [f"{key} {value:.3g}" for key, value in self.scores.items() if key in SHOWN_SCORES]
        return " · ".join([self.name, family_of(self.directory), day, *shown])


def find(root: Path, named: Sequence[Path]) -> dict[str, Found]:
    """The checkpoints of a project and its workspaces by name, the newest first; those that are `named` before all."""
    first, own = [Found(path, root) for path in named if family_of(path)], []  # family_of: else a UserError
    for path in [path for home in ("", f"{tracking.WORKSPACES}/*/") for path in root.glob(f"{home}data/models/*")]:
        try:
            if is_checkpoint(path) and Found(path, root).title:
                own.append(Found(path, root))
        except UserError as error:
            terminal.say(f"left out: {error}", error=True)
    found = {one.name: one for one in [*first, *sorted(own, key=lambda one: one.trained, reverse=True)]}
    if not found:
        raise UserError(f"{root}: no checkpoint to play with; train one with `make demo`, or name its directory")
    return found


class Models:
    """At most `most` checkpoints in memory; the least recently used one leaves. One person's sound is made at a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.lock = threading.RLock()
        self.loaded: OrderedDict[tuple[str, ...], generation.Loaded] = OrderedDict()

    def load(self, found: Found) -> generation.Loaded:
        """A checkpoint as it is on disk now; call it with the lock held."""
        files = sorted(path for path in found.directory.rglob("*") if path.is_file())
        key = (str(found.directory), *(f"{path} {(facts := path.stat()).st_mtime_ns} {facts.st_size}" for path in files))
        if key not in self.loaded:
            for old in [one for one in self.loaded if one[0] == key[0]]:
                del self.loaded[old]
            while len(self.loaded) >= self.most:
                self.loaded.popitem(last=False)
            self.loaded[key] = generation.read(found.directory)
        self.loaded.move_to_end(key)
        return self.loaded[key]


class Asked(StageParams):
    """One sound that was asked for; the fields after `settings` are those of recordings."""

    format: Literal[1] = 1
    kind: Kind = "generate"
    checkpoint: str = Field(description="its directory, from the project's")
    digest: str = Field("", description="of the checkpoint, once the sound is made")
    prompts: list[str] = Field([])
    labels: list[str] = Field([])
    seed: Seed = 0
    settings: list[str] = Field([], description="as `--set` takes them")
    recordings: list[Annotated[str, Field(pattern=r"^[^/]+$")]] = Field([], description="files beside this one")
    amount: Probability = 0.5
    start: Seconds = Field(0.0, description="of the part that `inpaint` makes anew")
    stop: Seconds = 0.0
    seconds: Seconds = Field(1.0, description="that `continue` adds")
    number: int = Field(0, ge=0, lt=STEPS, description="of the sound, where a request makes several")

    @property
    def words(self) -> str:
        """For a title."""
        what = ", ".join([*self.prompts, *self.labels])
        return what or "unconditional" if self.kind == "generate" else f"{self.kind}: {what}".removesuffix(": ")

    def but(self, **changes: Any) -> "Asked":
        """The same request with other values; UserError if one is out of its range."""
        return params.changed(self, changes, "the request")

    def write(self, path: Path) -> None:
        disk.write_atomically(path, lambda temporary: temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8"))


def read(wav: Path) -> Asked:
    """The request beside a sound."""
    path = wav.with_suffix(".json")
    return params.parse(Asked, params.read_json(path, "give the .json that was kept beside a sound"), str(path))


def kinds_of(model: Model) -> list[Kind]:
    """What a model can be asked to do with a recording."""
    sampling, transforms = type(model.params.sampling).model_fields, can(model, "transform")
    able: dict[Kind, bool] = {
        "reconstruct": can(model, "reconstruct"),
        "restyle": transforms and "amount" in sampling,
        "inpaint": transforms and "keep" in sampling,
        "continue": transforms and "keep" in sampling,
        "interpolate": can(model, "interpolate") and "amount" in sampling,
        "upsample": transforms and "factor" in type(model.params).model_fields,
    }
    return [kind for kind, is_able in able.items() if is_able]


def make(asked: Asked, loaded: generation.Loaded, folder: Path, output: Path, home: Path) -> Path:
    """Write the sound into `output`, and beside a changed one its input, `NAME-input.wav`; `folder` has the recordings."""
    settings = asked.settings
    if asked.kind == "generate":
        return generation.generate_sounds(loaded, asked.prompts, 1, asked.seed, output, home, settings, labels=asked.labels)[0]
    sounds = {Path(name).stem: decode.open_sound(folder / name) for name in asked.recordings}
    prompting = transforming.Prompting([*asked.prompts, *asked.labels], asked.seed)
    noisy = [*settings, f"amount={asked.amount}"]
    ((name, sound), *_) = sounds.items()
    match asked.kind:
        case "reconstruct":
            paths = transforming.reconstruct(loaded, sounds, output, home, settings)
        case "restyle":
            paths = transforming.restyle(loaded, sounds, prompting, output, home, noisy)
        case "upsample":
            paths = transforming.upsample(loaded, sounds, output, home, settings)
        case "inpaint":
            ends = [(0.0, asked.start), (min(asked.stop, sound.seconds), sound.seconds)]
            kept = [(start, stop) for start, stop in ends if start < stop]
            paths = transforming.inpaint(loaded, sounds, kept, prompting, output, home, settings)
        case "continue":
            longer = {name: sound.followed_by_silence(asked.seconds)}
            paths = transforming.inpaint(loaded, longer, [(0.0, sound.seconds)], prompting, output, home, settings)
        case _:
            if len(sounds) != 2:
                raise UserError("interpolate needs two recordings of different names: add the second one")
            both, ends = list(sounds.items()), (asked.seed, asked.seed)
            paths = transforming.interpolate(loaded, ends, both, STEPS, list(prompting.prompts), output, home, noisy)
    return paths[asked.number]


def repeat(path: Path, found: Found, output: Path) -> Path:
    """Make the sound of a kept request again; UserError if the checkpoint is another one now."""
    asked, loaded = read(path), generation.read(found.directory)
    if (digest := loaded.facts["checkpoint"]) != asked.digest:
        raise UserError(f"{found.name}: another checkpoint ({digest[:12]}…) than made this sound ({asked.digest[:12]}…)")
    return make(asked, loaded, path.parent, output, found.home)


def keep(wav: Path, found: Found, home: Path) -> Path:
    """Copy a sound of a session, its request and its recordings to data/kept, and record it in MLflow; once, however often it is
    called."""
    asked, folder = read(wav), home / KEPT
    name = f"{wav.stem.partition('-')[2]}-{hashing.tree_digest(wav)[:8]}"  # without its number in the session
    target = folder / f"{name}.wav"
    if target.is_file():
        return target
    family, weights = family_of(found.directory), hashing.model_digest(found.directory)
    folder.mkdir(parents=True, exist_ok=True)
    recordings = [f"{name}.recording-{number}{Path(one).suffix}" for number, one in enumerate(asked.recordings, 1)]
    for old, new in zip(asked.recordings, recordings, strict=True):
        shutil.copyfile(wav.parent / old, folder / new)
    if (given := input_of(wav)).is_file():
        shutil.copyfile(given, input_of(target))
    asked.but(recordings=recordings).write(target.with_suffix(".json"))
    disk.write_atomically(target, lambda temporary: shutil.copyfile(wav, temporary))
    tags = {"family": family, "checkpoint": asked.digest, "model_digest": weights, "words": asked.words}
    with tracking.result_run(home, f"kept {name}", "play", tags) as run:
        run.log_params(asked.model_dump())
        run.log_file(target, "kept")
        run.log_file(target.with_suffix(".json"), "kept")
    return target


def input_of(wav: Path) -> Path:
    """The file that has what a changed sound was before."""
    return wav.with_name(f"{wav.stem}-input.wav")


def kept_sounds(home: Path) -> list[Path]:
    """The kept WAVs, the newest first."""
    found = [path for path in (home / KEPT).glob("*.wav") if path.with_suffix(".json").is_file()]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def export(home: Path, checkpoints: Mapping[str, Found], folder: Path) -> Path:
    """A zip of data/kept, with the attribution of each checkpoint that made a sound of it and is still here."""
    if not (kept := kept_sounds(home)):
        raise UserError("no sound is kept yet: press Keep below a sound first")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        directory = Path(place) / "kept"
        shutil.copytree(home / KEPT, directory, ignore=shutil.ignore_patterns(VOTES.name))
        for found in [checkpoints[name] for name in {read(path).checkpoint for path in kept} & checkpoints.keys()]:
            if (found.directory / checkpoint.CONFIG).is_file():
                recordings = found.home / "data" / "corpus" / "recordings.parquet"
                credits = attribution.credits_of(found.directory, recordings if recordings.is_file() else None)
                attribution.write(credits, directory / f"ATTRIBUTION {found.name.replace('/', ' ')}.csv")
        return Path(shutil.make_archive(str(folder / "kept"), "zip", directory))


def vote(home: Path, shown: tuple[Found, Found], answer: str) -> Path:
    """Store which of two sounds, in the order in which they were heard, is better; returns the answers' file.

    Each pair of checkpoints has a comparison, as `soundmill listening-test score` reads it, of one rater and one more request.
    """
    digests = {one.name: hashing.model_digest(one.directory) for one in sorted(shown, key=lambda one: one.name)}
    models = {
        one.name: answers.KeyedModel(family=family_of(one.directory), weights=digests[one.name], scores=one.scores, of={})
        for one in shown
    }
    test = hashing.digest(list(digests.values()))[:12]
    folder = home / VOTES / test
    with disk.exclusive(folder):
        path, key_path = folder / f"answers-{test}-1.json", folder / "key.json"
        sounds, trials, given = {}, [], []
        if key_path.is_file():
            earlier = answers.read_key(key_path)
            sounds, trials = dict(earlier.sounds), list(earlier.orders[0])
            given = params.read_json(path, "restore it beside its key.json")["answers"]
        trial = [f"s{2 * len(trials) + place:05d}" for place in (1, 2)]
        for sound, found in zip(trial, shown, strict=True):
            sounds[sound] = answers.KeyedSound(system=found.name, request=f"vote-{len(trials) + 1:04d}")
        key = answers.Key(
            format=1,
            test=test,
            questions=[QUESTION],
            scale=5,
            compare=True,
            seed=0,
            sounds=sounds,
            orders=[[*trials, trial]],
            models=models,
        )
        document = {"format": 1, "test": test, "rater": 1, "answers": [*given, {"sounds": trial, QUESTION: answer}]}
        disk.write_atomically(key_path, key.write)
        disk.write_atomically(path, lambda temporary: temporary.write_text(json.dumps(document) + "\n", encoding="utf-8"))
    return path
