"""What stays of a session: kept sounds with their requests, and the votes of blind comparisons."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from soundmill import attribution, disk, hashing, params, tracking
from soundmill.listening import answers
from soundmill.models.family import family_of
from soundmill.play import making
from soundmill.play.checkpoints import Found

KEPT = Path("data/kept")
VOTES = "votes"
QUESTION = "quality"  # of a vote


def keep(wav: Path, found: Found, home: Path) -> Path:
    """Copy a sound of a session and its request to data/kept, and record it in MLflow; once, however often it is called."""
    asked = making.read(wav.with_suffix(".json"))
    name = f"{wav.stem.partition('-')[2]}-{hashing.tree_digest(wav)[:8]}"  # without its number in the session
    target = home / KEPT / f"{name}.wav"
    if target.is_file():
        return target
    making.copy(wav, name, target.parent)
    family, weights = family_of(found.directory), hashing.model_digest(found.directory)
    tags = {"family": family, "checkpoint": asked.digest, "model_digest": weights, "words": asked.words}
    with tracking.result_run(home, f"kept {name}", "play", tags) as run:
        run.log_params(asked.model_dump())
        run.log_file(target, "kept")
        run.log_file(target.with_suffix(".json"), "kept")
    return target


def kept_sounds(home: Path) -> list[Path]:
    """The kept WAVs, the newest first."""
    found = [path for path in (home / KEPT).glob("*.wav") if path.with_suffix(".json").is_file()]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def export(home: Path, checkpoints: Mapping[str, Found], folder: Path) -> Path:
    """A zip of data/kept, with the attribution of each checkpoint that made a sound of it and is still here."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        directory = Path(place) / "kept"
        shutil.copytree(home / KEPT, directory, ignore=shutil.ignore_patterns(VOTES))
        for name in {making.read(path.with_suffix(".json")).checkpoint for path in kept_sounds(home)} & checkpoints.keys():
            found = checkpoints[name]
            recordings = found.home / "data" / "corpus" / "recordings.parquet"
            credits = attribution.credits_of(found.directory, recordings if recordings.is_file() else None)
            attribution.write(credits, directory / f"ATTRIBUTION {name.replace('/', ' ')}.csv")
        return Path(shutil.make_archive(str(folder / "kept"), "zip", directory))


def vote(home: Path, shown: tuple[Found, Found], answer: str) -> Path:
    """Store which of two sounds, in the order in which they were heard, is better; returns the answers' file.

    Each pair of checkpoints has a comparison, as `soundmill listening-test score` reads it, of one rater and one more request.
    """
    pair = sorted(shown, key=lambda one: one.name)
    known = [(one, family_of(one.directory), hashing.model_digest(one.directory)) for one in pair]
    test = hashing.digest([digest for _, _, digest in known])[:12]
    folder = home / KEPT / VOTES / test
    with disk.exclusive(folder):
        path, key_path = folder / f"answers-{test}-1.json", folder / "key.json"
        earlier = answers.read_key(key_path) if key_path.is_file() else None
        given = params.read_json(path, "restore it beside its key.json")["answers"] if earlier else []
        sounds, trials = (dict(earlier.sounds), list(earlier.orders[0])) if earlier else ({}, [])
        request = f"vote-{len(trials) + 1:04d}"
        trials.append([f"s{2 * len(trials) + place:05d}" for place in (1, 2)])
        for sound, found in zip(trials[-1], shown, strict=True):
            sounds[sound] = answers.KeyedSound(system=found.name, request=request)
        key = answers.Key(
            format=1,
            test=test,
            questions=[QUESTION],
            scale=5,
            compare=True,
            seed=0,
            sounds=sounds,
            orders=[trials],
            models={
                one.name: answers.KeyedModel(family=family, weights=digest, scores=one.scores, of={})
                for one, family, digest in known
            },
        )
        document = {"format": 1, "test": test, "rater": 1, "answers": [*given, {"sounds": trials[-1], QUESTION: answer}]}
        disk.write_atomically(key_path, key.write)
        disk.write_atomically(path, lambda temporary: temporary.write_text(json.dumps(document) + "\n", encoding="utf-8"))
    return path
