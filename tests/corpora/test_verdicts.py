"""Rules held against measures whose verdict is known, over shards written for it."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill import manifest, shards
from soundmill.audio.flac import encode_flac
from soundmill.corpora import clip_pages
from soundmill.corpora.clip_pages import MEASURES, ClipQuality, Limit, apply_rules
from soundmill.errors import UserError
from tests import prepared

GOOD = {"seconds": 5.0, "peak": 0.5, "level_db": 40.0, "silence_ratio": 0.1, "clipping_ratio": 0.0, "dc_offset": 0.0}
GOOD |= {"bandwidth_hz": 7900.0, "channel_correlation": None}
SILENCE = np.zeros(800)
VALUES = {"min_level_db": -40.0, "max_clipping_ratio": 0.1, "max_dc_offset": 0.2, "min_channel_correlation": -0.95}
LIMITS = [Limit(name, value) for name, value in VALUES.items()]


def write_clips(directory: Path, *by_shard: list[dict | None]) -> Path:
    """Shards of clips `0`, `1`, … with these measures (what is not given is good); None: never measured."""
    number = 0
    for index, measured in enumerate(by_shard):
        rows = []
        for changes in measured:
            quality = None if changes is None else GOOD | changes
            told = {"recording_id": f"r{number}", "source": f"sound {number}.wav", "digest": str(number)}
            rows.append(prepared.sound(str(number), SILENCE, quality=quality, **told))
            number += 1
        prepared.write_rows(rows, directory / shards.shard_name(index), manifest.CLIPS)
    return directory


def verdicts_of(tmp_path: Path, *by_shard: list[dict | None], limits: list[Limit] = LIMITS) -> tuple[ClipQuality, list, list]:
    clips = write_clips(tmp_path / "clips", *by_shard)
    recordings = pa.table({"recording_id": [f"r{number}" for number in range(100)], "corpus": ["even", "odd"] * 50})
    quality, rejected = apply_rules(clips, recordings, limits, tmp_path / "verdicts.parquet")
    table = pq.read_table(tmp_path / "verdicts.parquet")
    assert table.schema.equals(manifest.VERDICTS)
    return quality, rejected, table.to_pylist()


def test_every_clip_has_a_verdict_and_the_rejected_a_reason(tmp_path):
    quality, rejected, rows = verdicts_of(
        tmp_path,
        [{}, {"clipping_ratio": 0.31}, {"dc_offset": -0.25, "clipping_ratio": 0.1}],
        [{"level_db": None}, {"channel_correlation": -1.0, "dc_offset": 0.5}, {"channel_correlation": -0.95}],
    )
    assert [row["rejected"] for row in rows] == [
        None, "max_clipping_ratio", "max_dc_offset", "min_level_db", "max_dc_offset", None,
    ]  # fmt: skip
    assert rows[4]["quality"] == GOOD | {"channel_correlation": -1.0, "dc_offset": 0.5}
    assert rejected == [
        {"path": "sound 1.wav", "reason": "max_clipping_ratio", "detail": "clipping_ratio 0.31 > max_clipping_ratio 0.1, clip 1"},
        {"path": "sound 2.wav", "reason": "max_dc_offset", "detail": "|dc_offset| 0.25 > max_dc_offset 0.2, clip 2"},
        {"path": "sound 3.wav", "reason": "min_level_db", "detail": "level_db of digital silence < min_level_db -40, clip 3"},
        {
            "path": "sound 4.wav",
            "reason": "max_dc_offset",
            "detail": "|dc_offset| 0.5 > max_dc_offset 0.2; channel_correlation -1 < min_channel_correlation -0.95, clip 4",
        },
    ]
    assert quality.broken() == {"min_level_db": 1, "max_clipping_ratio": 1, "max_dc_offset": 2, "min_channel_correlation": 1}
    assert quality.rejected_for() == {"min_level_db": 1, "max_clipping_ratio": 1, "max_dc_offset": 2, "min_channel_correlation": 0}
    assert [quality.corpora[number] for number in quality.corpus] == ["even", "odd"] * 3


def test_the_spread_and_the_worst_are_of_all_shards_together(tmp_path):
    ratios = [0.2, 0.0, 0.9, 0.4, 0.05, 0.9]
    measured = [{"clipping_ratio": ratio} for ratio in ratios]
    quality, _, _ = verdicts_of(tmp_path, measured[:2], measured[2:])
    assert len(quality) == 6
    spread = quality.spread()
    assert spread["clipping_ratio"]["p50"] == 0.3
    assert (spread["clipping_ratio"]["p0"], spread["clipping_ratio"]["p100"]) == (0.0, 0.9)
    assert spread["channel_correlation"] == {"none": 6}
    assert quality.worst(LIMITS[1], 3) == [2, 5, 3]
    assert quality.worst(LIMITS[1], 99) == [2, 5, 3, 0]
    assert [(path.name, row) for path, row in quality.places([0, 1, 2, 5])] == [
        ("shard-00000.parquet", 0), ("shard-00000.parquet", 1), ("shard-00001.parquet", 0), ("shard-00001.parquet", 3),
    ]  # fmt: skip


def test_verdicts_are_the_same_however_many_clips_are_judged_at_once(tmp_path, monkeypatch):
    by_shard = [[{}, {"clipping_ratio": 0.31}], [], [{"dc_offset": -0.25}], [{"level_db": None}, {}]]
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    quality, rejected, rows = verdicts_of(tmp_path / "one", *by_shard)
    monkeypatch.setattr(clip_pages, "CLIPS_AT_ONCE", 1)
    again, rejected_again, rows_again = verdicts_of(tmp_path / "other", *by_shard)
    assert (rejected_again, rows_again, again.starts) == (rejected, rows, quality.starts)
    assert (again.spread(), again.broken()) == (quality.spread(), quality.broken())
    assert again.rejected.tolist() == quality.rejected.tolist()
    assert quality.starts == [0, 2, 2, 3, 5]
    names = [path.name for path, _ in quality.places(np.arange(5))]
    assert names == [shards.shard_name(index) for index in (0, 0, 2, 3, 3)]
    assert [row for _, row in quality.places(np.arange(5))] == [0, 1, 0, 0, 1]


def test_without_rules_nothing_is_rejected(tmp_path):
    quality, rejected, rows = verdicts_of(tmp_path, [{"level_db": None}, {"clipping_ratio": 1.0}], limits=[])
    assert rejected == []
    assert [row["rejected"] for row in rows] == [None, None]
    assert quality.broken() == {}


def test_clips_that_were_never_measured_are_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"clips without measures \(first: 1\).*dvc repro -f resample"):
        verdicts_of(tmp_path, [{}, None])


@given(
    st.sampled_from(MEASURES),
    st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.floats(-1e3, 1e3),
    st.sampled_from(["min", "max"]),
)
def test_a_limit_is_broken_by_what_lies_beyond_it_and_by_nothing_else(measure, values, value, side):
    limit = Limit(f"{side}_{measure}", value)
    measured = np.array([math.nan if one is None else one for one in values])
    broken = limit.excess({measure: measured}) > 0
    for one, hit in zip(values, broken, strict=True):
        if one is None:
            assert hit == (measure == "level_db" and side == "min")  # digital silence is below every level
            continue
        one = abs(one) if measure == "dc_offset" else one
        assert hit == (one < value if side == "min" else one > value)


def test_the_sound_of_a_page_counts_all_channels(monkeypatch):
    stereo = {"num_samples": 16_000, "audio": {"bytes": encode_flac(np.zeros((2, 16_000), np.float32), 16_000)}}
    monkeypatch.setattr(clip_pages, "_rows", lambda places, columns: dict.fromkeys(places, stereo))
    shown = clip_pages._read([(Path("a"), 0), (Path("a"), 1)], clip_pages.ReportParams(examples=2, megabytes=0.1))
    assert [row["flac"] is None for row in shown.values()] == [False, True]
