"""Pages about clips: their quality, by limits of its measures that are applied here; pairs of duplicates; and their captions."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from soundmill import manifest, page, shards
from soundmill.corpora.catalog import Fit
from soundmill.errors import UserError
from soundmill.params import StageParams, read_yaml

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = tuple(column.name for column in manifest.QUALITY)
PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
COLUMNS = ["clip_id", "source", "start", "recording_id", "quality"]  # read of the shards
CLIPS_AT_ONCE = 8192
SIGNED = ("dc_offset",)  # limited on both sides of zero


@dataclass(frozen=True)
class Limit:
    """An active rule: `min_<measure>` or `max_<measure>`."""

    name: str
    value: float

    @property
    def measure(self) -> str:
        return self.name.partition("_")[2]

    def excess(self, measures: Mapping[str, np.ndarray]) -> np.ndarray:
        """By how much each clip [N] exceeds the limit: positive if it breaks it, infinite for the level of digital silence."""
        values = measures[self.measure]
        if self.measure == "level_db":
            values = np.nan_to_num(values, nan=-np.inf, neginf=-np.inf)
        elif self.measure in SIGNED:
            values = np.abs(values)
        beyond = self.value - values if self.name.startswith("min_") else values - self.value
        return np.nan_to_num(beyond, nan=-np.inf, posinf=np.inf, neginf=-np.inf)  # no value, no violation

    def describe(self, value: float | None) -> str:
        """The measured value beside the limit: `clipping_ratio 0.31 > max_clipping_ratio 0.1`."""
        sign = "<" if self.name.startswith("min_") else ">"
        what = f"|{self.measure}|" if self.measure in SIGNED else self.measure
        is_silent = value is None or np.isnan(value)
        number = "of digital silence" if is_silent else f"{abs(value) if self.measure in SIGNED else value:.5g}"
        return f"{what} {number} {sign} {self.name} {self.value:g}"


@dataclass
class ClipQuality:
    """Measures and verdicts of all clips, in the order of the shards: 70 bytes per clip, without ids."""

    limits: list[Limit]
    shards: list[Path]
    corpora: list[str]
    starts: list[int] = field(default_factory=lambda: [0])  # number of the first clip of each shard
    measures: dict[str, np.ndarray] = field(default_factory=dict)  # [N] each; NaN: no value
    corpus: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # [N], into `corpora`
    rejected: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))  # [N], into `limits`; -1: kept

    def __len__(self) -> int:
        return self.starts[-1]

    def broken(self) -> dict[str, int]:
        """Number of clips that break each limit; a clip may break several."""
        return {limit.name: int((limit.excess(self.measures) > 0).sum()) for limit in self.limits}

    def rejected_for(self) -> dict[str, int]:
        """Number of clips by the first limit that they break."""
        return {limit.name: int((self.rejected == number).sum()) for number, limit in enumerate(self.limits)}

    def spread(self) -> dict[str, dict[str, float]]:
        """Percentiles of every measure, and the number of clips without a value, if any."""
        percentiles: dict[str, dict[str, float]] = {}
        for name, values in self.measures.items():
            measured = values[~np.isnan(values)]
            found = np.round(np.percentile(measured, PERCENTILES), 6).tolist() if len(measured) else ()
            percentiles[name] = {f"p{p}": value for p, value in zip(PERCENTILES, found, strict=False)}
            if len(measured) < len(values):
                percentiles[name]["none"] = len(values) - len(measured)
        return percentiles

    def worst(self, limit: Limit, count: int) -> list[int]:
        """Numbers of the clips that exceed a limit most, worst first."""
        excess = limit.excess(self.measures)
        broken = np.flatnonzero(excess > 0)
        return broken[np.argsort(-excess[broken], kind="stable")[:count]].tolist()

    def places(self, numbers: Sequence[int]) -> list[tuple[Path, int]]:
        """Shard and row of each of these clips."""
        starts = np.array(self.starts)
        shard_of = np.searchsorted(starts, numbers, side="right") - 1
        rows = np.asarray(numbers, int) - starts[shard_of]
        return [(self.shards[shard], row) for shard, row in zip(shard_of.tolist(), rows.tolist(), strict=True)]


def apply_rules(
    clips: Path, recordings: pa.Table, limits: Iterable[Limit], verdicts: Path
) -> tuple[ClipQuality, list[dict[str, str]]]:
    """Write manifest.VERDICTS of the clips in the shards below `clips`; returns their quality, and the rejected as rows of
    manifest.QUARANTINE. Reads only ids and measures. `recordings` has `recording_id` and `corpus`.
    """
    quality = ClipQuality(list(limits), shards.shard_paths(clips), sorted(pc.unique(recordings["corpus"]).to_pylist()))
    collected: dict[str, list[np.ndarray]] = {name: [] for name in (*MEASURES, "rejected")}
    owners: list[pa.Array] = []
    rows: list[dict[str, str]] = []
    with shards.ShardWriter(verdicts, manifest.VERDICTS) as writer:
        for tables in shards.read_tables(quality.shards, manifest.CLIPS, COLUMNS, CLIPS_AT_ONCE):
            for some in tables:
                quality.starts.append(len(quality) + some.num_rows)
            table = pa.concat_tables(tables)
            measures = _measures_of(table, clips)
            broken = np.stack([limit.excess(measures) > 0 for limit in quality.limits] or [np.zeros(table.num_rows, bool)])
            first = np.where(broken.any(axis=0), broken.argmax(axis=0), -1)
            details: list[str | None] = [None] * table.num_rows
            for row in np.flatnonzero(first >= 0).tolist():
                hits = [limit for limit, hit in zip(quality.limits, broken[:, row], strict=True) if hit]
                details[row] = "; ".join(limit.describe(measures[limit.measure][row]) for limit in hits)
                clip_id, source = table["clip_id"][row].as_py(), table["source"][row].as_py()
                reason = quality.limits[first[row]].name
                rows.append({"path": source, "reason": reason, "detail": f"{details[row]}, clip {clip_id}"})
            names = [quality.limits[number].name if number >= 0 else None for number in first.tolist()]
            table = table.append_column("rejected", pa.array(names, pa.string()))
            writer.write_table(table.append_column("detail", pa.array(details, pa.string())))
            for name, values in measures.items():
                collected[name].append(values)
            owners += table["recording_id"].chunks
            collected["rejected"].append(first.astype(np.int16))
    joined = {name: np.concatenate(parts) for name, parts in collected.items()}
    quality.rejected, quality.measures = joined.pop("rejected"), joined
    # One look-up for all clips: each builds a hash table of all recordings.
    recording_ids = pa.chunked_array(owners, pa.string())
    owner_rows = pc.index_in(recording_ids, recordings["recording_id"].combine_chunks())
    if owner_rows.null_count:
        stray = recording_ids.filter(pc.is_null(owner_rows))[0]
        raise UserError(f"{clips}: a clip's recording {stray} does not exist; make them again: `dvc repro -f resample`")
    numbers = pc.index_in(recordings["corpus"], pa.array(quality.corpora, pa.string())).take(owner_rows)
    quality.corpus = numbers.to_numpy().astype(np.int32)
    return quality, rows


def _measures_of(table: pa.Table, clips: Path) -> dict[str, np.ndarray]:
    quality = table["quality"].combine_chunks()
    if quality.null_count:
        first = table["clip_id"][pc.index(pc.is_null(quality), True).as_py()]
        raise UserError(f"{clips}: clips without measures (first: {first}); make them again: `dvc repro -f resample`")
    return {name: pc.struct_field(quality, name).to_numpy(zero_copy_only=False).astype(np.float64) for name in MEASURES}


TITLES = read_yaml(Path(__file__).with_name("measures.yaml"))  # title, unit and meaning of each measure
SHOWN_PERCENTILES = ("p0", "p5", "p50", "p95", "p100")
BARS = 48
PICTURE_COLUMNS, WAVE_ROWS, SPECTRUM_ROWS = 360, 40, 100
PICTURE_RANGE_DB = 80.0
TAGS_SHOWN = 50
INK, KEPT, REFUSED = "#010203", "#3b82c4", "#d6336c"  # INK is replaced by the page's text colour


class ReportParams(StageParams):
    """How much a page shows."""

    examples: int = Field(ge=0, le=200, description="clips, pairs or captions to see and hear; of each rule, in `quality`")
    megabytes: float = Field(ge=0, le=500, description="maximum of sound on the page")


def write_quality(path: Path, quality: ClipQuality, shown: ReportParams, terms: Mapping[str, Mapping[str, float]]) -> None:
    """Write the page on quality, with the worst clips of each rule; `terms`: hours by licence …"""
    worst = {limit: quality.places(quality.worst(limit, shown.examples)) for limit in quality.limits}
    sounds = _read(_in_turn(worst.values()), shown)
    text = page.render(
        "soundmill.corpora",
        "quality.html",
        title="Quality of the clips",
        num_clips=len(quality),
        hours=quality.measures["seconds"].sum() / 3600,
        num_rejected=int((quality.rejected >= 0).sum()),
        corpora=_corpora(quality),
        terms=terms,
        broken=quality.broken(),
        measures=_measures(quality),
        worst={limit: [sounds[place] for place in clips] for limit, clips in worst.items()},
    )
    path.write_text(text, encoding="utf-8")


def write_duplicates(path: Path, clips: Path, pairs: Sequence[Mapping[str, Any]], shown: ReportParams) -> None:
    """Write the page on duplicates: those of `pairs` (manifest.DUPLICATES) of these clips with the highest scores of each kind."""
    ordered = sorted(pairs, key=lambda pair: (pair["kind"], -pair["score"], pair["a"], pair["b"]))
    some = _in_turn([list(of_kind) for _, of_kind in itertools.groupby(ordered, itemgetter("kind"))])[: shown.examples]
    places = _places(clips, {pair[side] for pair in some for side in "ab"})
    sounds = _read([places[pair[side]] for pair in some for side in "ab"], shown)
    text = page.render(
        "soundmill.corpora",
        "duplicates.html",
        title="Duplicates",
        num_pairs=len(pairs),
        pairs=[(pair, sounds[places[pair["a"]]], sounds[places[pair["b"]]]) for pair in some],
    )
    path.write_text(text, encoding="utf-8")


def write_captions(path: Path, clips: Path, origins: Mapping[str, int], fit: Fit, shown: ReportParams) -> None:
    """Write the page on captions, with the lowest scores; `origins`: number of clips by the origin of their captions."""
    scores, least = fit.captions["score"].to_numpy(), fit.least
    lowest = fit.captions.take(np.argsort(scores, kind="stable")[: shown.examples]).to_pylist()
    places = _places(clips, {row["clip_id"] for row in lowest})
    sounds = _read([places[row["clip_id"]] for row in lowest], shown)
    counts = pc.value_counts(fit.tags["tag"].combine_chunks()).to_pylist()
    text = page.render(
        "soundmill.corpora",
        "captions.html",
        title="Captions of the clips",
        num_clips=sum(origins.values()),
        num_compared=len(scores),
        num_unfit=len(fit.unfit),
        origins=sorted(origins.items(), key=lambda origin: (-origin[1], origin[0])),
        least=least,
        caption_scores=_scores("captions", scores, least.caption),
        word_scores=_scores("words", fit.words["score"].to_numpy(), least.tag),
        tags=sorted(((row["values"], row["counts"]) for row in counts), key=lambda tag: (-tag[1], tag[0]))[:TAGS_SHOWN],
        lowest=[(row, sounds[places[row["clip_id"]]]) for row in lowest],
    )
    path.write_text(text, encoding="utf-8")


def _scores(what: str, scores: np.ndarray, least: float | None) -> str | None:
    """The histogram of scores; None where there are none."""
    limits = [] if least is None else [Limit("min_score", least)]
    return _histogram(f"Scores of {what}", scores, scores < (-np.inf if least is None else least), limits, what)


def _places(clips: Path, clip_ids: set[str]) -> dict[str, tuple[Path, int]]:
    """Shard and row of each of these clips."""
    names = pa.array(clip_ids, pa.string())
    places = {}
    for path in shards.shard_paths(clips) if clip_ids else ():
        column = shards.read_table(path, manifest.CLIPS, ["clip_id"])["clip_id"]
        rows = np.flatnonzero(pc.is_in(column, names)).tolist()
        places.update((column[row].as_py(), (path, row)) for row in rows)
    return places


def _in_turn(lists: Iterable[Sequence[Any]]) -> list[Any]:
    """The first of each, then the second of each …"""
    return [one for turn in itertools.zip_longest(*lists) for one in turn if one is not None]


def _read(places: Iterable[tuple[Path, int]], shown: ReportParams) -> dict[tuple[Path, int], dict[str, Any]]:
    """Rows of the clips at these places, with `flac` and `picture` (JPEG); both are None once `shown.megabytes` are used up."""
    from soundmill.audio.flac import flac_channels

    order = list(dict.fromkeys(places))
    rows = _rows(order, ["clip_id", "source", "start", "quality", "num_samples"])
    playable, left = [], int(shown.megabytes * 1e6)
    channels = max((flac_channels(row["audio"]["bytes"]) for row in _rows(order[:1], ["audio"]).values()), default=1)
    for place in order:
        size = 2 * channels * rows[place]["num_samples"]  # upper bound of 16-bit FLAC, nearly always
        if size <= left:
            playable.append(place)
            left -= size
    audio = {place: row["audio"]["bytes"] for place, row in _rows(playable, ["audio"]).items()}
    pictures = {place: _picture(flac) for place, flac in audio.items()}
    return {place: {**row, "flac": audio.get(place), "picture": pictures.get(place)} for place, row in rows.items()}


def _rows(places: Iterable[tuple[Path, int]], columns: list[str]) -> dict[tuple[Path, int], dict[str, Any]]:
    by_shard: dict[Path, list[int]] = {}
    for path, row in places:
        by_shard.setdefault(path, []).append(row)
    return {
        (path, number): row
        for path, numbers in by_shard.items()
        for number, row in zip(sorted(numbers), shards.read_rows(path, manifest.CLIPS, columns, numbers), strict=True)
    }


def _corpora(quality: ClipQuality) -> list[list[str]]:
    rows = []
    for number, name in enumerate(quality.corpora):
        of = quality.corpus == number
        rejected = int((quality.rejected[of] >= 0).sum())
        share = f"{rejected / of.sum():.1%}" if of.any() else "–"
        hours = quality.measures["seconds"][of].sum() / 3600
        rows.append([name, f"{of.sum():,}", f"{hours:.2f}", f"{rejected:,}", share])
    return rows


def _measures(quality: ClipQuality) -> list[dict[str, Any]]:
    """Of each measure its distribution, its limits, and the number of clips beyond any of them."""
    measures = []
    for name, spread in quality.spread().items():
        title, unit, meaning = TITLES[name]
        limits = [limit for limit in quality.limits if limit.measure == name]
        beyond = np.any([np.zeros(len(quality), bool), *(limit.excess(quality.measures) > 0 for limit in limits)], axis=0)
        measures.append(
            {
                "title": title,
                "unit": unit,
                "meaning": meaning,
                "percentiles": [f"{spread[key]:.4g}" if key in spread else "–" for key in SHOWN_PERCENTILES],
                "without_value": spread.get("none", 0),
                "limits": limits,
                "num_beyond": int(beyond.sum()),
                "histogram": _histogram(title, quality.measures[name], beyond, limits),
            }
        )
    return measures


def _histogram(title: str, values: np.ndarray, beyond: np.ndarray, limits: Sequence[Limit], counted: str = "clips") -> str | None:
    """SVG of the number of clips over a measure, and its limits; None where no clip has a value."""
    from soundmill.drawing import Figure, svg

    finite = np.isfinite(values)
    if not finite.any():
        return None
    figure = Figure(figsize=(3.4, 1.9))
    # Room for the label 1,000,000; measuring the labels would take as long as drawing the figure.
    _draw_histogram(figure.add_axes((0.24, 0.13, 0.71, 0.83)), values[finite & ~beyond], values[finite & beyond], limits, counted)
    return svg(figure, title).replace(INK, "var(--ink)")


def _draw_histogram(axes: Axes, kept: np.ndarray, refused: np.ndarray, limits: Sequence[Limit], counted: str) -> None:
    marks = [sign * limit.value for limit in limits for sign in ((1, -1) if limit.measure in SIGNED else (1,))]
    drawn = np.concatenate([kept, refused, marks])
    low, high = float(drawn.min()), float(drawn.max())
    margin = 0.03 * (high - low) or max(abs(low), 1e-3) * 0.1
    bins = np.linspace(low - margin, high + margin, BARS + 1)
    axes.hist([kept, refused], bins=bins, stacked=True, color=[KEPT, REFUSED], log=True, histtype="stepfilled")
    for mark in marks:
        axes.axvline(mark, color=REFUSED, linewidth=1.3, linestyle=(0, (4, 2)))
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel(counted, color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=8, which="both")
    axes.minorticks_off()
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color(INK)


def _picture(flac: bytes) -> bytes:
    """JPEG of the wave from -1 to 1 above its spectrogram, low frequencies at the bottom."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    from soundmill.audio.flac import decode_mono

    wave = decode_mono(flac)
    wave = np.pad(wave, (0, max(0, PICTURE_COLUMNS - len(wave))))
    edges = np.linspace(0, len(wave), PICTURE_COLUMNS + 1).astype(int)[:-1]
    heights = np.linspace(1, -1, WAVE_ROWS)[:, None]
    zero = np.where(np.arange(WAVE_ROWS)[:, None] == WAVE_ROWS // 2, 0.4, 0.0)
    low, high = (most.reduceat(wave, edges) for most in (np.minimum, np.maximum))
    inside = (heights <= high + 1 / WAVE_ROWS) & (heights >= low - 1 / WAVE_ROWS)
    rows = [np.where(inside, 0.78, zero), np.zeros((3, PICTURE_COLUMNS)), _spectrogram(wave)]
    colours = colormaps["magma"](np.concatenate(rows), bytes=True)
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(colours[..., :3]), format="jpg", pil_kwargs={"quality": 85})
    return buffer.getvalue()


def _spectrogram(wave: np.ndarray) -> np.ndarray:
    """[SPECTRUM_ROWS, PICTURE_COLUMNS] from 0, 80 dB below the maximum, to 1; linear frequency, so that cut-offs are visible."""
    size = 512
    padded = np.pad(wave, size // 2)
    frames = padded[np.linspace(0, len(wave) - 1, PICTURE_COLUMNS).astype(int)[:, None] + np.arange(size)]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2
    rows = np.linspace(0, power.shape[1], SPECTRUM_ROWS + 1).astype(int)
    level = 10 * np.log10(np.maximum.reduceat(power, rows[:-1], axis=1) + 1e-12)
    return np.clip((level - max(level.max(), -40)) / PICTURE_RANGE_DB + 1, 0, 1).T[::-1]
