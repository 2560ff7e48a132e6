"""Named, versioned ways to score: which metrics of which embedders, at what rate, and where they differ from the tool named.

A protocol is a YAML file beside this module. Results carry its label, which ends with its version; a change that changes scores
is a new version.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from soundmill import params
from soundmill.errors import UserError
from soundmill.evaluation import embedders, scores
from soundmill.params import SampleRate, Seed, StageParams, did_you_mean

DIRECTORY = Path(__file__).with_suffix("")
NAMES = ("audioldm_eval-16k", "fadtk-vggish", "google-fad", "project")
NO_CLASSIFIERS = ("vggish", "clap")
ONE_A_CLIP = ("panns_cnn14_16k", "panns_cnn14_32k", "clap")  # one embedding of a clip, of which there is no covariance
ALONE = "clap_score"  # a metric of one embedder only, so its key names none


class Score(StageParams):
    """One metric by one embedder."""

    metric: str
    embedder: str

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        return _one_of(name, scores.METRICS, "metric")

    @field_validator("embedder")
    @classmethod
    def _known_embedder(cls, name: str) -> str:
        return _one_of(name, embedders.NAMES, "embedder")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not can_judge(self.embedder, self.metric):
            needs = {ALONE: "clap", "fad_per_clip": "several embeddings of a clip"}.get(self.metric, "a classifier")
            raise ValueError(f"{self.metric} needs {needs}, and not {self.embedder}")
        return self

    @property
    def key(self) -> str:
        """Of its number in results."""
        return self.metric if self.metric == ALONE else f"{self.metric}_{self.embedder}"


class Protocol(StageParams):
    """A way to score; frozen, other seeds or replicates by `model_copy(update=…)`."""

    name: str = Field(description="the file's name")
    version: int = Field(ge=1)
    label: str = Field(description="what results carry; ends with the version")
    description: str
    sample_rate: SampleRate | None = Field(description="every sound is brought to it first; null: straight to the embedder's own")
    resampler: str = Field(description="soxr HQ for all: the one there is")
    embedders: dict[str, dict[str, str | int | float]] = Field(min_length=1, description="options of each embedder's front end")
    scores: list[Score] = Field(min_length=1)
    replicates: int = Field(ge=0, le=100_000, description="resamples by clip for the 95 % intervals; 0: no intervals")
    seed: Seed
    parity: list[str] = Field(min_length=1, description="where it differs from the tool it is named after, and why")

    @field_validator("embedders")
    @classmethod
    def _known_embedders(cls, options: dict[str, dict[str, str | int | float]]) -> dict[str, dict[str, str | int | float]]:
        for name in options:
            _one_of(name, embedders.NAMES, "embedder")
        return options

    @field_validator("resampler")
    @classmethod
    def _the_resampler(cls, name: str) -> str:
        return _one_of(name, ("soxr HQ",), "resampler")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.label.endswith(f"-{self.version}"):
            raise ValueError(f"label: {self.label!r} does not end with the version, -{self.version}")
        keys = [score.key for score in self.scores]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"scores: {', '.join(twice)} is there twice")
        judging = {score.embedder for score in self.scores}
        if judging != set(self.embedders):
            odd = ", ".join(sorted(judging ^ set(self.embedders)))
            raise ValueError(f"embedders: {odd} has to be both there and in a score")
        return self

    def judged_by(self, names: list[str]) -> Protocol:
        """The same metrics by these embedders, each where it can judge; clap adds clap_score. An unknown name raises UserError."""
        for name in names:
            try:
                _one_of(name, embedders.NAMES, "embedder")
            except ValueError as error:
                raise UserError(str(error)) from None
        metrics = [*dict.fromkeys(score.metric for score in self.scores if score.metric != ALONE), ALONE]
        return self.model_copy(
            update={
                "embedders": {name: self.embedders.get(name, {}) for name in names},
                "scores": [Score(metric=metric, embedder=name) for name in names for metric in metrics if can_judge(name, metric)],
            }
        )


def can_judge(embedder: str, metric: str) -> bool:
    """Whether the embedder gives what the metric needs: logits, embeddings of prompts, or several of a clip."""
    if metric == ALONE:
        return embedder == "clap"
    if metric == "fad_per_clip" and embedder in ONE_A_CLIP:
        return False
    return not (scores.METRICS[metric].needs_logits and embedder in NO_CLASSIFIERS)


def load(name: str) -> Protocol:
    """The protocol of that name, or of a file whose name ends in .yaml; a mistake raises UserError that names file and key."""
    path = Path(name) if name.endswith(".yaml") else DIRECTORY / f"{name}.yaml"
    if path.parent == DIRECTORY and path.stem not in NAMES:
        raise UserError(
            f"unknown protocol {name!r}{did_you_mean(name, list(NAMES))}; there are {', '.join(NAMES)}, or give a .yaml file"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a protocol's, or one of {', '.join(NAMES)}")
    protocol = params.parse(Protocol, params.read_yaml(path), f"{path}: protocol")
    if protocol.name != path.stem:
        raise UserError(f"{path}: name: {protocol.name!r} is not the file's, {path.stem!r}")
    return protocol


def _one_of(name: str, known: Iterable[str], what: str) -> str:
    names = list(known)
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}")
    return name
