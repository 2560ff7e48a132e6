"""Build generation requests from test clips or prompts."""

import re
from collections.abc import Sequence
from pathlib import Path

from soundmill import hashing, manifest, shards, terminal
from soundmill.errors import UserError
from soundmill.models.family import Model, Request
from soundmill.params import did_you_mean
from soundmill.training.seeds import seed_of


class NoLabel(UserError):
    """A prompt that matches no label of the model, or several; `example` is a valid label, "" if the model has none."""

    def __init__(self, message: str, example: str) -> None:
        super().__init__(message)
        self.example = example


def of_clips(model: Model, catalog: Path, clip_ids: Sequence[str], seed: int) -> dict[str, Request]:
    """Request by clip id: labels, one caption of several or both, as the model is told, the length, and a seed from the id."""
    rows = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "labels", "captions", "seconds"]).to_pylist()
    by_id = {row["clip_id"]: row for row in rows}
    requests = {}
    unknown: set[str] = set()
    for clip_id in clip_ids:
        labels, caption = (), ""
        if model.labels:
            clip_labels = sorted(set(by_id[clip_id]["labels"] or []))
            unknown.update(set(clip_labels) - set(model.labels))
            labels = tuple(label for label in clip_labels if label in model.labels)
        if model.condition == "caption":
            caption = hashing.prompt_of(clip_id, by_id[clip_id]["captions"] or [])
        requests[clip_id] = Request(labels, caption, seed_of(seed, clip_id), seconds=by_id[clip_id]["seconds"])
    if unknown:
        terminal.say(f"ignoring labels that the model was not trained on: {', '.join(sorted(unknown))}")
    return requests


def of_prompts(model: Model, prompts: Sequence[str], count: int, seed: int, labels: Sequence[str] = ()) -> list[Request]:
    """Requests for `count` sounds: of each prompt if the model is conditioned on captions; of all prompts together if on labels.

    A model conditioned on both gives `labels` to every sound; for any other model they are further prompts. With neither, sounds
    are unconditional, which a model conditioned on captions refuses. An unknown label is a NoLabel that lists the labels.
    """
    texts: Sequence[str | None] = prompts
    if model.condition != "caption":
        texts, labels = [None], [*prompts, *labels]
    elif not model.labels:
        texts, labels = [*prompts, *labels], ()
    matched = tuple(match_label(label, model.labels) for label in labels)
    if not texts and not matched:
        raise UserError('this model is conditioned on text: give a prompt, such as "a dog barks, then rain"')
    return [
        Request(matched, text or "", seed_of(seed, *([] if text is None else [text]), *matched, index))
        for text in texts or [None]
        for index in range(count)
    ]


def describe(request: Request) -> str:
    """The request as text; "" if it is unconditional."""
    return " · ".join(filter(None, [request.caption, ", ".join(request.labels)]))


def match_label(text: str, labels: Sequence[str]) -> str:
    """The label that a prompt means: equal up to case, the only one that contains the text, or the only one whose words (stemmed)
    all occur in the text (`a dog barks`: `dog`, `dog_barking`). Of `drum` and `kick drum` the longer one counts."""
    if not labels:
        raise NoLabel(f"label {text!r}: this model was trained without labels; leave it out", "")
    exact = [label for label in labels if label.casefold() == text.casefold()]
    within = [label for label in labels if text.strip() and text.casefold() in label.casefold()]
    words = _stems(text)
    named = {label: stems for label in labels if (stems := _stems(label)) and stems <= words}
    longest = [label for label, stems in named.items() if not any(stems < others for others in named.values())]
    matching = exact or within or longest
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise NoLabel(f"label {text!r} could be any of: {', '.join(matching)}; choose one", matching[0])
    raise NoLabel(f"unknown label {text!r}{did_you_mean(text, list(labels))} (labels: {', '.join(labels)})", labels[0])


def print_matched_labels(model: Model, prompts: Sequence[str], labels: Sequence[str] = ()) -> None:
    """Print to stderr which label each prompt or label matched, if it is not spelled the same."""
    for prompt in [*(prompts if model.condition == "labels" else ()), *(labels if model.labels else ())]:
        label = match_label(prompt, model.labels)
        if label.casefold() != prompt.casefold():
            terminal.say(f"{prompt!r} matches the label {label!r}", error=True)


def _stems(text: str) -> frozenset[str]:
    return frozenset(_stem(word) for word in re.findall(r"[^\W_]+", text.casefold()))


def _stem(word: str) -> str:
    """An English word without plural and verb endings: `barks`, `barked`, `barking` → `bark`; `cries`, `cry` → `cri`. A simplified
    step 1 of Porter (1980)."""
    if len(word) > 3:
        word = re.sub(r"(?<![su])s$", "", word)
        word = re.sub(r"^(?=.*[aeiouy].*(?:ing|ed)$)(.{3,})(?:ing|ed)$", r"\1", word)
        word = re.sub(r"^(.{3,})e$", r"\1", word)
    return re.sub(r"([^aeiou])\1$", r"\1", re.sub(r"y$", "i", word))
