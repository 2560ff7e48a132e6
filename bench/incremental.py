"""One per cent more recordings in a built corpus: `dvc repro` of all data stages, against building it afresh; the same bytes.

The recordings are made of four real ones each: 44.1 kHz Ogg Vorbis, or what a download of AudioCaps leaves (`--form youtube`; see
audiocaps_generator.py).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from bench import audiocaps_generator as generator
from bench import measure, recordings
from bench.checkout import Checkout
from bench.measure import WORKERS, Target
from bench.scale import CAPTIONS, CLIPS_PER_SHARD, settings
from soundmill.errors import UserError

FORMS = {"ogg": "mono Ogg", "youtube": "stereo m4a and webm"}


def main() -> None:
    parser = measure.parser(__doc__, clips=5_000)
    parser.add_argument("--captions", type=Path, default=CAPTIONS, help="directory of AudioCaps' csv files")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="length of every recording and clip (default: 10, as in AudioCaps)"
    )
    parser.add_argument("--form", choices=FORMS, default="ogg", help="what the recordings are (default: %(default)s)")
    parser.add_argument(
        "--clips-per-shard",
        type=int,
        default=CLIPS_PER_SHARD,
        help="1 %% more touches a share of 1 - 0.99^n of the shards, each of which is written anew (default: %(default)s)",
    )
    args = parser.parse_args()
    clips = generator.read_clips(args.captions)
    added = max(1, args.clips // 100)
    with measure.workplace(args.work) as place:
        corpus = Path(place) / "corpus"
        found, what = recordings.find(args.audio, Path(place))
        grow(clips[: args.clips], corpus, args.seconds, tuple(found), args.form)
        overrides = settings(corpus, args.clips, args.seconds, args.clips_per_shard)
        grown, fresh = (Checkout.make(Path(place) / name, overrides) for name in ("grown", "afresh"))  # of the code as it is now
        usages = {"built": grown.dvc("repro"), "nothing to do": grown.dvc("repro")}
        grow(clips[: args.clips + added], corpus, args.seconds, tuple(found), args.form)
        usages["one per cent added"] = grown.dvc("repro")
        usages["built afresh"] = fresh.dvc("repro")
        one, other = grown.digests(), fresh.digests()
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    seconds = {name: [usage.seconds] for name, usage in usages.items()}
    share = usages["one per cent added"].seconds / usages["built afresh"].seconds
    measure.write(
        f"incremental_{args.form}",
        args.results,
        args.clips,
        seconds,
        [
            Target(f"1 % more recordings ({FORMS[args.form]}), against building", share, 0.05, at_least=False, unit=" of the time"),
            Target("files that differ from building afresh", len(different), 0, at_least=False, unit=""),
        ],
        recordings=what,
        form=args.form,
        added=added,
        clip_seconds=args.seconds,
        clips_per_shard=args.clips_per_shard,
        share_of_cpu=usages["one per cent added"].cpu_seconds / usages["built afresh"].cpu_seconds,
        files=len(other),
        different_first=different[:20],
        usage={name: asdict(usage) for name, usage in usages.items()},
    )
    if different:
        raise UserError(f"{len(different)} of {len(other)} files differ from a fresh build, first {different[0]}")


def grow(clips: list[generator.Clip], corpus: Path, seconds: float, found: tuple[Path, ...], form: generator.Form) -> None:
    generator.write_tables(clips, corpus)
    generator.generate(clips, corpus, seconds, WORKERS, found, form)


if __name__ == "__main__":
    main()
