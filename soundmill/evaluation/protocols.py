"""Protocols: named, versioned files that fix the metrics, embedders and sample rate of a score.

A protocol is a YAML file in the directory `protocols` beside this module. Results carry its label, which ends with its version; a
change that affects scores gets a new version.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from soundmill import params
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import EmbedderName
from soundmill.evaluation.embedders.base import Level
from soundmill.metrics import scores
from soundmill.params import SampleRate, Seed, StageParams, did_you_mean

DIRECTORY = Path(__file__).with_suffix("")
NAMES = tuple(sorted(path.stem for path in DIRECTORY.glob("*.yaml")))
PROJECT = "project"  # the one whose embedders the stage `evaluate` chooses
CLAP_SCORE = "clap_score"  # its key in results names no embedder if that is clap


MetricName = Annotated[str, embedders.one_of(scores.METRICS, "metric")]


class ScoreSpec(StageParams):
    metric: MetricName
    embedder: EmbedderName

    @model_validator(mode="after")
    def _check_embedder(self) -> Self:
        if not supports(self.embedder, self.metric):
            needs = {CLAP_SCORE: "embeddings of texts", "fad_per_clip": "several embeddings per clip"}
            needs |= dict.fromkeys(scores.RATINGS, "a predictor of ratings")
            other = "embeddings" if embedders.find(self.embedder).ratings else "a classifier"
            raise ValueError(f"{self.metric} needs {needs.get(self.metric, other)}, not {self.embedder}")
        return self

    @property
    def key(self) -> str:
        return key_of(self.metric, self.embedder)


class Protocol(StageParams):
    """A way to score; it is frozen, so take `model_copy(update=…)` for another seed or number of replicates."""

    name: str = Field(description="the file's name")
    version: int = Field(ge=1)
    label: str = Field(description="carried by results; ends with the version")
    description: str
    sample_rate: SampleRate | None = Field(description="sounds are resampled to it first; null: directly to the embedder's rate")
    resampler: Literal["soxr HQ"]
    level: Level = Field("unchanged", description="peak: every sound's peak is scaled to −1 dBFS; centred: its mean is subtracted")
    embedders: dict[EmbedderName, dict[str, str | int | float]] = Field(min_length=1, description="options of each embedder")
    scores: list[ScoreSpec] = Field(min_length=1)
    replicates: int = Field(ge=0, le=100_000, description="bootstrap resamples of clips for the 95 % intervals; 0: no intervals")
    seed: Seed
    comparable: list[str] = Field([], description="which published scores each score may be compared with; printed below the table")
    parity: list[str] = Field(min_length=1, description="differences from the tool it is named after, and why")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if not self.label.endswith(f"-{self.version}"):
            raise ValueError(f"label: {self.label!r} does not end with the version, -{self.version}")
        keys = [score.key for score in self.scores]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(f"scores: {', '.join(repeated)} is listed twice")
        scored = {score.embedder for score in self.scores}
        if scored != set(self.embedders):
            mismatched = ", ".join(sorted(scored ^ set(self.embedders)))
            raise ValueError(f"embedders: {mismatched} must be listed here and in a score")
        return self

    def with_embedders(self, names: list[str]) -> Self:
        """The same metrics under these embedders, as far as each supports them.

        Those that read texts add clap_score, those that rate sounds their ratings. An unknown name raises UserError.
        """
        own = [score.metric for score in self.scores if score.metric != CLAP_SCORE]
        metrics = dict.fromkeys([*own, CLAP_SCORE, *scores.RATINGS])
        specs = [ScoreSpec(metric=metric, embedder=name) for name in names for metric in metrics if supports(name, metric)]
        options = {name: self.embedders.get(name, {}) for name in names}
        return self.model_copy(update={"embedders": options, "scores": specs})


def key_of(metric: str, embedder: str) -> str:
    return metric if (metric, embedder) == (CLAP_SCORE, "clap") else f"{metric}_{embedder}"


def supports(embedder: str, metric: str) -> bool:
    """Whether the embedder provides what the metric needs: logits, embeddings of prompts, or several embeddings per clip."""
    declared = embedders.find(embedder)
    if declared.ratings or metric in scores.RATINGS:
        return metric in declared.ratings
    if metric == CLAP_SCORE:
        return declared.texts
    if metric == "fad_per_clip":
        return declared.patches
    return declared.classifier or not scores.METRICS[metric].needs_logits


class EvaluateParams(StageParams):
    """The section `evaluate` of params.yaml."""

    embedders: list[EmbedderName] = Field(min_length=1, description="each adds its own metrics")
    protocols: list[str] = Field(
        min_length=1, description="project, under the embedders above, then any published ones, whole: each adds a block of scores"
    )
    reference: Literal["test", "all"] = Field(description="the real clips that generated sounds are compared with")
    bootstrap: int = Field(ge=0, le=100_000, description="bootstrap resamples of clips for the 95 % intervals; 0: no intervals")
    probe_clips: int = Field(ge=0, description="single-label real clips that the linear probe is fitted to, at most; 0: no probe")
    training_clips: int = Field(ge=0, description="training clips that are searched for copies, at most; 0: no search")
    subsets: list[Literal["events", "labels", "categories"]] = Field(
        description="groupings of the prompts; each group is also scored separately"
    )
    ladder: list[MetricName] = Field(
        description="metrics that are also measured on real sounds degraded in known ways, for comparison; none: no ladder"
    )
    examples: int = Field(ge=0, le=100, description="generated sounds on the page, each beside its reference")
    seed: Seed

    @field_validator("protocols")
    @classmethod
    def _begins_with_project(cls, names: list[str]) -> list[str]:
        if names[0] != PROJECT:
            raise ValueError(f"must begin with {PROJECT}, whose scores the report and the flows compare")
        for name in names:
            if name not in NAMES:  # a file of one's own would be no dependency of this stage
                raise ValueError(f"unknown protocol {name!r}{did_you_mean(name, NAMES)}; of {', '.join(NAMES)}")
        return names

    @field_validator("embedders", "protocols", "subsets", "ladder")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("contains a name twice")
        return names


def load(name: str) -> Protocol:
    """The protocol of that name, or in that file if it ends in .yaml; an invalid one raises UserError naming file and key."""
    path = Path(name) if name.endswith(".yaml") else DIRECTORY / f"{name}.yaml"
    if not os.path.isfile(path):  # too long a name either
        raise UserError(
            f"no protocol or file {name!r}{did_you_mean(name, list(NAMES))}; there are {', '.join(NAMES)}, or give a .yaml file"
        )
    protocol = params.parse(Protocol, params.read_yaml(path), f"{path}: protocol")
    if protocol.name != path.stem:
        raise UserError(f"{path}: name: {protocol.name!r} differs from the file's name, {path.stem!r}")
    return protocol


def check_weights(names: Iterable[str]) -> None:
    """UserError if a published protocol of these names lacks weights here: without one of its scores it is another protocol."""
    used = {embedder: name for name in names if name != PROJECT for embedder in load(name).embedders}
    reasons = [f"{name} needs {one}: {reason}" for one, name in used.items() if (reason := embedders.find(one).unavailable())]
    if reasons:
        raise UserError("\n".join(f"evaluate.protocols: {reason}; or remove it from evaluate.protocols" for reason in reasons))
