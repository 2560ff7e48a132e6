"""A published directory: a list of all its files with their SHA-256, by which it is copied, and what the terms refuse.

Prepared clips are one: Parquet with the audio inside, attribution, a card, and Croissant metadata. model.py writes models.
"""

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from soundmill import attribution, clips, exports, params
from soundmill.attribution import UNCLEAR, UNKNOWN, Credit
from soundmill.corpora.terms import TermsParams
from soundmill.errors import UserError, first_of
from soundmill.exports import new_directory
from soundmill.publishing import card

SUMS = "SHA256SUMS"
CHECKPOINT, CROISSANT = "checkpoint", "croissant.json"  # one is in a published model, the other in published data
NAMED = 5  # recordings in an error
TRAINED_ELSEWHERE = "Train that part here, or set `corpus.terms.unknown` to `keep`"
AS_IN_RECORDINGS = {UNKNOWN: None, UNCLEAR: UNKNOWN}  # a licence in a table of credits → in manifest.RECORDINGS
SUM = re.compile(r"([0-9a-f]{64})  (.+)")
CARD = "README.md"
FORMAT = "audiofolder_parquet"
FIELDS = {"clip_id": "sc:Text", "audio": "sc:AudioObject", "captions": "sc:Text", "labels": "sc:Text"}
# In an id, and in a text that is none.
_NO_ADAPTATIONS = re.compile(r"(?<![a-z])(?:nd(?![a-z])|no[\W_]{0,3}(?:deriv|adapt))", re.IGNORECASE)


def terms_of(root: Path) -> TermsParams | None:
    """`corpus.terms` of a project; None with an embedded corpus, which has no such section."""
    corpus = params.section(params.read_yaml(root / "params.yaml"), "corpus", "params.yaml")
    return params.parse(TermsParams, corpus["terms"], "params.yaml: corpus.terms") if "terms" in corpus else None


def check_allowed(name: str, found: Iterable[Credit], terms: TermsParams | None, remedy: str) -> None:
    """UserError that names the recordings whose creators refuse the use for generative AI, and those that break `terms`."""
    refused: dict[str, list[str]] = defaultdict(list)
    for credit in found:
        licence = AS_IN_RECORDINGS.get(credit.licence, credit.licence)
        row = {"licence": licence, "ai_terms": credit.ai_terms, "terms_found": credit.used_for}
        if credit.ai_terms == "refused":
            refused["their creators refuse generative AI"].append(credit.recording)
        elif terms and (why := terms.broken_by(row)):
            if not credit.recording:
                raise UserError(
                    f"{name}: what its part `{credit.used_for}` was trained on is not known: {why}. {TRAINED_ELSEWHERE}"
                )
            refused[why].append(credit.recording)
    if refused:
        whys = (f"{named(some)} may not be used: {why}" for why, some in refused.items())
        raise UserError(f"{name}: of its recordings, {'; '.join(whys)}. {remedy}")


def named(recordings: Sequence[str]) -> str:
    """Their number and the first of them."""
    return f"{len(recordings)} ({first_of(recordings, NAMED)})"


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def is_data(directory: Path) -> bool:
    """Whether published clips are in a directory, not a model; UserError if neither is."""
    sums = read_sums(directory)
    if CROISSANT not in sums and f"{CHECKPOINT}/config.json" not in sums:
        raise UserError(f"{directory / SUMS}: lists neither a model nor clips; `soundmill publish` writes either")
    return CROISSANT in sums


def pull(directory: Path, output: Path) -> list[Path]:
    """Copy what was published to a new or empty directory, checking every file against its SHA-256; returns the files.

    UserError if a file is missing or differs, if its name leaves the directory, or if nothing was published there.
    """
    is_data(directory)
    with new_directory(output) as (partial, _):
        for name, expected in read_sums(directory).items():
            copy = partial / name
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                _check_file(directory, name)
                shutil.copyfile(directory / name, copy)
            except (OSError, ValueError) as error:  # a name may be too long, or below a file's
                raise UserError(f"{directory / name}: {getattr(error, 'strerror', None) or error}; download it again") from None
            if _sha256(copy) != expected:
                raise UserError(f"{directory / name}: is not the file that was published; download it again")
        shutil.copyfile(directory / SUMS, partial / SUMS)
    return files_below(output)


def _check_file(directory: Path, name: str) -> None:
    """UserError if a published file is a link, or below one, or a device: it could be any file of this machine, or endless."""
    path = directory / name
    inside = [path, *(parent for parent in path.parents if parent != directory and parent.is_relative_to(directory))]
    if any(one.is_symlink() for one in inside) or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: is a link or no regular file; download it again (`hf download … --local-dir`)")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(directory: Path) -> None:
    """In the format of `sha256sum`."""
    lines = [f"{_sha256(path)}  {path.relative_to(directory).as_posix()}" for path in files_below(directory)]
    (directory / SUMS).write_text("\n".join([*lines, ""]), encoding="utf-8")


def read_sums(directory: Path) -> dict[str, str]:
    path = directory / SUMS
    _check_file(directory, SUMS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read, so nothing is published here; `soundmill publish` writes it") from None
    sums = {}
    for number, line in enumerate(lines, 1):
        match = SUM.fullmatch(line)
        inside = Path(match[2]) if match else Path("..")
        if inside.is_absolute() or ".." in inside.parts or str(inside) == SUMS:
            raise UserError(f"{path}, line {number}: not the SHA-256 and the path of a published file; download it again")
        sums[match[2]] = match[1]
    return sums


def publish_clips(
    tables: clips.Tables,
    directory: Path,
    sample_rate: int,
    recordings: Path,
    terms: TermsParams | None,
    progress: Callable[[int], None] = lambda n: None,
) -> list[Path]:
    """Write the prepared clips into a new or empty directory, with everything that goes with them; returns its files.

    UserError if a recording may not be used for generative AI, if it breaks `terms`, or if its licence forbids to share
    adaptations, which clips are.
    """
    found = attribution.credits_of_clips(clips.find(tables), recordings)
    remedy = "Leave them out of the corpus: `soundmill forget RECORDING`, then `dvc repro`"
    check_allowed(str(tables.catalog), found, terms, remedy)
    if kept := [credit.recording for credit in found if _NO_ADAPTATIONS.search(credit.licence)]:
        raise UserError(
            f"{tables.catalog}: of its recordings, {named(kept)} have licences that forbid to share adaptations, "
            f"as clips are. {remedy}"
        )
    name = directory.resolve().name
    with new_directory(directory) as (partial, _):
        exports.export(tables, FORMAT, partial / "export", sample_rate, progress=progress)
        os.rename(partial / "export" / "data", partial / "data")
        os.rmdir(partial / "export")
        card.write_terms(found, partial)
        shards = sorted((partial / "data").glob("*.parquet"))
        text = card.of_clips(name, found, sample_rate=sample_rate, croissant=CROISSANT)
        (partial / CARD).write_text(text, encoding="utf-8")
        document = croissant(name, found, shards)
        (partial / CROISSANT).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_sums(partial)
    return files_below(directory)


def croissant(name: str, found: Sequence[Credit], shards: Sequence[Path]) -> dict[str, Any]:
    """Croissant 1.0 (JSON-LD) of Parquet files in the directory `data`: a record set for each split.

    Its context is that of https://docs.mlcommons.org/croissant/docs/croissant-spec.html.
    """
    distribution = [
        {
            "@type": "cr:FileObject",
            "@id": f"data/{path.name}",
            "name": path.name,
            "contentUrl": f"data/{path.name}",
            "encodingFormat": "application/x-parquet",
            "sha256": _sha256(path),
        }
        for path in shards
    ]
    return {
        "@context": json.loads(files(__package__).joinpath("croissant_context.json").read_text()),
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"{sum(credit.clips for credit in found):,} clips of {len(found):,} recordings, prepared with Soundmill.",
        "license": list(attribution.hours_by(found, "licence")),
        "creator": [{"@type": "sc:Person", "name": creator} for creator in sorted({credit.creator for credit in found} - {""})],
        "distribution": distribution,
        "recordSet": [_record_set(path.name.partition("-")[0], f"data/{path.name}") for path in shards],
    }


def _record_set(split: str, file: str) -> dict[str, Any]:
    fields = []
    for column, kind in FIELDS.items():
        source: dict[str, Any] = {"fileObject": {"@id": file}, "extract": {"column": column}}
        source |= {"transform": {"jsonPath": "bytes"}} if column == "audio" else {}
        repeated = {"repeated": True} if column in ("captions", "labels") else {}
        fields.append(
            {"@type": "cr:Field", "@id": f"{split}/{column}", "name": column, "dataType": kind, "source": source} | repeated
        )
    return {"@type": "cr:RecordSet", "@id": split, "name": split, "field": fields}
