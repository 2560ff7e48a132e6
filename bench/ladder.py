"""Processor time of `soundmill evaluate` with and without the ladder, from an empty cache, with a page.

Fold 3 of ESC-10 is scored against folds 1 and 2, by YAMNet and texture statistics.
"""

import os
import shutil
import statistics
from pathlib import Path

from bench import measure
from bench.checkout import run
from bench.measure import WORKERS, Target
from bench.scale import soundmill
from soundmill import pretrained
from soundmill.errors import UserError


def main() -> None:
    parser = measure.parser(__doc__, repetitions=2, every=1)
    args = parser.parse_args()
    os.environ[pretrained.VARIABLE] = str(measure.weights_directory().resolve())
    corpus = args.audio or measure.ROOT.parent / "shared" / "data" / "esc10"
    with measure.workplace(args.work) as place:
        work = Path(place)
        count = split(corpus, work, args.every)

        def evaluate(*options: str) -> float:
            for name in ("cache", "page"):
                shutil.rmtree(work / name, ignore_errors=True)
            embedders = ["--embedder", "yamnet", "--embedder", "texture", "--workers", str(WORKERS)]
            outputs = ["--cache", "cache", "--report", "page"]
            return run([*soundmill(), "evaluate", "generated", "reference", *embedders, *outputs, *options], work).seconds

        sides = {"with the ladder": lambda: evaluate(), "without": lambda: evaluate("--ladder", "none")}
        rounds = measure.in_turns(sides, args.repetitions)
    whole, without = (rounds.cpu_seconds[side] for side in sides)
    share = statistics.median(1 - rest / all_ for all_, rest in zip(whole, without, strict=True))
    targets = [Target("share of the ladder in the processor time of an evaluation", share, 0.2, at_least=False, unit="")]
    measure.write("ladder", args.results, count, rounds.seconds, targets, cpu_seconds=rounds.cpu_seconds)


def split(corpus: Path, work: Path, every: int) -> int:
    """Copy every `every`-th recording of fold 3 into `generated`, of the other folds into `reference`; returns their number."""
    copied = 0
    for path in sorted(corpus.rglob("*.ogg"))[::every]:
        target = work / ("generated" if path.name.startswith("3-") else "reference") / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
        copied += 1
    if not (work / "generated").is_dir() or not (work / "reference").is_dir():
        raise UserError(f"{corpus}: no recordings of folds 1 to 3 (1-100032-A.ogg …); give the directory of ESC-10")
    return copied


if __name__ == "__main__":
    main()
