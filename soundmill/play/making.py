"""What a person asks of a checkpoint, as a file from which the same sound is made again, bit for bit."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from soundmill import disk, params
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.models import generation, transforming
from soundmill.models.family import Model, can
from soundmill.params import Probability, Seconds, Seed, StageParams
from soundmill.play.checkpoints import Found

STEPS = 5  # sounds of an interpolation
Kind = Literal["generate", "reconstruct", "restyle", "inpaint", "continue", "interpolate", "upsample"]


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

    def write(self, path: Path) -> None:
        disk.write_atomically(path, lambda temporary: temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8"))


def read(path: Path) -> Asked:
    return params.parse(Asked, params.read_json(path, "give the .json that was kept beside a sound"), str(path))


def kinds_of(model: Model) -> list[Kind]:
    """What a model can be asked."""
    sampling, transforms = type(model.params.sampling).model_fields, can(model, "transform")
    able: dict[Kind, bool] = {
        "generate": can(model, "generate"),
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
    if asked.kind == "generate":
        return generation.generate_sounds(loaded, asked.prompts, 1, asked.seed, output, home, asked.settings, labels=asked.labels)[
            0
        ]
    sounds = {Path(name).stem: decode.open_sound(folder / name) for name in asked.recordings}
    prompting = transforming.Prompting([*asked.prompts, *asked.labels], asked.seed)
    noisy = [*asked.settings, f"amount={asked.amount}"]
    ((name, sound), *_) = sounds.items()
    match asked.kind:
        case "reconstruct":
            (path,) = transforming.reconstruct(loaded, sounds, output, home, asked.settings)
        case "restyle":
            (path,) = transforming.restyle(loaded, sounds, prompting, output, home, noisy)
        case "upsample":
            (path,) = transforming.upsample(loaded, sounds, output, home, asked.settings)
        case "inpaint":
            ends = [(0.0, asked.start), (min(asked.stop, sound.seconds), sound.seconds)]
            kept = [(start, stop) for start, stop in ends if start < stop]
            (path,) = transforming.inpaint(loaded, sounds, kept, prompting, output, home, asked.settings)
        case "continue":
            longer = {name: sound.followed_by_silence(asked.seconds)}
            (path,) = transforming.inpaint(loaded, longer, [(0.0, sound.seconds)], prompting, output, home, asked.settings)
        case _:
            if len(sounds) != 2:
                raise UserError("interpolate needs two recordings of different names: add the second one")
            prompts, ends = list(prompting.prompts), (asked.seed, asked.seed)
            path = transforming.interpolate(loaded, ends, list(sounds.items()), STEPS, prompts, output, home, noisy)[asked.number]
    return path


@contextmanager
def watched(loaded: generation.Loaded, step: Callable[[], None]) -> Iterator[None]:
    """Call `step` before each pass of the checkpoint's net; what it raises ends the work."""
    handle = loaded.model.net.register_forward_pre_hook(lambda net, inputs: step())
    try:
        yield
    finally:
        handle.remove()


def repeat(path: Path, found: Found, output: Path) -> Path:
    """Make the sound of a kept request again; UserError if the checkpoint is another one now."""
    asked, loaded = read(path), generation.read(found.directory)
    if (digest := loaded.facts["checkpoint"]) != asked.digest:
        raise UserError(f"{found.name}: another checkpoint ({digest[:12]}…) than made this sound ({asked.digest[:12]}…)")
    return make(asked, loaded, path.parent, output, found.home)


def copy(wav: Path, name: str, folder: Path) -> Path:
    """Copy a sound with its request and recordings to another folder, under another name; returns the sound's path."""
    asked, target = read(wav.with_suffix(".json")), folder / f"{name}.wav"
    folder.mkdir(parents=True, exist_ok=True)
    recordings = [f"{name}.recording-{number}{Path(one).suffix}" for number, one in enumerate(asked.recordings, 1)]
    for old, new in zip(asked.recordings, recordings, strict=True):
        shutil.copyfile(wav.parent / old, folder / new)
    if (given := wav.with_name(f"{wav.stem}-input.wav")).is_file():
        shutil.copyfile(given, folder / f"{name}-input.wav")
    asked.model_copy(update={"recordings": recordings}).write(target.with_suffix(".json"))
    disk.write_atomically(target, lambda temporary: shutil.copyfile(wav, temporary))
    return target
