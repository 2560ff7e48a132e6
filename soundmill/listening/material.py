"""What there is to hear: sounds of several models, by what they were asked for, beside the real ones."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from soundmill import clips, manifest, params, shards
from soundmill.audio import flac
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.evaluation import family, folders

OF_CODEC = "codec_"  # scores of what went through a model's codec, which the model did not make
Wave = tuple[np.ndarray, int]  # [C, T] of one or two channels, and its rate
Sounds = Mapping[str, Callable[[], Wave]]  # by the id of what was asked for; reading one may raise UserError


@dataclass(frozen=True)
class Asked:
    """What a sound was made for."""

    labels: tuple[str, ...] = ()
    caption: str = ""
    source: str = ""  # the recording and place of the real clip

    @property
    def text(self) -> str:
        """In words; empty where nothing is known."""
        return self.caption or ", ".join(self.labels)


@dataclass(frozen=True)
class Model:
    """One model's sounds, and what was scored of them: of the whole set by score, and of single sounds by id and score."""

    name: str
    sounds: Sounds
    codec: Sounds = field(default_factory=dict)  # real clips through its representation and back
    scores: Mapping[str, float] = field(default_factory=dict)
    of: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    family: str = ""  # of a checkout, that made them


@dataclass(frozen=True)
class Material:
    """Models, the real sounds, and what was asked for, by id."""

    models: tuple[Model, ...]
    real: Sounds
    asked: Mapping[str, Asked]

    def requests(self) -> list[str]:
        """Ids of all that any model was asked for: those that most models have first, then one of each set of labels in turn."""
        counts = Counter(clip_id for model in self.models for clip_id in model.sounds)
        turns: dict[tuple[str, ...], int] = {}
        order = []
        for clip_id in sorted(counts, key=lambda clip_id: (-counts[clip_id], clip_id)):
            labels = self.asked[clip_id].labels
            turns[labels] = turns.get(labels, 0) + 1
            order.append((-counts[clip_id], turns[labels], labels, clip_id))
        return [clip_id for *_, clip_id in sorted(order)]


def gather(models: Iterable[Model], real: Sounds, asked: Mapping[str, Asked]) -> Material:
    """Models of different names; what is not said of a request, nobody knows."""
    models = tuple(models)
    names = [model.name for model in models]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"several models are called {', '.join(repeated)}; name them: NAME=DIR")
    ids = {clip_id for model in models for clip_id in model.sounds}
    return Material(models, real, {clip_id: asked.get(clip_id, Asked()) for clip_id in ids})


def read_family(name: str, generated: Path, codec: Path, report: Path) -> Model:
    """A family's sounds as the stage `generate` leaves them, `report` as `evaluate` does, if it is there."""
    made = _files(family.sound_files(generated))
    if not made:
        raise UserError(f"{generated}: no sounds (*.wav); make them with `dvc repro`")
    return Model(name, made, _files(family.sound_files(codec)), *read_report(report), name)


def read_folder(name: str, folder: folders.Folder, report: Path | None = None) -> Model:
    """Any folder's sounds; `report` is the directory that `soundmill evaluate --report` wrote of them."""
    return Model(name, of_folder(folder), {}, *(read_report(report, needed=True) if report else ({}, {})))


def of_folder(folder: folders.Folder) -> Sounds:
    return _files({sound.clip_id: Path(os.fsdecode(sound.path)) for sound in folder.sounds})


def open_folder(root: Path) -> folders.Folder:
    """Every sound below a folder, by its path without suffix; a UserError names all that may be one and cannot be opened."""
    folder = folders.read(root, workers=1)
    if folder.refused:
        raise UserError("\n".join(f"{row['path']}: {row['reason']} {row['detail']}".rstrip() for row in folder.refused))
    return folder


def real_clips(tables: clips.Tables, clip_ids: Collection[str]) -> tuple[Sounds, dict[str, Asked]]:
    """The clips of a variant that are among these ids, and what the catalog says of them."""
    rows = [row for row in shards.read_table(tables.catalog, manifest.CATALOG).to_pylist() if row["clip_id"] in clip_ids]
    asked = {
        row["clip_id"]: Asked(
            tuple(row["labels"] or ()), next(iter(row["captions"] or ()), ""), f"{row['source']} from {row['start']:g} s"
        )
        for row in rows
    }
    return {clip_id: partial(_clip, tables, clip_id) for clip_id in asked}, asked


def asked_of(folder: folders.Folder, captions: Path | None) -> dict[str, Asked]:
    """Of a folder's sounds: the folder they are in as their label; the caption of a csv, or the prompt that `generate` noted."""
    texts = folders.read_captions(captions, folder) if captions else {}
    return {
        sound.clip_id: Asked(
            tuple(filter(None, [sound.clip_id.rpartition("/")[0]])),
            texts.get(sound.clip_id) or _prompt(Path(os.fsdecode(sound.path))),
        )
        for sound in folder.sounds
    }


def read_report(directory: Path, needed: bool = False) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The scores in a report that rank models, and those of its single sounds by id; none where there is no report."""
    whole, single = directory / "scores.json", directory / "sounds.csv"
    if missing := [path for path in (whole, single) if not path.is_file()]:
        if needed:
            raise UserError(f"{missing[0]}: no such file; score the sounds with `soundmill evaluate SOUNDS REAL --report DIR`")
        return {}, {}
    document = params.read_json(whole, "score the sounds again")
    unranked = document.get("unranked", {}) if isinstance(document, dict) else {}
    scores = {key: float(document[key]) for key in document if _is_score(key, document) and key not in unranked}
    return scores, _read_sounds(single)


def _is_score(key: str, document: Mapping[str, object]) -> bool:
    return key in document.get("baselines", {}) and isinstance(document[key], int | float) and not key.startswith(OF_CODEC)


def _read_sounds(path: Path) -> dict[str, dict[str, float]]:
    of: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            try:
                if None in row:
                    raise ValueError("more cells than columns")
                clip_id = row.pop("id")
                of[clip_id] = {key: float(value) for key, value in row.items() if value and not key.startswith(OF_CODEC)}
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path}:{rows.line_num}: not an id and numbers; score the sounds again") from None
    if not all(math.isfinite(value) for values in of.values() for value in values.values()):
        raise UserError(f"{path}: values that are no numbers; score the sounds again")
    return of


def _files(paths: Mapping[str, Path]) -> Sounds:
    return {clip_id: partial(_file, path) for clip_id, path in paths.items()}


def _file(path: Path) -> Wave:
    try:
        wave, rate = decode.read_channels(path, decode.MAX_SECONDS)
    except decode.DecodeError as error:
        raise UserError(f"{path}: {error.reason} {error.detail}") from None
    return _playable(wave), rate


def _clip(tables: clips.Tables, clip_id: str) -> Wave:
    (row,) = clips.with_audio(tables, {clip_id})
    data = row["audio"]["bytes"]
    return _playable(flac.decode_flac(data)), flac.flac_rate(data)


def _playable(wave: np.ndarray) -> np.ndarray:
    """With one or two channels: the mean of more."""
    return wave if len(wave) <= 2 else wave.mean(axis=0, keepdims=True)


def _prompt(path: Path) -> str:
    """What `soundmill generate` noted in a WAV that the sound was made for."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as sound:
            noted = params.parse_json(sound.comment)
    except (soundfile.SoundFileError, ValueError, OSError):
        return ""
    prompt = noted.get("prompt") if isinstance(noted, dict) else None
    return prompt if isinstance(prompt, str) else ""
