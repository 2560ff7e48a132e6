"""What a folder of recordings holds, and the estimated cost of the pipeline on it: what a person reads before a run."""

import math
import os
import re
import shlex
import statistics
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import hashing
from soundmill.corpora import inventory, registry, splits
from soundmill.corpora.buckets import Bucket
from soundmill.corpora.check import UNDESCRIBED, Report, directory_of, probe, report_of
from soundmill.corpora.registry import UnionPart
from soundmill.corpora.sources import Sources
from soundmill.decoding import decode
from soundmill.errors import UserError, first_of

FEWEST_CLIPS = 4  # so that a split has two, which scores need
PROBED = 200  # headers read for the estimate, evenly spaced over the corpus
# Measured on two cores with 5 s clips of ESC-10 and the embedded corpus (docs/results.md), rounded up.
PREPARE_SECONDS_PER_CLIP = 0.06
STAGE_SECONDS = 170.0  # starting the stages, the tagger, scoring
BYTES_PER_AUDIO_SECOND = 110_000  # clips and mixes (FLAC), named WAVs, spectrograms, and DVC's cache of all of them


@dataclass(frozen=True)
class Survey:
    """Contents of one directory."""

    report: Report
    seconds: float  # estimated from the headers of up to PROBED recordings
    median_seconds: float  # of a recording
    unreadable: int  # of `probed`
    probed: int
    labels_of: dict[str, list[str]]  # by recording id; labels of captions come first
    described: set[str]  # recordings with a caption or labels

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of manifest.RECORDINGS."""
        return self.report.tables.recordings

    @property
    def labels(self) -> list[str]:
        return self.report.tables.labels

    def check_sound(self, clip: dict[str, Any]) -> None:
        """UserError if no recording can be decoded, all are silent, or too few clips come from them; `clip` is one of clips."""
        silence_dbfs, place = clip["silence_dbfs"], self.report.path
        if self.probed and self.unreadable == self.probed:
            raise UserError(f"{place}: no sound in {self.probed} of {len(self.rows)} recordings; `soundmill corpus check` says why")
        sources = Sources({b"": bytes(self.report.path)})
        if all_silent(sources, (row["raw_path"] for row in self.rows), silence_dbfs):
            what = f"all recordings are silent: none rises above {silence_dbfs:g} dBFS (`clips.default.silence_dbfs`)"
            raise UserError(f"{place}: {what}; give another folder, or lower that level")
        if (clips := self.num_clips(clip["clip_seconds"])) < FEWEST_CLIPS:
            raise UserError(f"{place}: about {clips} clips; give enough for at least {FEWEST_CLIPS}, to train on and to score with")

    def describe(self, splits: dict[str, Any]) -> list[str]:
        """Lines to print: the contents, and warnings about the splits under that section of the parameters."""
        tables, directory, labels = self.report.tables, self.report.path, self.labels
        captions, missing, damaged = len(tables.captions), len(tables.missing), self.report.damaged
        size, ignored = sum(row["size"] for row in self.rows), sum(self.report.inventory.ignored.values())
        lines = [
            f"corpus      {directory}",
            f"format      {tables.format}",
            f"recordings  {len(self.rows):,} ({_size(size)}, about {_duration(self.seconds)}); {ignored:,} other files",
            f"captions    {f'{captions:,}' if captions else 'none; made from the labels' if labels else UNDESCRIBED}",
            f"labels      {f'{len(labels)}: {first_of(labels, 12)}' if labels else 'none'}",
            f"splits      {self.report.splits}",
        ]
        if missing or (tables.matched and tables.orphans):
            files = f"{len(tables.matched):,} clips with a file, {missing:,} without (missing)"
            lines.append(f"described   {files}; {len(tables.orphans):,} files without a row")
        if self.unreadable:
            lines.append(f"unreadable  {self.unreadable} of {self.probed} headers read; such files will be quarantined")
        if damaged:
            lines.append(f"rejected    {len(damaged)} (first: {damaged[0]['path']}: {damaged[0]['reason']})")
        if tables.collisions:
            lines.append(f"collisions  {len(tables.collisions)} ids of several files or rows")
        if tables.ambiguous:
            lines.append(f"ambiguous   {len(tables.ambiguous)} names with several meanings")
        if missing or tables.collisions or tables.ambiguous:
            lines.append(f"            list them all: soundmill corpus check {shlex.quote(str(directory))}")
        lines += [f"note        {remark}" for remark in tables.remarks]
        return [*lines, *(f"warning     {line}" for line in self.warnings(splits))]

    def cost(self, parameters: dict[str, Any], training_seconds: float) -> list[str]:
        """Lines to print: the estimated clips, time and disk space of a run with these parameters on this machine."""
        clip_seconds = parameters["clips"]["default"]["clip_seconds"]
        seconds = self.preparation_seconds(clip_seconds) + training_seconds
        disk = self.seconds * BYTES_PER_AUDIO_SECOND * (1 + parameters["mixup"]["ratio"])
        return [
            f"will make   clips of {clip_seconds:g} s: about {self.num_clips(clip_seconds):,}",
            f"will take   about {_duration(seconds)} ({_duration(training_seconds)} of it training) and {_size(disk)} of disk",
        ]

    def num_clips(self, clip_seconds: float) -> int:
        return max(len(self.rows), math.ceil(self.seconds / clip_seconds))

    def preparation_seconds(self, clip_seconds: float) -> float:
        """Estimated seconds of all stages but the training and the sounds."""
        return STAGE_SECONDS + self.num_clips(clip_seconds) * PREPARE_SECONDS_PER_CLIP

    def warnings(self, parameters: dict[str, Any]) -> list[str]:
        """Expected problems with the splits under the section `splits`; duplicates are not known yet."""
        main = {name: labels[0] for name, labels in self.labels_of.items() if labels}
        fractions = {name: parameters[name] for name in ("valid_fraction", "test_fraction")}
        split_of, _ = splits.assign(self.rows, main, self.described, **fractions, seed=parameters["seed"])
        labels_by_split = ((split, self.labels_of.get(name, [])) for name, split in split_of.items())
        sources = len({row["group"] or row["recording_id"] for row in self.rows})
        return splits.warnings(labels_by_split, parameters["test_fraction"], sources)


def survey(directory: Path | Bucket, follow_links: bool = False, layout: str = registry.AUTO) -> Survey:
    """Survey a directory by its format; UserError, naming it, if it has no possible recording.

    `follow_links` as in inventory.list_files; `layout` as in registry.read.
    """
    place = directory_of(directory, follow_links=follow_links)
    files = inventory.list_files(place.root, digests=False, follow_links=follow_links)
    files.check_not_empty()
    tables = registry.read(layout, files, 1, needs_audio=False)
    report = report_of(place.root, [place], [UnionPart("", 1.0, files, tables)])
    rows = tables.recordings
    probed = rows[:: max(1, math.ceil(len(rows) / PROBED))]
    lengths = probe(Sources({b"": bytes(report.path)}), (row["raw_path"] for row in probed))
    seconds = [length for length in lengths if isinstance(length, float)]
    mean = sum(seconds) / len(probed) if probed else 0.0
    labels = (((row["recording_id"], row["labels"]) for row in some) for some in (rows, tables.captions))
    median = statistics.median(seconds) if seconds else 0.0
    return Survey(report, mean * len(rows), median, len(probed) - len(seconds), len(probed), *splits.describe(*labels))


def all_silent(sources: Sources, raw_paths: Iterable[bytes], silence_dbfs: float) -> bool:
    """Whether some recordings can be decoded, and none of them rises above `silence_dbfs`; stops at the first that does."""
    limit, decoded = 10 ** (silence_dbfs / 20), False
    with tempfile.TemporaryDirectory() as scratch:
        for raw_path in raw_paths:
            with suppress(decode.DecodeError), sources.open(raw_path, scratch) as path:
                for block in decode.decode_channels(path, decode.MAX_SECONDS)[2]:
                    if np.abs(decode.check_finite(block)).max(initial=0.0) > limit:
                        return False
                decoded = True
    return decoded


def slug(directory: Path | Bucket) -> str:
    """A readable workspace name for a corpus, distinct for directories of the same name."""
    path = bytes(directory if isinstance(directory, Bucket) else directory.resolve())
    readable = re.sub(rb"[^A-Za-z0-9]+", b"-", os.path.basename(path)).strip(b"-").lower().decode() or "corpus"
    return f"{readable[:40]}-{hashing.digest(path)[:6]}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
