"""The page's fields: their values as requests have them, and what is wrong with them, told at the field."""

import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import Field

from soundmill import params, terminal
from soundmill.errors import UserError, reason
from soundmill.play.making import Asked

FIELDS = params.read_yaml(Path(__file__).with_name("fields.yaml"))
KINDS = params.read_yaml(Path(__file__).with_name("kinds.yaml"))  # of change: what is said, and the fields that it reads
MAX_COUNT = 20  # sounds of one press


class Pressed(Asked):
    """A request as the page's fields have it."""

    count: int = Field(1, ge=1, le=MAX_COUNT)


class Faults(dict[str, str]):
    """What is wrong with a request, as a sentence by the name of the field, where Gradio shows it as text and reads it out."""

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not isinstance(error, UserError):
                terminal.say(traceback.format_exc(), error=True)
            self.setdefault(getattr(error, "field", name), reason(error).removeprefix("request.").removeprefix("sampling."))

    def check(self, asked: Mapping[str, Any], fields: Iterable[str]) -> None:
        """Find the values that no request can have."""
        for name in [name for name in fields if name in asked]:
            with self.at(name):
                params.parse(Pressed, {"checkpoint": "", name: asked[name]}, "request")

    def shown(self, *names: str) -> list[dict[str, Any]]:
        return [gr.validate(name not in self, self.get(name, "")) for name in names]

    def at_components(self, given: Iterable[Any]) -> dict[Any, dict[str, Any]]:
        return {component: self.shown(_name_of(component))[0] for component in given}


def _name_of(component: Any) -> str:
    return component.elem_id.rpartition("-")[2]


def by_name(given: Mapping[Any, Any]) -> dict[str, Any]:
    """The values of fields that are not empty, nor hidden for the kind of change."""
    asked = {_name_of(component): value for component, value in given.items() if value is not None}
    shown = ("checkpoint", "kind", "recording", *KINDS.get(asked["kind"], [""])[1:]) if "kind" in asked else asked
    return {name: value for name, value in asked.items() if name in shown}


def settings_of(asked: Mapping[str, Any]) -> dict[str, list[str]]:
    """As `--set` takes them, by the name of the field."""
    told = {name: [f"{name}={asked[name]}"] for name in ("num_steps", "guidance_scale", "seconds") if name in asked}
    return {**told, "sampler": [*filter(None, [asked.get("sampler")])], "settings": asked.get("settings", "").split()}


def successive(asked: Mapping[str, Any], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Requests with these fields, where they are not empty, and one seed after another."""
    told = {key: asked[key] for key in keys if key in asked}
    return [{**told, "seed": asked.get("seed", 0) + step} for step in range(min(asked.get("count", 1), MAX_COUNT))]


def words_of(text: str | None) -> list[str]:
    return [text.strip()] if text and text.strip() else []
