"""What families prepare alike: the clips of a catalog with labels and captions, their order, those held out, and rehearsals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards
from soundmill.errors import UserError
from soundmill.models.catalog import beginnings, choose_by_hash, read_weights
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import TextConfig, Texts
from soundmill.models.family import Model, Prepared, Rehearsal, Request
from soundmill.models.params import BatchedTrainParams
from soundmill.models.trained import label_weights
from soundmill.training.loader import Batch, Order, Source, crop_places
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import HeldOut
from soundmill.training.seeds import seed_of


@dataclass(frozen=True)
class Labelled:
    """A source that appends label weights [b, num_labels] to the batches of another."""

    source: Source
    label_weights: Tensor  # [N, num_labels]

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        return *self.source.batch(items, drawn), self.label_weights[items]


@dataclass(frozen=True)
class Captioned:
    """A source that appends what one caption per item tells, None for an item without.

    `drawn` [b, 2 or 3] in [0, 1): for the other source, to select a caption and, below `dropout`, to leave it out.
    """

    source: Source
    numbers: Sequence[Sequence[int]]  # of each item's captions
    tell: Callable[[Sequence[int | None]], tuple[Tensor, ...]]  # of captions by number
    dropout: float = 0.0

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        chosen: list[int | None] = []
        for item, (which, *chance) in zip(items, drawn[:, 1:].tolist(), strict=True):
            captions = self.numbers[item]
            told = captions and (not chance or chance[0] >= self.dropout)
            chosen.append(captions[int(which * len(captions))] if told else None)
        return *self.source.batch(items, drawn[:, 0]), *self.tell(chosen)


def with_captions(places: Callable[[int], Tensor], params: BatchedTrainParams, step: int) -> Tensor:
    """`places` of a step, and numbers that select a caption of each item, [B, 2] in [0, 1)."""
    rng = torch.Generator().manual_seed(seed_of(params.seed, "caption", step))
    return torch.stack([places(step), torch.rand(params.batch_size, generator=rng)], 1)


def places_of(crop: str, seed: int, batch_size: int, step: int) -> Tensor:
    """Relative starts of crops [batch_size] in [0, 1): all 0 with `crop: start`."""
    return torch.zeros(batch_size) if crop == "start" else crop_places(seed, batch_size, step)


@dataclass
class Clips:
    """The clips of a catalog as a family trains on them; labels and captions are there once they are asked for."""

    params: BatchedTrainParams
    ctx: Any
    catalog: Path
    train: dict[str, float]  # weights by clip id
    valid: list[str]
    mixed: list[str] = field(default_factory=list)  # training mixes
    labels: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    text: TextConfig | None = None  # the encoder of the captions
    texts: Texts | None = None

    @classmethod
    def read(cls, params: BatchedTrainParams, ctx: Any, catalog: Path) -> Self:
        """UserError if the training split is empty."""
        splits = read_weights(catalog)
        return cls(params, ctx, catalog, splits["train"], list(splits["valid"]))

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Captions, sorted labels, start and seconds by clip id."""
        rows = shards.read_table(self.catalog, manifest.CATALOG, ["clip_id", "captions", "labels", "start", "seconds"]).to_pylist()
        told = ({"captions": [*filter(None, row["captions"] or [])], "labels": sorted(set(row["labels"] or []))} for row in rows)
        return {row["clip_id"]: row | more for row, more in zip(rows, told, strict=True)}

    def learn_conditions(self, family: str, start: Model | None, texts: Path | None = None) -> Self:
        """Read the labels, after those of an earlier model, and the states in `texts` of captions, as the params ask for them.

        UserError if clips have none, and the params of the family say how it trains without.
        """
        if self.params.by_label:
            found = sorted({label for clip_id in self.train for label in self.facts[clip_id]["labels"]})
            self._refuse_none(found, "no training clip has a label", family, "label")
            before = list(start.labels) if start else []
            self.labels = [*before, *(label for label in found if label not in before)]
        if self.params.by_caption:
            self.captions = sorted({caption for row in self.facts.values() for caption in row["captions"]})
            self._refuse_none(self.captions, "no clip has a caption", family, "caption")
            self.read_texts(texts, "zeros")
        return self

    def _refuse_none(self, found: Sequence[str], problem: str, family: str, what: str) -> None:
        if not found and what in self.params.without:
            raise UserError(f"{self.catalog}: {problem}; set {family}.train.{self.params.without[what]}")

    def read_texts(self, directory: Path, null_text: str) -> None:
        """Read the states of `captions`."""
        key = self.params.text_key
        width = attrgetter(key)(self.params)
        self.texts = text_states.read_texts(directory, self.captions, null_text, width, key, self.ctx.scratch)
        self.text = text_states.read_config(directory)

    @property
    def conditions(self) -> dict[str, Any]:
        """Fields of a `TrainedModel` on these clips."""
        return {"labels": self.labels, "text": self.text, "texts": self.texts}

    @property
    def counts(self) -> dict[str, int]:
        return {"captions": len(self.captions)} if self.text else {"labels": len(self.labels)}

    def label_weights(self, clip_ids: Sequence[str]) -> Tensor:
        """[N, num_labels]"""
        return torch.stack([label_weights(self.facts[clip_id]["labels"], self.labels) for clip_id in clip_ids])

    def labelled(self, source: Source, clip_ids: Sequence[str]) -> Source:
        """The source with label weights, if the family knows labels."""
        return Labelled(source, self.label_weights(clip_ids)) if self.labels else source

    def captions_of(self, clip_ids: Sequence[str]) -> list[list[int]]:
        """Numbers of the captions of each clip; none if the family does not know them."""
        if not self.text:
            return [[] for _ in clip_ids]
        numbers = {caption: number for number, caption in enumerate(self.captions)}
        return [[numbers[one] for one in self.facts[clip_id]["captions"]] for clip_id in clip_ids]

    def level_conditions(self, clip_ids: Sequence[str]) -> Tensor:
        """Of each clip, the vector of its first caption, or its label weights: [N, conditions]."""
        if not self.text:
            return self.label_weights(clip_ids)
        first = [numbers[0] if numbers else None for numbers in self.captions_of(clip_ids)]
        return self.texts.vectors(self.params.text_width, first)[0]

    def told(self, source: Source, clip_ids: Sequence[str]) -> Source:
        """The source with a vector for each item: of one of its captions, or else its label weights, if the family knows them."""
        if not self.text:
            return self.labelled(source, clip_ids)
        return Captioned(source, self.captions_of(clip_ids), partial(self.texts.vectors, self.params.text_width))

    def drawing(self, places: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        """`places` of a step, [B] in [0, 1); with captions, also a number that selects one of each item, [B, 2]."""
        return partial(with_captions, places, self.params) if self.text else places

    @cached_property
    def order(self) -> Order:
        return Order(self.params.seed, self.train, self.params.batch_size)

    @property
    def steps(self) -> int:
        return self.params.steps or -(-self.order.steps(self.params.epochs) // getattr(self.params, "accumulate", 1))

    @cached_property
    def held_out(self) -> list[str]:
        """At most `validate_batches` of the clips for validation."""
        return choose_by_hash(self.valid, self.params.validate_batches * self.order.batch_size)

    def samples(self) -> list[Request]:
        """Requests for the grid: captions at even intervals, with their labels, or labels in turn; none if it knows none."""
        count = self.params.grid.columns * self.params.grid.rows
        captions, labels = [""] * count, [()] * count
        if self.text and self.captions:
            captions = [self.captions[cell * len(self.captions) // count] for cell in range(count)]
            labels_of = {caption: tuple(row["labels"]) for row in self.facts.values() for caption in row["captions"] if self.labels}
            labels = [labels_of.get(caption, ()) for caption in captions]
        elif self.labels and not self.text:
            labels = [(self.labels[cell % len(self.labels)],) for cell in range(count)]
        seeds = [seed_of(self.params.seed, "grid", cell) for cell in range(count)]
        return [Request(*request) for request in zip(labels, captions, seeds, strict=True)]

    def shown(self, clips: Path) -> Tensor:
        """Beginnings of real waves [N, C, T] for half of the grid's cells, to reconstruct."""
        grid = self.params.grid
        return torch.from_numpy(beginnings(clips, self.held_out or list(self.train), grid.columns * grid.rows // 2))

    def prepared(
        self,
        module: TrainingModule,
        model: Model,
        source_of: Callable[[Sequence[str]], Source],
        draw: Callable[[int], Tensor],
        seconds: float,
        counts: dict[str, int],
        samples: Sequence[Request] | Tensor | None = None,
        **more: Any,
    ) -> Prepared:
        """Of items of `seconds`, which `source_of` gives for clip ids; samples None: `samples()`; `more` fields of Prepared."""
        clip_ids, unseen = list(self.train), self.held_out
        return Prepared(
            module,
            model,
            source_of([*clip_ids, *self.mixed]),
            self.order,
            draw,
            seconds,
            clip_ids,
            counts,
            self.samples() if samples is None else samples,
            self.params.grid.columns,
            HeldOut(source_of(unseen), len(unseen)) if unseen else None,
            **more,
        )


def rehearsal(
    module: TrainingModule, noise: Sequence[tuple[int, ...]], told: Sequence[Tensor], passes: float, clips: int | None = None
) -> Rehearsal:
    """A training on batches of noise of these shapes and what is `told`, of `clips` each (None: as many as items).

    A sound takes `passes` of the net.
    """
    items = module.params.items

    def batch(step: int) -> Batch:
        rng = torch.Generator().manual_seed(step)
        return Batch(step, np.zeros(items, np.int64), (*(torch.randn(shape, generator=rng) for shape in noise), *told))

    return Rehearsal(module, batch, clips or items, round(passes))


def guided_passes(sampling: Any, guides: bool) -> int:
    """Passes of the net per generated sound; with guidance, if the net `guides`, two per step."""
    return sampling.num_steps * (1 + (guides and sampling.guidance_scale != 1))
