"""Adding one per cent of recordings to a built corpus: `dvc repro` of all data stages against a fresh build with the same bytes.

Each recording is a mix of four real ones: 44.1 kHz Ogg Vorbis, or files as in a download of AudioCaps (`--form youtube`; see
audiocaps_generator.py).
"""

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
    parser.add_argument("--captions", type=Path, default=CAPTIONS, help="directory of AudioCaps' CSV files")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="length of every recording and clip (default: 10, as in AudioCaps)"
    )
    parser.add_argument("--form", choices=FORMS, default="ogg", help="format of the recordings (default: %(default)s)")
    parser.add_argument(
        "--clips-per-shard",
        type=int,
        default=CLIPS_PER_SHARD,
        help="1 %% more touches a share of 1 - 0.99^n of the shards, each of which is rewritten (default: %(default)s)",
    )
    args = parser.parse_args()
    clips = generator.read_clips(args.captions)
    added = max(1, args.clips // 100)
    with measure.workplace(args.work) as place:
        corpus = Path(place) / "corpus"
        found, what = recordings.find(args.audio, Path(place))
        grow(clips[: args.clips], corpus, args.seconds, tuple(found), args.form)
        overrides = settings(corpus, args.clips, args.seconds, args.clips_per_shard)
        grown, fresh = (Checkout.make(Path(place) / name, overrides) for name in ("grown", "fresh"))
        usages = {"built": grown.dvc("repro"), "nothing to do": grown.dvc("repro")}
        grow(clips[: args.clips + added], corpus, args.seconds, tuple(found), args.form)
        usages["one per cent added"] = grown.dvc("repro")
        usages["fresh build"] = fresh.dvc("repro")
        grown_digests, fresh_digests = grown.digests(), fresh.digests()
    names = grown_digests.keys() | fresh_digests.keys()
    different = sorted(name for name in names if grown_digests.get(name) != fresh_digests.get(name))
    seconds = {name: [usage.seconds] for name, usage in usages.items()}
    share = usages["one per cent added"].seconds / usages["fresh build"].seconds
    measure.write(
        f"incremental_{args.form}",
        args.results,
        args.clips,
        seconds,
        [
            Target(
                f"1 % more recordings ({FORMS[args.form]}), against a fresh build", share, 0.05, at_least=False, unit=" of the time"
            ),
            Target("files that differ from a fresh build", len(different), 0, at_least=False, unit=""),
        ],
        recordings=what,
        form=args.form,
        added=added,
        clip_seconds=args.seconds,
        clips_per_shard=args.clips_per_shard,
        share_of_cpu=usages["one per cent added"].cpu_seconds / usages["fresh build"].cpu_seconds,
        files=len(fresh_digests),
        different_first=different[:20],
        usage={name: asdict(usage) for name, usage in usages.items()},
    )
    if different:
        raise UserError(f"{len(different)} of {len(fresh_digests)} files differ from a fresh build, first {different[0]}")


def grow(clips: list[generator.AudioCapsClip], corpus: Path, seconds: float, found: tuple[Path, ...], form: generator.Form) -> None:
    generator.write_tables(clips, corpus)
    generator.generate(clips, corpus, seconds, WORKERS, found, form)


if __name__ == "__main__":
    main()
