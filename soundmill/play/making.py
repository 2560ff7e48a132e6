"""What a person asks of a model, kept sounds and votes. From a kept request a sound is made again, bit for bit."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field

from soundmill import attribution, disk, hashing, params, tracking
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.listening import answers
from soundmill.models.family import Model, commands_of, family_of, is_checkpoint
from soundmill.params import Probability, Seconds, Seed, StageParams
from soundmill.play.checkpoints import Found

if TYPE_CHECKING:
    from soundmill.models.generation import Loaded

KEPT = Path("data/kept")
VOTES = KEPT / "votes"
STEPS = 5  # sounds of an interpolation
Kind = Literal["generate", "restyle", "inpaint", "continue", "interpolate", "reconstruct", "transfer", "upsample"]


class Refused(UserError):
    """A request that cannot be made, because of this field of the page."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


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
    seconds: Seconds = Field(1.0, le=600, description="that `continue` adds")
    other_seed: Seed = Field(0, description="to which `interpolate` goes without recordings")
    number: int = Field(0, ge=0, lt=STEPS, description="of the sound, where a request makes several")

    @property
    def words(self) -> str:
        """For a title."""
        what = ", ".join([*self.prompts, *self.labels])
        return what or "unconditional" if self.kind == "generate" else f"{self.kind}: {what}".removesuffix(": ")

    def but(self, **changes: Any) -> Asked:
        """The same request with other values; UserError if one is out of its range."""
        return params.changed(self, changes, "the request")

    def write(self, path: Path) -> None:
        disk.write_text(path, self.model_dump_json(indent=1) + "\n")


def read(wav: Path) -> Asked:
    """The request beside a sound."""
    path = wav.with_suffix(".json")
    return params.parse(Asked, params.read_json(path, "give the .json that was kept beside a sound"), str(path))


def is_here(asked: Asked, found: Found) -> bool:
    """Whether the checkpoint that made a sound is still at its path."""
    return is_checkpoint(found.directory) and hashing.tree_digest(found.directory) == asked.digest


def check_here(asked: Asked, found: Found) -> None:
    if not is_here(asked, found):
        raise UserError(
            f"{found.name}: is not the checkpoint that made this sound ({asked.digest[:12]}…); restore it, or make another"
        )


def kinds_of(model: Model) -> list[Kind]:
    """What a model can be asked to do with a recording."""
    from soundmill.models.components.rave.codec import RaveCodec

    able = commands_of(model, type(model.params))
    more = {"continue": "inpaint" in able, "transfer": isinstance(getattr(model, "codec", None), RaveCodec)}
    return [kind for kind in get_args(Kind) if kind != "generate" and (kind in able or more.get(kind))]


def passes(asked: Asked, loaded: Loaded) -> int:
    """About how often the net is called for a request."""
    from soundmill.models.preparing import guided_passes

    sampling = params.override(loaded.model.params.sampling, asked.settings, "sampling")
    told = bool(asked.prompts or asked.labels)
    share = asked.amount if asked.kind == "restyle" or (asked.kind == "interpolate" and asked.recordings) else 1.0
    share *= getattr(sampling, "resamples", 1) if asked.kind in ("inpaint", "continue") else 1
    calls = guided_passes(sampling, told) if hasattr(sampling, "guidance_scale") else getattr(sampling, "num_steps", 1)
    return max(1, round(share * calls))


def check_sounds(kind: Kind, count: int) -> None:
    """Refused, if so many recordings cannot be changed in this way."""
    if kind == "interpolate":
        if count == 1:
            raise Refused("second", "interpolate goes from one recording to a second one, or without any from one seed to another")
    elif not count:
        raise Refused("recording", f"{kind} changes a recording: drop one first")


def make(asked: Asked, loaded: Loaded, folder: Path, output: Path, home: Path) -> list[Path]:
    """Write the sounds into `output`, and beside a changed one its input, `NAME-input.wav`; `folder` has the recordings."""
    from soundmill.models import generation, live, transforming

    settings = asked.settings
    if asked.kind == "generate":
        return generation.generate_sounds(loaded, asked.prompts, 1, asked.seed, output, home, settings, labels=asked.labels)
    sounds = {Path(name).stem: decode.open_sound(folder / name) for name in asked.recordings}
    prompting = transforming.Prompting(asked.prompts, asked.seed, asked.labels)
    noisy = [*settings, f"amount={asked.amount}"]
    check_sounds(asked.kind, len(sounds))
    if asked.kind == "interpolate":
        ends, both = (asked.seed, asked.seed if sounds else asked.other_seed), list(sounds.items())
        return transforming.interpolate(loaded, ends, both, STEPS, prompting, output, home, noisy if sounds else settings)
    ((name, sound), *_) = sounds.items()
    match asked.kind:
        case "reconstruct":
            return transforming.reconstruct(loaded, sounds, output, home, settings)
        case "transfer":
            return transforming.transfer(live.Trained(loaded.model.codec, [], asked.seed), sounds, output, **loaded.facts)
        case "restyle":
            return transforming.restyle(loaded, sounds, prompting, output, home, noisy)
        case "upsample":
            return transforming.upsample(loaded, sounds, output, home, settings)
        case "inpaint":
            ends = [(0.0, asked.start), (min(asked.stop, sound.seconds), sound.seconds)]
            kept = [(start, stop) for start, stop in ends if start < stop]
            return transforming.inpaint(loaded, sounds, kept, prompting, output, home, settings)
        case _:
            longer = {name: sound.followed_by_silence(asked.seconds)}
            return transforming.inpaint(loaded, longer, [(0.0, sound.seconds)], prompting, output, home, settings)


def repeat(path: Path, found: Found, output: Path) -> Path:
    """Make the sound of a kept request again; UserError if the checkpoint is another one now."""
    from soundmill.models import generation

    asked = read(path)
    if output.resolve() == path.parent.resolve():
        raise UserError(f"--output {output}: has the kept sound and its recordings; choose another one")
    if asked.number and asked.kind != "interpolate":
        raise UserError(f"{path}.number: {asked.number}: {asked.kind} makes one sound; set it to 0")
    check_here(asked, found)
    return make(asked, generation.read(found.directory), path.parent, output, found.home)[asked.number]


def keep(wav: Path, found: Found, home: Path, versions: Sequence[tracking.RegisteredModel] = ()) -> Path:
    """Copy a sound of a session, its request and its recordings to data/kept; once, however often it is called.

    MLflow gets a run with them, below the run that trained the checkpoint, if that is one of the registry's `versions`.
    """
    asked, folder = read(wav), home / KEPT
    name = f"{wav.stem.partition('-')[2]}-{hashing.tree_digest(wav)[:8]}"  # without its number in the session
    target = folder / f"{name}.wav"
    if target.is_file():
        return target
    check_here(asked, found)
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
    parent = next((version.tags.get(tracking.JOURNAL) for version in versions if version.digest == weights), None)
    with tracking.result_run(home, f"kept {name}", "play", tags, parent) as run:
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
    """A zip of data/kept, with the attribution of each checkpoint that made a sound of it and is still here; it names others."""
    if not (kept := kept_sounds(home)):
        raise UserError("no sound is kept yet: press Keep below a sound first")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        directory = Path(place) / "kept"
        shutil.copytree(home / KEPT, directory, ignore=shutil.ignore_patterns(VOTES.name))
        missing = []
        for asked in {(asked.checkpoint, asked.digest): asked for asked in map(read, kept)}.values():
            if (found := checkpoints.get(asked.checkpoint)) and is_here(asked, found):
                credits = attribution.credits_of(found.directory, found.home / "data" / "corpus" / "recordings.parquet")
                attribution.write(credits, directory / f"ATTRIBUTION {found.name.replace('/', ' ')}.csv")
            else:
                missing.append(f"{asked.checkpoint}, checkpoint {asked.digest}")
        if missing:
            lines = [f"{one}: is no longer there, so its attribution is unknown\n" for one in missing]
            disk.write_text(directory / "ATTRIBUTION MISSING.txt", "".join(lines))
        return Path(shutil.make_archive(str(folder / "kept"), "zip", directory))


def vote(home: Path, shown: tuple[Found | None, Found | None], given: Mapping[str, str]) -> Path:
    """Store the answers by question about two sounds, in the order in which they were heard; None is a real recording.

    Returns the file of answers. Each pair of checkpoints has a comparison of its own for each set of questions, as `soundmill
    listening-test score` reads it, of one rater and one more request.
    """
    models = {}
    for one in sorted(filter(None, shown), key=lambda one: one.name):
        weights = hashing.model_digest(one.directory)
        models[one.name] = answers.KeyedModel(family=family_of(one.directory), weights=weights, scores=one.scores, of={})
    test = hashing.digest(list(given), {name: model.weights for name, model in models.items()})[:12]
    folder = home / VOTES / test
    with disk.exclusive(folder):
        path, key_path = folder / f"answers-{test}-1.json", folder / "key.json"
        sounds, trials, earlier = {}, [], []
        key = answers.read_key(key_path) if key_path.is_file() else None
        if key and (path.is_file() or len(key.orders[0]) > 1):
            earlier = params.read_json(path, "restore it beside its key.json")["answers"]
            trials = key.orders[0][: len(earlier)]  # a vote that could not be stored leaves the key ahead
            sounds = {name: key.sounds[name] for trial in trials for name in trial}
        trial = [f"s{2 * len(trials) + place:05d}" for place in (1, 2)]
        for sound, found in zip(trial, shown, strict=True):
            sounds[sound] = answers.KeyedSound(system=found.name if found else answers.REAL, request=f"vote-{len(trials) + 1:04d}")
        key = answers.Key(
            format=1,
            test=test,
            questions=list(given),
            scale=5,
            compare=True,
            seed=0,
            sounds=sounds,
            orders=[[*trials, trial]],
            models=models,
        )
        document = {"format": 1, "test": test, "rater": 1, "answers": [*earlier, {"sounds": trial, **given}]}
        disk.write_atomically(key_path, key.write)
        disk.write_text(path, json.dumps(document) + "\n")
    return path
