"""Shuffled crops of spectrograms for training: Soundmill's loader against Hugging Face `datasets` on the same Parquet shards.

Both read their own uncompressed copy at random, crop 256 of 512 frames and pass batches of 64 to the training process.
"""

import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import measure, recordings
from bench.measure import Target, in_fresh_process, ratio
from soundmill import manifest, params, shards

BANDS, FRAMES, CROP, BATCH = 64, 512, 256, 64
PER_SHARD = 1024  # clips
SOURCES = 64  # recordings from which all clips are assembled


def main() -> None:
    args = measure.parser(__doc__, clips=12_000, repetitions=3).parse_args()
    with measure.workplace(args.work) as place:
        work = Path(place)
        found, what = recordings.find(args.audio, work)
        in_fresh_process(write_spectrograms, found[:SOURCES], args.clips, work / "mels")
        details: dict[str, dict[str, Any]] = {}

        def run(name: str, function: Any, workers: int, clips: int = args.clips) -> float:
            seconds, details[name] = in_fresh_process(function, work, clips, workers)
            return seconds

        rounds = measure.in_turns(
            {
                "soundmill, 1 worker": partial(run, "soundmill, 1 worker", soundmill, 1),
                "soundmill, 2 workers": partial(run, "soundmill, 2 workers", soundmill, 2),
                "datasets": partial(run, "datasets", datasets, 0),
                "datasets, 2 workers": partial(run, "datasets, 2 workers", datasets, 2),
            },
            args.repetitions,
        )
        run("soundmill, 2 workers, a quarter of the clips", soundmill, 2, args.clips // 4)
        fastest = {who: min(seconds) for who, seconds in rounds.seconds.items()}
        print(json.dumps({who: round(args.clips / seconds) for who, seconds in fastest.items()}))
        medians = {who: sorted(seconds)[len(seconds) // 2] for who, seconds in rounds.seconds.items()}
        peak = max(details["soundmill, 2 workers"]["peak_bytes"])
        measure.write(
            "loader",
            args.results,
            args.clips,
            rounds.seconds,
            [
                Target("crops of 64 × 256 with 2 workers", args.clips / medians["soundmill, 2 workers"], 3000, unit="/s"),
                Target("… with 1 worker", args.clips / medians["soundmill, 1 worker"], 3000, unit="/s"),
                Target("… peak memory of one process", peak / 1e9, 1.5, at_least=False, unit=" GB"),
            ],
            cpu_seconds=rounds.cpu_seconds,
            times_datasets=ratio(rounds.seconds["datasets, 2 workers"], rounds.seconds["soundmill, 2 workers"]),
            details=details,
            recordings=what,
        )


def write_spectrograms(sources: list[Path], count: int, directory: Path) -> None:
    """Write `count` different log-mels [64, 512]: two real ones concatenated and rotated."""
    from soundmill.audio.mel import SpectrogramParams, log_mel
    from soundmill.decoding.decode import read_mono

    spec = SpectrogramParams(**params.compose(measure.ROOT / "conf", ["model=ddpm_mel"])["spectrogram"]["ddpm_mel"]).spec
    real = [log_mel(read_mono(path, spec.sample_rate, 60.0), spec).astype("<f2") for path in sources]
    rng = np.random.default_rng(0)
    for start in range(0, count, PER_SHARD):
        rows = []
        for number in range(start, min(start + PER_SHARD, count)):
            parts = [real[index] for index in rng.integers(len(real), size=2)]
            values = np.roll(np.concatenate(parts, axis=1), rng.integers(FRAMES), axis=1)
            values = np.resize(values.T, (FRAMES, BANDS)).T
            size = {"num_mels": BANDS, "num_frames": FRAMES}
            rows.append({"clip_id": clip_id(number), "log_mel": values.tobytes(), **size, "digest": str(number)})
        shards.write_rows(rows, directory / shards.shard_name(start // PER_SHARD), manifest.SPECTROGRAMS)


def clip_id(number: int) -> str:
    return f"clip-{number:06d}"


def soundmill(work: Path, clips: int, workers: int) -> tuple[float, dict[str, Any]]:
    """Seconds of one epoch after the first batch, and details: first batch, copying, resuming."""
    import torch

    from soundmill.models.components.log_mels.source import Crops, gather_log_mels
    from soundmill.training.loader import Loader, Order

    torch.set_num_threads(1)
    ids = [clip_id(number) for number in range(clips)]
    start = time.perf_counter()
    log_mels = gather_log_mels(work / "mels", ids, work / f"flat-{clips}")
    copying = time.perf_counter() - start

    def new_loader() -> Loader:
        order = Order(0, dict.fromkeys(ids, 1.0), BATCH)
        return Loader(Crops(log_mels, CROP, 0.0), order, random_places, steps=order.steps(1), workers=workers)

    loader = new_loader()
    seconds, details = drain((batch.values[0] for batch in loader), loader.steps)

    state = {**new_loader().state_dict(), "step": loader.steps // 2}
    start = time.perf_counter()
    gather_log_mels(work / "mels", ids, work / f"flat-{clips}")
    resumed = new_loader()
    resumed.load_state_dict(state)
    next(iter(resumed))
    return seconds, {**details, "seconds_to_copy_or_find": copying, "seconds_to_resume": time.perf_counter() - start}


def random_places(step: int) -> Any:
    import torch

    return torch.rand(BATCH, generator=torch.Generator().manual_seed(step))


def datasets(work: Path, clips: int, workers: int) -> tuple[float, dict[str, Any]]:
    """The same with `datasets`: memory-mapped Arrow, torch's shuffling, crops in `collate_fn`."""
    import torch
    from datasets import disable_progress_bars, load_dataset
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    disable_progress_bars()
    start = time.perf_counter()
    files = [str(path) for path in shards.shard_paths(work / "mels")]
    table = load_dataset("parquet", data_files=files, split="train", cache_dir=str(work / "datasets"))
    copying = time.perf_counter() - start
    rows = table.select_columns(["log_mel", "num_mels", "num_frames"])
    context = "spawn" if workers else None
    loader = DataLoader(
        rows, BATCH, shuffle=True, num_workers=workers, collate_fn=crop_rows, drop_last=False, multiprocessing_context=context
    )
    seconds, details = drain(loader, len(loader))
    return seconds, {**details, "seconds_to_copy_or_find": copying}


def crop_rows(rows: list[dict[str, Any]]) -> Any:
    import torch

    crops = []
    for row in rows:
        values = np.frombuffer(row["log_mel"], "<f2").reshape(row["num_mels"], row["num_frames"])
        start = int(torch.randint(values.shape[1] - CROP + 1, ()))
        crops.append(values[:, start : start + CROP])
    return torch.from_numpy(np.stack(crops))


def drain(batches: Iterable[Any], count: int) -> tuple[float, dict[str, Any]]:
    """Consume all batches as float32; seconds per batch after the first, times their number; peak memory of every process."""
    start = time.perf_counter()
    stream: Iterator[Any] = iter(batches)
    next(stream).float()
    first = time.perf_counter()
    peaks: list[int] = []
    for number, log_mel in enumerate(stream, start=2):
        log_mel.float()
        if number == count - 1:  # before the last batch, while the workers are alive
            processes = ["self", *(child.pid for child in multiprocessing.active_children())]
            peaks = [measure.memory_bytes("VmHWM", process) for process in processes]
        last = time.perf_counter()  # without the end of the workers
    seconds = (last - first) * count / (count - 1)
    return seconds, {"seconds_to_first_batch": first - start, "peak_bytes": peaks}


if __name__ == "__main__":
    main()
