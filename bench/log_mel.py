"""Log-mel spectrograms of 5 s clips at 16 kHz: the stage `spectrogram` against lhotse's Fbank."""

import importlib
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq

from bench import measure, recordings
from bench.decode import plan, resample
from bench.measure import WORKERS, Target, in_fresh_process, in_stage_environment, ratio
from bench.peers import in_pool
from bench.project import Project
from soundmill import manifest, params, shards

SHARDS = 16  # default of a corpus
# lhotse's FbankConfig, so that both do the same work: 25 ms every 10 ms, 80 bands.
LIKE_LHOTSE = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80, "f_min": 20.0, "f_max": 7600.0}


def main() -> None:
    args = measure.parser(__doc__, clips=1600, repetitions=3).parse_args()
    with measure.workplace(args.work) as place:
        work = Path(place)
        found, what = recordings.find(args.audio, work)
        recordings.repeat(found, args.clips, work / "recordings")
        in_fresh_process(resample, plan(work / "recordings", work / "planned", SHARDS), work / "clips")
        clips = work / "clips/data/clips"
        unpack(clips, work / "flac")
        mapping: dict[str, list[float]] = {"like lhotse": [], "ddpm_mel": []}

        def ours(spec: str) -> float:
            seconds, working = in_stage_environment(spectrograms, clips, work / "ours", spec)
            mapping[spec].append(working)
            return seconds

        rounds = measure.in_turns(
            {
                "soundmill": lambda: ours("like lhotse"),
                "soundmill, ddpm_mel": lambda: ours("ddpm_mel"),
                "lhotse": lambda: in_fresh_process(fbank, work / "flac", work / "lhotse", False),
                "lhotse, started processes": lambda: in_fresh_process(fbank, work / "flac", work / "lhotse", True),
            },
            args.repetitions,
        )
        seconds = rounds.seconds
        seconds["soundmill, started processes"] = mapping["like lhotse"]
        seconds["soundmill, ddpm_mel, started processes"] = mapping["ddpm_mel"]
        measure.write(
            "log_mel",
            args.results,
            args.clips,
            seconds,
            [
                Target("against lhotse's Fbank of the same size", ratio(seconds["lhotse"], seconds["soundmill"]), 1),
                Target(
                    "… with started processes",
                    ratio(seconds["lhotse, started processes"], seconds["soundmill, started processes"]),
                    1,
                ),
            ],
            recordings=what,
            workers=WORKERS,
            cpu_seconds=rounds.cpu_seconds,
        )


def unpack(clips: Path, directory: Path) -> None:
    """Write the clips as FLAC files for lhotse."""
    directory.mkdir()
    for path in shards.shard_paths(clips):
        for row in shards.read_rows(path, manifest.CLIPS, ["clip_id", "audio"]):
            (directory / f"{row['clip_id']}.flac").write_bytes(row["audio"]["bytes"])


def spectrograms(clips: Path, root: Path, spec: str) -> tuple[float, float]:
    """Seconds of the stage `spectrogram`, with and without starting processes."""
    shutil.rmtree(root, ignore_errors=True)
    project = Project.make(root, ["model=ddpm_mel"])
    if spec == "like lhotse":
        document = params.read_yaml(root / "params.yaml")
        document["spectrogram"][spec] = {**document["spectrogram"]["ddpm_mel"], **LIKE_LHOTSE}
        params.write_yaml(document, root / "params.yaml")
    importlib.import_module("stages.spectrogram")
    start = time.perf_counter()
    working = project.run("spectrogram", f"spectrogram.{spec}", ("soundfile", "torchaudio"), audio=clips)
    seconds = time.perf_counter() - start
    rows = sum(pq.read_metadata(path).num_rows for path in shards.shard_paths(root / "data/spectrograms"))
    assert rows == sum(pq.read_metadata(path).num_rows for path in shards.shard_paths(clips)), "a clip is missing"
    return seconds, working


def fbank(source: Path, output: Path, started: bool) -> float:
    """Seconds of lhotse's Fbank with one thread in each process, as it recommends."""
    import torch
    from lhotse import CutSet, Fbank, RecordingSet

    torch.set_num_threads(1)
    shutil.rmtree(output, ignore_errors=True)
    cuts = CutSet.from_manifests(recordings=RecordingSet.from_dir(source, "*.flac"))
    return in_pool(
        lambda pool: cuts.compute_and_store_features(Fbank(), output, num_jobs=WORKERS, executor=pool, progress_bar=False),
        ["lhotse", "soundfile", "torchaudio"] if started else [],
    )


if __name__ == "__main__":
    main()
