"""Sounds of several models by request, with the real sounds and the scores."""

import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from soundmill import clips, csv_files, manifest, params, shards
from soundmill.audio import flac, tags
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.evaluation import family, folders

CODEC = "codec_"  # prefix of the codec line's scores, which are not the model's
Wave = tuple[np.ndarray, int]  # [C, T] of one or two channels, and its rate
Sounds = Mapping[str, Callable[[], Wave]]  # by the id of the request; the call reads the sound and may raise UserError


@dataclass(frozen=True)
class SoundFile:
    path: Path

    def __call__(self) -> Wave:
        try:
            wave, rate = decode.read_channels(self.path, decode.MAX_SECONDS)
        except decode.DecodeError as error:
            raise UserError(f"{self.path}: {error}") from None
        return _playable(wave), rate


@dataclass(frozen=True)
class Request:
    """What a sound was generated for."""

    labels: tuple[str, ...] = ()
    caption: str = ""
    source: str = ""  # recording and position of the real clip

    @property
    def text(self) -> str:
        """Caption, else labels; may be empty."""
        return self.caption or ", ".join(self.labels)


@dataclass(frozen=True)
class Model:
    """One model's sounds and scores: those of the whole set by name, those of single sounds by id and name."""

    name: str
    sounds: Sounds
    codec: Sounds = field(default_factory=dict)  # real clips encoded and decoded
    scores: Mapping[str, float] = field(default_factory=dict)
    sound_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    family: str = ""  # name in its checkout, if it is from one


@dataclass(frozen=True)
class Material:
    models: tuple[Model, ...]
    real: Sounds
    requests: Mapping[str, Request]

    def order(self) -> list[str]:
        """Ids of all requests: first those with sounds of most models, then one of each set of labels in turn."""
        counts = Counter(clip_id for model in self.models for clip_id in model.sounds)
        turns: dict[tuple[str, ...], int] = {}
        order = []
        for clip_id in sorted(counts, key=lambda clip_id: (-counts[clip_id], clip_id)):
            labels = self.requests[clip_id].labels
            turns[labels] = turns.get(labels, 0) + 1
            order.append((-counts[clip_id], turns[labels], labels, clip_id))
        return [clip_id for *_, clip_id in sorted(order)]


def gather(models: Iterable[Model], real: Sounds, requests: Mapping[str, Request]) -> Material:
    """Material with the requests of all models' sounds, empty where not given. UserError if models have equal names."""
    models = tuple(models)
    names = [model.name for model in models]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"several models are called {', '.join(repeated)}; name them: NAME=DIR")
    ids = {clip_id for model in models for clip_id in model.sounds}
    return Material(models, real, {clip_id: requests.get(clip_id, Request()) for clip_id in ids})


def read_family(name: str, generated: Path, codec: Path, report: Path) -> Model:
    """A family from the outputs of the stages `generate` and `evaluate`; `report` may be missing."""
    if not (sounds := _files(family.sound_files(generated))):
        raise UserError(f"{generated}: no sounds (*.wav); generate them with `dvc repro`")
    return Model(name, sounds, _files(family.sound_files(codec)), *read_report(report), name)


def read_folder(name: str, folder: folders.Folder, report: Path | None = None) -> Model:
    """A folder of sounds; `report` is the directory that `soundmill evaluate --report` wrote for it."""
    return Model(name, folder_sounds(folder), {}, *(read_report(report, required=True) if report else ({}, {})))


def folder_sounds(folder: folders.Folder) -> Sounds:
    return _files({sound.clip_id: Path(os.fsdecode(sound.path)) for sound in folder.sounds})


def open_folder(root: Path) -> folders.Folder:
    """All sounds below a folder, by path without suffix; UserError names every sound that cannot be opened."""
    folder = folders.read(root, workers=1)
    if folder.refused:
        refused = {row["path"]: decode.DecodeError(row["reason"], row["detail"]) for row in folder.refused}
        raise UserError("\n".join(f"{path}: {error}; repair or remove it" for path, error in refused.items()))
    return folder


def real_clips(tables: clips.Tables, clip_ids: Collection[str]) -> tuple[Sounds, dict[str, Request]]:
    """The clips with these ids that the catalog lists, and their requests."""
    rows = [row for row in shards.read_table(tables.catalog, manifest.CATALOG).to_pylist() if row["clip_id"] in clip_ids]
    requests = {
        row["clip_id"]: Request(
            tuple(row["labels"] or ()), next(iter(row["captions"] or ()), ""), f"{row['source']} from {row['start']:g} s"
        )
        for row in rows
    }
    return {clip_id: partial(_clip, tables, clip_id) for clip_id in requests}, requests


def folder_requests(folder: folders.Folder, captions: Path | None) -> dict[str, Request]:
    """Requests of a folder's sounds: label from the subfolder, caption from a CSV file or from the prompt stored in the WAV."""
    texts = folders.read_captions(captions, folder) if captions else {}
    return {
        sound.clip_id: Request(
            tuple(filter(None, [sound.clip_id.rpartition("/")[0]])),
            texts.get(sound.clip_id) or str(tags.comment(Path(os.fsdecode(sound.path))).get("prompt") or ""),
        )
        for sound in folder.sounds
    }


def read_report(directory: Path, required: bool = False) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores of a report that rank models, and those of single sounds by id; empty if there is no report."""
    set_scores, sound_scores = directory / "scores.json", directory / "sounds.csv"
    if missing := [path for path in (set_scores, sound_scores) if not path.is_file()]:
        if required:
            raise UserError(f"{missing[0]}: no such file; score the sounds with `soundmill evaluate SOUNDS REAL --report DIR`")
        return {}, {}
    document = params.read_json(set_scores, "score the sounds again") or {}
    try:
        baselines, unranked = document.get("baselines", {}), document.get("unranked", {})
        ranked = [key for key in document if key in baselines and key not in unranked and not key.startswith(CODEC)]
    except (AttributeError, TypeError):
        raise UserError(f"{set_scores}: not the scores of a report; score the sounds again") from None
    return {key: float(document[key]) for key in ranked if isinstance(document[key], int | float)}, _read_sounds(sound_scores)


def _read_sounds(path: Path) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        try:
            for row in rows:
                if None in row:
                    raise ValueError("more cells than columns")
                clip_id = csv_files.value(row.pop("id"))
                scores[clip_id] = {key: float(value) for key, value in row.items() if value and not key.startswith(CODEC)}
        except (KeyError, TypeError, ValueError, csv.Error):
            raise UserError(f"{path}:{rows.line_num}: expected an id and numbers; score the sounds again") from None
    if not all(math.isfinite(value) for values in scores.values() for value in values.values()):
        raise UserError(f"{path}: non-finite values; score the sounds again")
    return scores


def _files(paths: Mapping[str, Path]) -> Sounds:
    return {clip_id: SoundFile(path) for clip_id, path in paths.items()}


def _clip(tables: clips.Tables, clip_id: str) -> Wave:
    (row,) = clips.with_audio(tables, {clip_id})
    data = row["audio"]["bytes"]
    return _playable(flac.decode_flac(data)), flac.flac_rate(data)


def _playable(wave: np.ndarray) -> np.ndarray:
    """One or two channels: more are averaged."""
    return wave if len(wave) <= 2 else wave.mean(axis=0, keepdims=True)
