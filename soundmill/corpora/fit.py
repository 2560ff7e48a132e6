"""How well captions and words fit the sounds of clips, and what fits too badly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from soundmill.corpora.matching import Heard


@dataclass(frozen=True)
class LeastScores:
    """Scores of manifest.ZERO_SHOT that a text needs."""

    tag: float
    caption: float | None  # None: all captions are kept

    def heard(self, row: Mapping[str, Any]) -> Heard:
        """What a row of manifest.ZERO_SHOT says of its clip."""
        tags = [tag["tag"] for tag in row["tags"] if tag["score"] >= self.tag]
        captions = [] if self.caption is None else row["captions"]
        return Heard(tags, {caption["caption"] for caption in captions if caption["score"] < self.caption})


@dataclass(frozen=True)
class Fit:
    """Captions (`clip_id`, `caption`, `score`) and words (`clip_id`, `tag`, `score`) that were compared with clips."""

    captions: pa.Table
    words: pa.Table
    least: LeastScores

    @classmethod
    def of(cls, scores: pa.Table, least: LeastScores) -> Fit:
        """The rows of manifest.ZERO_SHOT, one by text."""
        return cls(_by_text(scores, "captions", "caption"), _by_text(scores, "tags", "tag"), least)

    @property
    def tags(self) -> pa.Table:
        return self.words.filter(pc.greater_equal(self.words["score"], self.least.tag))

    @property
    def unfit(self) -> pa.Table:
        """The captions that are left out."""
        if self.least.caption is None:
            return self.captions.slice(0, 0)
        return self.captions.filter(pc.less(self.captions["score"], self.least.caption))


def _by_text(scores: pa.Table, column: str, name: str) -> pa.Table:
    lists = scores[column].combine_chunks()
    texts = pc.list_flatten(lists)
    owners = scores["clip_id"].combine_chunks().take(pc.list_parent_indices(lists))
    return pa.table({"clip_id": owners, name: pc.struct_field(texts, name), "score": pc.struct_field(texts, "score")})
