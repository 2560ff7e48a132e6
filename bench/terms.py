"""What reading terms costs `scan`: a corpus of small WAVs with tags, in class folders, with the metadata of FSD50K and a readme.

The first scan reads every file for its digest, the second finds the digests in the cache and reads the metadata again, since one
text has changed; a third, with nothing changed, takes over the last tables. Each is measured with terms and without: then tags are
not read, and no table, text or name is searched for terms. In CPU seconds of the process, since the wall time of one thread on busy
cores is mostly that of others. `python -m bench.terms --recordings 50000`
"""

import contextlib
import json
import os
import statistics
import time
from pathlib import Path
from unittest import mock

from bench import measure
from bench.measure import Target, in_fresh_process
from soundmill import hashing, params, stage
from soundmill.corpora import terms

SCANS = ("new files", "a changed text", "nothing changed")
WAV = b"".join(
    (
        b"RIFF\x62\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\x10\0\0\0",
        bytes(16),
        b"LIST\x26\0\0\0INFOICOP\x0a\0\0\0CC BY 3.0\0IART\x08\0\0\0recordis",
    )
)
LICENCES = ("http://creativecommons.org/licenses/by/3.0/", "http://creativecommons.org/publicdomain/zero/1.0/")


def main() -> None:
    args = measure.parser(__doc__, recordings=50_000, repetitions=3).parse_args()
    seconds: dict[str, list[float]] = {f"{scan}, {side}": [] for scan in SCANS for side in ("with terms", "without")}
    with measure.workplace(args.work) as name:
        write_corpus(Path(name) / "corpus", args.recordings)
        for number, side in measure.turns(("without", "with terms"), args.repetitions):
            times = in_fresh_process(scans, Path(name) / f"{number} {side}", Path(name) / "corpus", side == "with terms")
            for scan, (wall, cpu) in zip(SCANS, times, strict=True):
                seconds[f"{scan}, {side}"].append(cpu)
                print(f"{args.recordings} recordings, {scan}, {side}: {cpu:.1f} CPU s, {wall:.1f} s", flush=True)
    more = {scan: difference(seconds[f"{scan}, with terms"], seconds[f"{scan}, without"]) for scan in SCANS}
    targets = [Target(f"more with terms, {scan}", more[scan], 5, at_least=False, unit=" CPU s") for scan in SCANS]
    measure.write("terms", args.results, args.recordings, seconds, targets)


def difference(ours: list[float], others: list[float]) -> float:
    """Median over rounds of what is added."""
    return statistics.median(one - other for one, other in zip(ours, others, strict=True))


def write_corpus(directory: Path, count: int) -> None:
    """`count` WAVs that are distinct, metadata for each, and a readme."""
    sounds, metadata = directory / "FSD50K.dev_audio", directory / "FSD50K.metadata"
    metadata.mkdir(parents=True)
    sounds.mkdir()
    for number in range(count):
        (sounds / f"{number}.wav").write_bytes(WAV[:44] + number.to_bytes(16, "little") + WAV[60:])
    about = {"description": "a dog barks, recorded in a park", "tags": ["dog", "bark"], "uploader": "recordist"}
    clips = {str(number): {"title": f"dog {number}.wav", **about, "license": LICENCES[number % 2]} for number in range(count)}
    (metadata / "dev_clips_info_FSD50K.json").write_text(json.dumps(clips), encoding="utf-8")
    (directory / "README.md").write_text("All sounds are licensed under CC BY 4.0.\n", encoding="utf-8")
    past = time.time() - 3600  # a file that changed in the last seconds is read again
    for path in [directory, *directory.rglob("*")]:
        os.utime(path, (past, past))


def scans(project: Path, corpus: Path, with_terms: bool) -> list[tuple[float, float]]:
    """Wall and CPU seconds of each of SCANS in this process."""
    import stages.scan

    project.mkdir()
    os.chdir(project)
    document = params.compose(measure.ROOT / "conf", ["corpus=folder", f"corpus.path='{corpus}'"])
    params.write_yaml(document | {"execution": document["execution"] | {"workers": 2}}, project / "params.yaml")
    times = []
    with contextlib.ExitStack() as stack:
        if not with_terms:
            digests = hashing.file_digests
            plain = mock.patch.object(hashing, "file_digests", lambda *args, about=None, **options: digests(*args, **options))
            stack.enter_context(plain)
            stack.enter_context(mock.patch.object(terms, "fill"))
        for scan in SCANS:
            if scan == "a changed text":
                (corpus / "README.md").write_text(f"All sounds are licensed under CC BY 4.0.\n{project}\n", encoding="utf-8")
            started = time.monotonic(), time.process_time()
            stage.main(
                stages.scan.run,
                "corpus",
                ["--name", "scan", "--corpus", "data/corpus", "--refused", "data/refused.parquet"],
                always_runs=True,
            )
            times.append((time.monotonic() - started[0], time.process_time() - started[1]))
    return times


if __name__ == "__main__":
    main()
