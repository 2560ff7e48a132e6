"""Real recordings beside those of a model: clips that fit a request, and the training clips nearest to a sound."""

import os
from collections.abc import Sequence
from pathlib import Path

import pooch

from soundmill import clips, manifest, shards
from soundmill.audio import flac
from soundmill.errors import UserError
from soundmill.evaluation import family, features, memorisation, protocols
from soundmill.evaluation.library import Setup
from soundmill.page.sounds import Sound
from soundmill.play.checkpoints import Found

CACHE = Path(pooch.os_cache("soundmill")) / "embeddings"  # that `soundmill evaluate` uses too


def fitting(found: Found, words: str, seed: int) -> str:
    """The id of a clip with this label, else with these words in a caption; the seed chooses one. UserError if none fits."""
    word, rows = words.casefold(), clips.find(found.tables)
    labelled = [row for row in rows if word in (label.casefold() for label in row["labels"])]
    captioned = [row for row in rows if any(word in caption.casefold() for caption in row["captions"])]
    if not (rows := labelled or captioned or ([] if word else rows)):
        raise UserError(f"no recording here has the label {words!r}, or a caption with these words")
    return rows[seed % len(rows)]["clip_id"]


def sounds(found: Found, clip_ids: dict[str, str]) -> list[Sound]:
    """Clips by their roles."""
    data = {row["clip_id"]: row["audio"]["bytes"] for row in clips.with_audio(found.tables, set(clip_ids.values()))}
    return [Sound(role, flac.decode_flac(data[one]), flac.flac_rate(data[one])) for role, one in clip_ids.items()]


def nearest(wav: Path, found: Found) -> tuple[str, Sequence[Sound]]:
    """Whether a sound is a copy, as a sentence, and the nearest training clips, by embedding and by fingerprint.

    They are those of the checkpoint's own table that are here unchanged. What was embedded before is not embedded again.
    """
    tables, tagger, table = found.tables, found.home / "data" / "tagger", found.directory / manifest.TRAINED_ON_FILE
    if not table.is_file():
        raise UserError(
            f"{found.name}: nothing says which clips it was trained on ({table.name} is missing): copy the whole checkpoint"
        )
    rows = shards.read_table(table, manifest.TRAINED_ON).to_pylist()
    recordings, trained = {row["recording_id"] for row in rows}, {(row["clip_id"], row["digest"]) for row in rows}
    here = {clip_id for clip_id, _ in trained & {(row["clip_id"], row["digest"]) for row in clips.find(tables)}}
    total = len({clip_id for clip_id, _ in trained})  # one that was cut again since an earlier training has two digests
    catalog = family.read_catalog(tables.catalog)
    held_out = {clip.clip_id for clip in catalog if clip.split != "train" and clip.recording_id not in recordings}
    if not here:
        raise UserError(
            f"{found.name}: none of its {total} training clips is here any more, so it cannot be checked; `dvc repro` with its "
            "recordings brings them back"
        )
    real = [list(features.in_shards(family.shards_of(catalog, tables.clips, ids)).values()) for ids in (held_out, here)]
    protocol = protocols.load(protocols.PROJECT).with_embedders(["tagger" if tagger.is_dir() else "texture"])
    setup = Setup(protocol, CACHE, os.cpu_count() or 1, tagger)
    searched = memorisation.search_for_copies(setup, list(features.in_files({"sound": wav}).values()), *real)
    (near,) = searched.generated
    if near.similarity is None and not near.copy_of:
        raise UserError("this sound is too short to be compared")
    gone = total - len(here)
    missing = f"; {gone} of its {total} training clips are not here any more" if gone else ""
    if near.copy_of:
        verdict = f"A copy: {near.shared:.0%} of it is in a training clip, by fingerprint"
        return verdict + missing, sounds(found, {f"training clip {near.copy_of}": near.copy_of})
    verdict = "Nearer to a training clip than real sounds are" if searched.is_near(near) else "No copy of a training clip"
    usual = "" if searched.threshold is None else f" ({memorisation.CLOSEST:.0%} of held-out clips exceed {searched.threshold:.2f})"
    facts = f"{verdict}: nothing shared by fingerprint, similarity by {searched.embedder} {near.similarity:.2f}{usual}"
    return facts + missing, sounds(found, {f"nearest training clip, {near.neighbour}": near.neighbour})
