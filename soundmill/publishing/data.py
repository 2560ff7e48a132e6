"""Publishing prepared clips: Parquet with the audio inside, attribution, a card, and Croissant metadata."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from soundmill import attribution, clips, exports
from soundmill.attribution import Credit
from soundmill.corpora.terms import TermsParams
from soundmill.errors import UserError
from soundmill.publishing.card import LICENCE_LINK, LICENCE_NAME, hours_table, plain, statements, write_terms
from soundmill.publishing.directory import CROISSANT, check_allowed, files_below, named, write_sums

CARD = "README.md"
FORMAT = "audiofolder_parquet"
# https://docs.mlcommons.org/croissant/docs/croissant-spec.html: the context of version 1.0.
_OF_CROISSANT = (
    "citeAs column equivalentProperty extract field fileObject fileProperty fileSet format includes isLiveDataset jsonPath key md5 "
    "parentField path recordSet references regex repeated replace samplingRate separator source subField transform"
).split()
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    **{name: {"@id": f"cr:{name}", "@type": "@json"} for name in ("data", "examples")},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{name: f"cr:{name}" for name in _OF_CROISSANT},
}
FIELDS = {"clip_id": "sc:Text", "audio": "sc:AudioObject", "captions": "sc:Text", "labels": "sc:Text"}


def publish(
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
    _check_adaptable(str(tables.catalog), found, remedy)
    name = directory.resolve().name
    with exports.new_directory(directory) as (partial, _):
        exports.export(tables, FORMAT, partial / "export", sample_rate, progress=progress)
        os.rename(partial / "export" / "data", partial / "data")
        os.rmdir(partial / "export")
        write_terms(found, partial)
        shards = sorted((partial / "data").glob("*.parquet"))
        (partial / CARD).write_text(_card(name, found, sample_rate), encoding="utf-8")
        document = croissant(name, found, shards)
        (partial / CROISSANT).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_sums(partial)
    return files_below(directory)


# In an id, and in a text that is none.
_NO_ADAPTATIONS = re.compile(r"(?<![a-z])(?:nd(?![a-z])|no[\s_-]{0,3}(?:deriv|adapt))", re.IGNORECASE)


def _check_adaptable(name: str, found: Sequence[Credit], remedy: str) -> None:
    kept = [credit.recording for credit in found if _NO_ADAPTATIONS.search(credit.licence)]
    if kept:
        raise UserError(
            f"{name}: of its recordings, {named(kept)} have licences that forbid to share adaptations, as clips are. {remedy}"
        )


def croissant(name: str, found: Sequence[Credit], shards: Sequence[Path]) -> dict[str, Any]:
    """Croissant 1.0 (JSON-LD) of Parquet files in the directory `data`: a record set for each split."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": f"data/{path.name}",
            "name": path.name,
            "contentUrl": f"data/{path.name}",
            "encodingFormat": "application/x-parquet",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in shards
    ]
    sets = [_record_set(path.name.partition("-")[0], f"data/{path.name}") for path in shards]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"{sum(credit.clips for credit in found):,} clips of {len(found):,} recordings, prepared with Soundmill.",
        "license": list(attribution.hours_by(found, "licence")),
        "creator": [{"@type": "sc:Person", "name": creator} for creator in sorted({credit.creator for credit in found} - {""})],
        "distribution": files,
        "recordSet": sets,
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


def _card(name: str, found: Sequence[Credit], sample_rate: int) -> str:
    from huggingface_hub import DatasetCardData

    marks = [f"material-{mark}" for mark in attribution.marks(found)]
    tags = ["soundmill", "audio", *marks]
    data = DatasetCardData(license="other", license_name=LICENCE_NAME, license_link=LICENCE_LINK, pretty_name=name, tags=tags)
    seconds, count = sum(credit.seconds for credit in found), sum(credit.clips for credit in found)
    lines = [f"---\n{data.to_yaml()}\n---\n", f"# {plain(name)}\n"]
    lines.append(
        f"{count:,} clips of {len(found):,} recordings, {seconds / 3600:.2f} h, {sample_rate} Hz. Prepared with Soundmill.\n"
    )
    lines += ["## Terms\n", *statements(found)]
    lines += [*hours_table("licence", attribution.hours_by(found, "licence"))]
    lines += [*hours_table("AI terms", attribution.hours_by(found, "ai_terms"))]
    lines.append(f"## Use\n\n`datasets.load_dataset` reads this directory; `mlcroissant` reads `{CROISSANT}`.\n")
    return "\n".join(lines)
