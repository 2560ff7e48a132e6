"""Sounds of the model that a fine-tuned one started from: for the same requests, and of both for the base's own prompts."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from soundmill import manifest, terminal
from soundmill.models import adapted, registry
from soundmill.models.family import Model, Request, Run, origin, use_weights
from soundmill.models.requests import describe, of_clips
from soundmill.models.sounds import as_long_as_clip, generate_each
from soundmill.training import checkpoint
from soundmill.training.seeds import seed_of

OWN_SOUNDS = 24  # for the base's own prompts, of each model
EVERYDAY = (  # prompts for a base that was imported, whose own are unknown
    "a dog barks",
    "a cat meows",
    "birds sing in a forest",
    "rain falls on a roof",
    "waves break on a beach",
    "a door is knocked on",
    "a car engine starts",
    "a clock ticks",
    "people talk in a room",
    "a baby cries",
    "a piano plays a slow melody",
    "a drum beat",
)
Write = Callable[[Path, Iterable[tuple[str, Tensor]], Model], Any]


def prompts_of(samples: Sequence[Request] | Tensor) -> dict[str, Any]:
    """What a training shows while it runs, for its checkpoint's config: prompts that its model knows."""
    if isinstance(samples, Tensor):
        return {}
    return {"prompts": [{"labels": list(request.labels), "caption": request.caption} for request in samples]}


def stand_ins(base: Model) -> list[dict[str, Any]]:
    """Prompts for a base whose checkpoint names none: EVERYDAY, or all its labels, or nothing if it is unconditional."""
    if base.condition == "caption":
        return [{"labels": [], "caption": caption} for caption in EVERYDAY]
    return [{"labels": [label], "caption": ""} for label in base.labels] or [{"labels": [], "caption": ""}]


def base_of(name: str, directory: Path, home: Path) -> Path | None:
    """The checkpoint that a model was fine-tuned from; None if it was not, or, with a message, if that one is gone."""
    started = checkpoint.read(directory).get("started_from")
    if started is None:
        return None
    if adapted.are_in(directory):
        return adapted.base_of(directory)
    where = home / checkpoint.read(directory)["params"]["start_from"]
    if (where / checkpoint.CONFIG).is_file() and origin(where)["checkpoint"] == started["checkpoint"]:
        return where
    terminal.say(f"{name}: {where} is missing or another model than this one started from, so the two are not compared")
    return None


def write(
    tuned: Model,
    base: Path,
    run: Run,
    catalog: Path,
    seed: int,
    lengths: Mapping[str, int],
    directory: Path,
    write_sounds: Write,
) -> None:
    """Write the base's sound for each clip of `lengths` (in samples), and both models' sounds for the base's own prompts.

    They are `directory/base/<clip id>.wav`, and `<number>.wav` in `directory/own/base`, `own/again` (the base with other seeds) and
    `own/tuned`. A base whose checkpoint names no prompts gets others, as long as the longest clip, which are listed in
    `own/prompts.json`.
    """
    family = registry.family(origin(base)["family"])
    model = family.load(base)
    use_weights(model, base, model.params.use)
    requests = of_clips(model, catalog, list(lengths), seed)
    sounds = zip(requests, generate_each(model, list(requests.values()), run), strict=True)
    write_sounds(
        directory / manifest.BASE, ((clip_id, as_long_as_clip(wave, lengths[clip_id], model)) for clip_id, wave in sounds), model
    )
    prompts, seconds = checkpoint.read(base).get("prompts"), None
    if not prompts:
        prompts, seconds = stand_ins(model), max(lengths.values()) / tuned.sample_rate
        listed = [text for prompt in prompts if (text := describe(Request(tuple(prompt["labels"]), prompt["caption"])))]
        (directory / manifest.OWN).mkdir()
        (directory / manifest.OWN / manifest.OWN_PROMPTS).write_text(json.dumps({"prompts": listed}) + "\n", encoding="utf-8")
    for name, maker in (("base", model), ("again", model), ("tuned", tuned)):
        own = [
            Request(tuple(prompt["labels"]), prompt["caption"], seed_of(seed, "own", name == "again", number), seconds=seconds)
            for number in range(OWN_SOUNDS)
            for prompt in [prompts[number % len(prompts)]]
        ]
        waves = zip((f"{number:03d}" for number in range(OWN_SOUNDS)), generate_each(maker, own, run), strict=True)
        write_sounds(directory / manifest.OWN / name, waves, maker)
