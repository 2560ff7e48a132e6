"""What families prepare alike: the clips of a catalog with labels and captions, their order, those held out, and rehearsals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards
from soundmill.errors import UserError
from soundmill.models.catalog import choose_by_hash, read_weights
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import TextConfig, Texts
from soundmill.models.family import Model, Prepared, Rehearsal, Request
from soundmill.models.labels import Labelled, label_weights
from soundmill.models.params import BatchedTrainParams
from soundmill.models.requests import of_captions, of_grid
from soundmill.training.loader import Batch, Order, Source
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import HeldOut
from soundmill.training.seeds import seed_of


@dataclass(frozen=True)
class Captions:
    """The captions of items, of which one is drawn."""

    numbers: Sequence[Sequence[int]]  # of each item's captions
    texts: Texts

    def drawn(self, item: int, which: float) -> int | None:
        """The caption at `which` in [0, 1); None if the item has none."""
        captions = self.numbers[item]
        return captions[int(which * len(captions))] if captions else None


@dataclass(frozen=True)
class Captioned:
    """A source that appends what one caption per item tells.

    `drawn` [b, 2] in [0, 1): for the other source, and to select a caption.
    """

    source: Source
    captions: Captions
    # Of the texts of these numbers, None for no text: a function of a module, since it goes to worker processes.
    told: Callable[[Texts, Sequence[int | None]], tuple[Tensor, ...]]

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        chosen = [self.captions.drawn(item, which) for item, which in zip(items, drawn[:, 1].tolist(), strict=True)]
        return *self.source.batch(items, drawn[:, 0]), *self.told(self.captions.texts, chosen)


def _vectors(texts: Texts, numbers: Sequence[int | None]) -> tuple[Tensor]:
    states = (None if number is None else texts.states.read(number) for number in numbers)
    return (text_states.vectors(states, int(texts.states.shapes[0, 1])),)


def _with_captions(places: Callable[[int], Tensor], params: BatchedTrainParams, step: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed_of(params.seed, "caption", step))
    return torch.stack([places(step), torch.rand(params.batch_size, generator=rng)], 1)


@dataclass
class Clips:
    """The clips of a catalog as a family trains on them; labels and captions are there once they are asked for."""

    params: BatchedTrainParams
    ctx: Any
    catalog: Path
    train: dict[str, float]  # weights by clip id
    valid: list[str]
    labels: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    texts: Texts | None = None  # of the captions

    @classmethod
    def read(cls, params: BatchedTrainParams, ctx: Any, catalog: Path) -> Clips:
        """UserError if the training split is empty."""
        splits = read_weights(catalog)
        return cls(params, ctx, catalog, splits["train"], list(splits["valid"]))

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Captions, sorted labels, start and seconds by clip id."""
        rows = shards.read_table(self.catalog, manifest.CATALOG, ["clip_id", "captions", "labels", "start", "seconds"]).to_pylist()
        told = ({"captions": [*filter(None, row["captions"] or [])], "labels": sorted(set(row["labels"] or []))} for row in rows)
        return {row["clip_id"]: row | more for row, more in zip(rows, told, strict=True)}

    def know_labels(self, start: Model | None, remedy: str | None = None) -> None:
        """Those of the training clips, after those of an earlier model; UserError with the remedy, if any, if clips have none."""
        found = sorted({label for clip_id in self.train for label in self.facts[clip_id]["labels"]})
        if not found and remedy:
            raise UserError(f"{self.catalog}: no training clip has a label; {remedy}")
        before = list(start.labels) if start else []
        self.labels = [*before, *(label for label in found if label not in before)]

    def label_weights(self, clip_ids: Sequence[str]) -> Tensor:
        """[N, num_labels]"""
        return torch.stack([label_weights(self.facts[clip_id]["labels"], self.labels) for clip_id in clip_ids])

    def labelled(self, source: Source, clip_ids: Sequence[str]) -> Source:
        """The source with label weights, if the family knows labels."""
        return Labelled(source, self.label_weights(clip_ids)) if self.labels else source

    def read_texts(self, directory: Path, width: int, remedy: str, key: str = "text_width") -> TextConfig:
        """Read the states of all captions; returns their encoder. UserError with the remedy if no clip has a caption."""
        self.captions = sorted({caption for row in self.facts.values() for caption in row["captions"]})
        if not self.captions:
            raise UserError(f"{self.catalog}: no clip has a caption; {remedy}")
        self.texts = text_states.read_texts(directory, self.captions, "zeros", width, key, self.ctx.scratch)
        return text_states.read_config(directory)

    def captions_of(self, clip_ids: Sequence[str]) -> Captions:
        numbers = {caption: number for number, caption in enumerate(self.captions)}
        return Captions([[numbers[one] for one in self.facts[clip_id]["captions"]] for clip_id in clip_ids], self.texts)

    def caption_vectors(self, clip_ids: Sequence[str]) -> Tensor:
        """Of the first caption of each clip, zero if it has none: [N, width]."""
        return _vectors(self.texts, [numbers[0] if numbers else None for numbers in self.captions_of(clip_ids).numbers])[0]

    def told(self, source: Source, clip_ids: Sequence[str]) -> Source:
        """The source with a vector for each item: of one of its captions, or else its label weights, if the family knows them."""
        return Captioned(source, self.captions_of(clip_ids), _vectors) if self.texts else self.labelled(source, clip_ids)

    def drawing(self, places: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        """`places` of a step, [B] in [0, 1); with captions, also a number that selects one of each item, [B, 2]."""
        return partial(_with_captions, places, self.params) if self.texts else places

    @cached_property
    def order(self) -> Order:
        return Order(self.params.seed, self.train, self.params.batch_size)

    @property
    def steps(self) -> int:
        return self.params.steps or -(-self.order.steps(self.params.epochs) // getattr(self.params, "accumulate", 1))

    @cached_property
    def held_out(self) -> list[str]:
        """At most `validate_batches` of the clips for validation."""
        return choose_by_hash(self.valid, self.params.validate_batches * self.params.batch_size)

    def samples(self) -> list[Request]:
        """Requests for the grid: captions, with their labels, or labels, as far as the family knows them."""
        grid, seed = self.params.grid, self.params.seed
        if not self.captions:
            return of_grid(grid, seed, self.labels)
        labels_of = {caption: row["labels"] for row in self.facts.values() for caption in row["captions"]} if self.labels else {}
        return of_captions(grid, seed, self.captions, labels_of)

    def prepared(
        self,
        module: TrainingModule,
        model: Model,
        source_of: Callable[[Sequence[str]], Source],
        draw: Callable[[int], Tensor],
        seconds: float,
        save: Callable[[Path, dict[str, Any]], None],
        counts: dict[str, int],
        samples: Sequence[Request] | Tensor | None = None,
    ) -> Prepared:
        """Of items of `seconds`, which `source_of` gives for clip ids; samples None: `samples()`."""
        clip_ids = list(self.train)
        return Prepared(
            module,
            model,
            source_of(clip_ids),
            self.order,
            draw,
            seconds,
            clip_ids,
            counts,
            self.samples() if samples is None else samples,
            self.params.grid.columns,
            HeldOut(source_of(self.held_out), len(self.held_out)) if self.held_out else None,
            save,
        )


def rehearsal(
    module: TrainingModule, items: int, values: Callable[[torch.Generator], tuple[Tensor, ...]], clips: int, passes: float
) -> Rehearsal:
    """A training on batches of `items` that `values` draws, of `clips` clips each; a sound takes `passes` of the net."""

    def batch(step: int) -> Batch:
        return Batch(step, np.zeros(items, np.int64), values(torch.Generator().manual_seed(step)))

    return Rehearsal(module, batch, clips, round(passes))
