"""Comparison of mel specs: real clips become log-mels and sound again, and are scored as sounds."""

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import clips, hashing, manifest, shards
from soundmill.audio import mel
from soundmill.audio.flac import decode_mono, write_wav
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.evaluation import embedders, family, features, probe, scorer, sets, waveforms
from soundmill.evaluation.library import Setup, about_damaged, rounded
from soundmill.models.components.contracts import GriffinLimParams
from soundmill.params import parse

GRAINS = ("none", "speckle")  # of Griffin-Lim
SHORT = re.compile(r"(\d+)x(\d+)(?::(\d+))?/(\d+)")
SILENT = 1e-4  # clips with lower peaks are silence


def parse_spec(text: str, base: MelSpec) -> MelSpec:
    """`base` with the sizes in `text`, BANDSxN_FFT[:WINDOW]/HOP; UserError if they make no invertible spec."""
    match = SHORT.fullmatch(text)
    if not match:
        raise UserError(
            f"--spec {text}: expected BANDSxN_FFT/HOP or BANDSxN_FFT:WINDOW/HOP, such as 64x1024/256 or 64x1024:400/160"
        )
    bands, n_fft, window, hop = (int(number) if number is not None else None for number in match.groups())
    sizes = {"n_mels": bands, "n_fft": n_fft, "win_length": n_fft if window is None else window, "hop_length": hop}
    spec = parse(MelSpec, base.model_dump() | sizes, f"--spec {text}")
    try:
        mel.check_bands(spec)
        mel.check_overlap(spec)
    except UserError as error:
        raise UserError(f"--spec {text}: {error}") from None
    return spec


def short(spec: MelSpec) -> str:
    window = "" if spec.win_length == spec.n_fft else f":{spec.win_length}"
    return f"{spec.n_mels}x{spec.n_fft}{window}/{spec.hop_length}"


def around(spec: MelSpec) -> list[MelSpec]:
    """A spec and its neighbours: twice and half the hop, half the window, a quarter more and twice the bands."""
    bands, n_fft, window, hop = spec.n_mels, spec.n_fft, spec.win_length, spec.hop_length
    sizes = [
        (bands, n_fft, window, hop),
        (bands, n_fft, window, 2 * hop),
        (bands, n_fft, window, max(1, hop // 2)),
        (bands, n_fft, window // 2, hop),
        (bands * 5 // 4, n_fft, window, hop),
        (2 * bands, n_fft, window, hop),
    ]
    specs = []
    for bands, n_fft, window, hop in sizes:
        with suppress(UserError):  # a neighbour may have an empty band or too long a hop
            specs.append(parse_spec(f"{bands}x{n_fft}:{window}/{hop}", spec))
    return specs


@dataclass(frozen=True)
class Line:
    """Scores of the clips after log-mels of one spec; `fad` has `value` and the ends `low` and `high` of its 95 % interval."""

    spec: MelSpec
    grain: str
    frames: int  # of the longest clip
    mrstft: float  # mean over clips
    fad: Mapping[str, float]
    accuracy: float | None  # share of clips that the probe puts into their class; None without classes


@dataclass(frozen=True)
class Comparison:
    setup: Setup
    lines: Sequence[Line]
    real_accuracy: float | None  # of the same clips, unchanged
    clips: Mapping[str, str]  # id → key of its content
    warnings: Sequence[str]

    def document(self) -> dict[str, Any]:
        rows = []
        for line in self.lines:
            fad = {"fad" if name == "value" else f"fad_{name}": value for name, value in line.fad.items()}
            sizes = {
                "label_accuracy": line.accuracy,
                "numbers_per_second": rounded(numbers_per_second(line.spec)),
                "mel_spec": line.spec.model_dump(),
            }
            rows.append(
                {"spec": short(line.spec), "grain": line.grain, "frames": line.frames, "mrstft": line.mrstft, **fad} | sizes
            )
        return {
            **scorer.provenance(self.setup),
            "counts": {"clips": len(self.clips)},
            "files": {"clips": features.list_digest(self.clips)},
            "real_label_accuracy": self.real_accuracy,
            "spectrograms": rows,
            "warnings": list(self.warnings),
        }


def numbers_per_second(spec: MelSpec) -> float:
    return spec.n_mels * spec.sample_rate / spec.hop_length


def choose(tables: clips.Tables, split: str | None, count: int, seed: int) -> list[str]:
    """At most `count` clips, chosen by the seed from a split (None: all but the test split); UserError if FAD needs more."""
    ids = [row["clip_id"] for row in clips.find(tables, split=split) if split or row["split"] != "test"]
    chosen = sorted(hashing.hash_order(ids, "spectrograms", seed)[:count])
    if len(chosen) < scorer.FEWEST_REFERENCE:
        where = f"split {split!r} has" if split else "the splits 'train' and 'valid' have"
        raise UserError(
            f"{tables.catalog}: a Fréchet distance needs {scorer.FEWEST_REFERENCE} clips, but {where} {len(ids)} and --number is "
            f"{count}; use another --split, a larger --number, or more recordings"
        )
    return chosen


def compare(
    setup: Setup,
    tables: clips.Tables,
    clip_ids: Sequence[str],
    specs: Sequence[MelSpec],
    params: GriffinLimParams,
    probe_clips: int,
) -> Comparison:
    """Score every spec with and without speckle by the protocol's first embedder.

    FAD and mrstft compare the clips after `round_trip` with the same clips. Classes are recognised by a linear probe, fitted to at
    most `probe_clips` real clips of other folds.
    """
    config, seed = setup.configs[0], setup.protocol.seed
    embedders.find(config.name).path(setup.tagger)  # a UserError if its weights are missing
    longest = check_clips(tables, clip_ids, specs[0].sample_rate)
    catalog = family.read_catalog(tables.catalog)
    labelled = sets.choose_sets(catalog, clip_ids, (), "all", probe_clips, seed).probe
    real = features.in_shards(family.shards_of(catalog, tables.clips, {*clip_ids, *(clip_id for clip_id, _, _ in labelled)}))
    ways = [(spec, grain) for spec in specs for grain in GRAINS]
    with tempfile.TemporaryDirectory(prefix="soundmill-spectrograms-") as place:
        jobs = [
            shards.Job(
                f"{number:03d}",
                (tables, tuple(clip_ids), spec.model_dump_json(), params.model_copy(update={"griffin_lim_grain": grain})),
                len(clip_ids),
            )
            for number, (spec, grain) in enumerate(ways)
        ]
        with setup.progress(len(jobs) * len(clip_ids), "log-mels to sounds", "clip") as tick:
            report = shards.map_shards(resynthesise, jobs, Path(place), workers=setup.workers, progress=tick)
        sounds = [features.in_files(family.sound_files(Path(place) / job.name)) for job in jobs]
        every = [*real.values(), *(sound for of in sounds for sound in of.values())]
        with setup.progress(len(every), "embed", "clip") as tick:
            damaged = setup.embed([config], every, tick)
    reference = features.view(config, real.values(), setup.cache)
    views = [features.view(config, of.values(), setup.cache) for of in sounds]
    accuracies, real_accuracy = _accuracies(labelled, reference, views)
    lines = []
    with setup.progress(len(ways), "score", "spectrogram") as tick:
        for (spec, grain), view, accuracy, mrstft in zip(ways, views, accuracies, report.details, strict=True):
            frames = mel.num_frames(spec, longest)
            lines.append(Line(spec, grain, frames, rounded(mrstft), _fad(setup, view, reference.of(clip_ids)), accuracy))
            tick(1)
    warnings = [about_damaged(damaged)] if damaged else []
    if real_accuracy is None:
        warnings.append("No class accuracy: fewer than two classes have clips of two recordings with a single label.")
    return Comparison(setup, lines, real_accuracy, reference.of(clip_ids).keys, warnings)


def _fad(setup: Setup, sounds: features.View, reference: features.View) -> dict[str, float]:
    protocol = setup.protocol
    task = scorer.Measurement("fad", "fad", "generated", sounds, reference, protocol.seed, protocol.replicates)
    result = scorer.measure(task)
    if "missing" in result:
        raise UserError(f"fad: {result['missing']}")
    return {name: rounded(result[name]) for name in ("value", "low", "high") if name in result}


def _accuracies(
    labelled: Sequence[tuple[str, str, int]], real: features.View, sounds: Sequence[features.View]
) -> tuple[list[float | None], float | None]:
    """The share of clips, of each set of sounds and of the real ones, that the probe of the other folds puts into their class."""
    if not labelled:
        return [None] * len(sounds), None
    # One call fits the probes once: the sounds of all sets are one set with longer ids.
    of = {clip_id: (label, fold) for clip_id, label, fold in labelled}
    keys = {f"{number}/{name}": key for number, view in enumerate(sounds) for name, key in view.keys.items() if name in of}
    rows = [*labelled, *((name, *of[name.partition("/")[2]]) for name in keys)]
    guessed = probe.guess(rows, real.of(of), features.View(real.directory, {}), features.View(real.directory, keys))

    def share(clip_ids: Iterable[str], guesses: Mapping[str, str], prefix: str = "") -> float | None:
        right = [guesses[prefix + clip_id] == of[clip_id][0] for clip_id in clip_ids if prefix + clip_id in guesses]
        return rounded(float(np.mean(right))) if right else None

    compared = {clip_id for view in sounds for clip_id in view.keys}
    return [share(view.keys, guessed.codec, f"{number}/") for number, view in enumerate(sounds)], share(compared, guessed.real)


def check_clips(tables: clips.Tables, clip_ids: Sequence[str], sample_rate: int) -> int:
    """The length of the longest of these clips; UserError if they have another rate, or if all are silent."""
    peak, longest = 0.0, 0
    for row in clips.with_audio(tables, set(clip_ids)):
        clips.check_rate(row, sample_rate)
        wave = decode_mono(row["audio"]["bytes"])
        peak, longest = max(peak, float(np.abs(wave).max(initial=0.0))), max(longest, len(wave))
    if peak < SILENT:
        raise UserError(
            f"{tables.clips}: all {len(clip_ids)} clips are silent, so there is nothing to compare; check `corpus.path` and "
            "`quality.rules`, then run `dvc repro`"
        )
    return longest


def resynthesise(
    tables: clips.Tables, clip_ids: Sequence[str], spec_json: str, params: GriffinLimParams, output: Path
) -> shards.Report:
    """Write `<clip id>.wav` of each clip after `round_trip` into the directory `output`; `details` is their mean mrstft."""
    spec = MelSpec.model_validate_json(spec_json)
    output.mkdir()
    distances = []
    for row in clips.with_audio(tables, set(clip_ids)):
        wave = decode_mono(row["audio"]["bytes"])
        sound = round_trip(wave, spec, params)
        if wave.any():
            distances.append(waveforms.multi_resolution_stft(sound[None], wave[None]))
        write_wav(output / f"{manifest.check_clip_id(row['clip_id'])}.wav", sound[None], spec.sample_rate)
    return shards.Report(details=[float(np.mean(distances))])


def round_trip(wave: np.ndarray, spec: MelSpec, params: GriffinLimParams) -> np.ndarray:
    """A wave [T] as a log-mel and as a wave [T] again, by Griffin-Lim; at the level of the first if the spec has a `peak`."""
    import torch

    from soundmill.models.components import vocoding
    from soundmill.models.components.griffin_lim.vocoder import GriffinLim

    log_mel = torch.from_numpy(mel.log_mel(wave, spec))[None]
    sound = vocoding.to_waves(GriffinLim(spec, params), log_mel, torch.device("cpu"), len(wave))[0, 0].numpy()
    if spec.peak is None:
        return sound
    return sound * np.float32(np.abs(wave - wave.mean(dtype=np.float64)).max() / spec.peak)
