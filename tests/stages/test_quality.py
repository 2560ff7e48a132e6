"""Real recordings with bad ones among them, from the scan to the quarantine, the table of duplicates and the page."""

import base64
import contextlib
import io
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr

from soundmill import manifest, tracking
from soundmill.decoding import decode
from stages import duplicates, quality
from tests.prepared import PLAN
from tests.stages import handling

HOSTILE = '<img src=x onerror=alert(1)> & "planted"'  # a folder's name
RULES = {
    "min_seconds": 0.5,
    "min_level_db": -40.0,
    "max_level_db": None,
    "max_silence_ratio": 0.98,
    "max_clipping_ratio": 0.1,
    "max_dc_offset": 0.2,
    "min_bandwidth_hz": 4500.0,
    "min_channel_correlation": -0.95,
}
REPORT = {"examples": 8, "megabytes": 10.0}
PARAMS = {"duplicates": {"threshold": 0.4, "report": REPORT}, "quality": {"rules": RULES, "report": REPORT}}
PORTS = ("--corpus", "data/corpus", "--clips", "data/clips")
OUTPUTS = {
    duplicates: ("--duplicates", "data/duplicates.parquet", "--report", "data/duplicates.html"),
    quality: ("--verdicts", "data/quality.parquet", "--report", "data/quality.html"),
}


def settle(project: Path, corpus: Path, report: dict = REPORT, **rules) -> None:
    """Write params.yaml, with some of the rules changed."""
    sections = {name: section | {"report": report} for name, section in PARAMS.items()}
    sections["quality"]["rules"] = RULES | rules
    handling.settle(project, corpus=handling.external(str(corpus)), clips={"default": PLAN}, **sections)


def call(module) -> dict:
    return handling.call(module, "--name", module.__name__.rpartition(".")[2], *PORTS, *OUTPUTS[module])


@pytest.fixture(scope="module")
def project(shared, tmp_path_factory) -> Path:
    """Clips of six real recordings, one copy of the first, and six that are broken; measured, not yet compared with the rules."""
    project = tmp_path_factory.mktemp("quality")
    corpus = project / "recordings"
    good, bad = corpus / "good", corpus / HOSTILE
    good.mkdir(parents=True)
    bad.mkdir()
    # Of different sounds: what is planted of one and the same would be duplicates.
    paths = [sorted(folder.glob("*.ogg"))[0] for folder in sorted((shared / "data/esc10").iterdir()) if folder.is_dir()]
    for path in paths[:6]:
        shutil.copy(path, good)
    waves = [decode.read_mono(path, 44_100, 60.0) for path in paths]
    waves = [wave / np.abs(wave).max() for wave in waves]
    soundfile.write(bad / "copy.ogg", 0.5 * waves[1], 44_100)
    soundfile.write(bad / "clipped.wav", np.clip(20 * waves[6], -0.9, 0.9), 44_100)
    upsampled = soxr.resample(soxr.resample(waves[7], 44_100, 8_000), 8_000, 16_000)
    soundfile.write(bad / "upsampled.flac", 0.8 * upsampled, 16_000)
    soundfile.write(bad / "offset.wav", 0.3 * waves[8] + 0.3, 44_100)
    mostly = np.zeros(5 * 44_100)
    mostly[:1500] = waves[4][np.argmax(np.abs(waves[4])) :][:1500]
    soundfile.write(bad / "silent.wav", mostly, 44_100)
    soundfile.write(bad / "inverted.wav", np.stack([0.9 * waves[9], -0.8 * waves[9]], axis=1), 44_100)
    soundfile.write(bad / "short.wav", waves[5][:8_000], 44_100)
    settle(project, corpus)
    with contextlib.chdir(project):
        handling.scanned()
        handling.cut_clips()
        call(duplicates)
    return project


@pytest.fixture(scope="module")
def judged(project) -> Path:
    """The same project after the stage."""
    with contextlib.chdir(project):
        call(quality)
    return project


@pytest.fixture
def here(project, tmp_path, monkeypatch) -> Path:
    """A project of one's own with the measured clips."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("corpus", "clips"):
        shutil.copytree(project / "data" / name, tmp_path / "data" / name)
    settle(tmp_path, project / "recordings")
    return tmp_path


class Page(HTMLParser):
    """What a browser would make of the page: its elements, and what they load."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: dict[str, int] = {}
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_broken_clips_are_quarantined_with_value_and_limit_and_good_ones_kept(judged):
    metrics = json.loads((judged / "data/metrics/quality.json").read_text())
    rows = pq.read_table(judged / "data/quarantine/quality.parquet").to_pylist()
    details = {row["path"].rpartition("/")[2]: (row["reason"], row["detail"]) for row in rows}
    assert {name: reason for name, (reason, _) in details.items()} == {
        "clipped.wav": "max_clipping_ratio",
        "upsampled.flac": "min_bandwidth_hz",
        "offset.wav": "max_dc_offset",
        "silent.wav": "max_silence_ratio",
        "inverted.wav": "min_channel_correlation",
        "short.wav": "min_seconds",
    }
    for reason, detail in details.values():
        value, limit = detail.partition(",")[0].partition(" > " if reason.startswith("max_") else " < ")[::2]
        assert limit.startswith(f"{reason} {RULES[reason]:g}")
        assert float(value.split()[-1]) != pytest.approx(RULES[reason])
    assert (metrics["clips"], metrics["kept"], metrics["quarantined"]) == (13, 7, 6)
    assert metrics["rejected_for"] == {name: int(name in dict(details.values())) for name in RULES if RULES[name] is not None}
    assert metrics["measures"]["clipping_ratio"]["p100"] > 0.1
    assert metrics["measures"]["channel_correlation"]["none"] == 12

    table = pq.read_table(judged / "data/quality.parquet")
    assert table.schema.equals(manifest.VERDICTS)
    verdicts = {row["source"].rpartition("/")[2]: row for row in table.to_pylist()}
    assert len(verdicts) == 13
    assert {name for name, row in verdicts.items() if row["rejected"]} == set(details)
    assert verdicts["upsampled.flac"]["quality"]["bandwidth_hz"] == pytest.approx(4000, abs=200)
    assert verdicts["silent.wav"]["quality"]["seconds"] == 5.0
    assert verdicts["short.wav"]["quality"]["seconds"] == pytest.approx(8_000 / 44_100, abs=1e-4)
    assert verdicts["inverted.wav"]["quality"]["channel_correlation"] == -1.0

    pairs = pq.read_table(judged / "data/duplicates.parquet")
    assert pairs.schema.equals(manifest.DUPLICATES)
    source = {row["clip_id"]: row["source"] for row in table.to_pylist()}
    (pair,) = pairs.to_pylist()
    original = sorted(path.name for path in (judged / "recordings/good").iterdir())[1]
    assert {source[pair["a"]], source[pair["b"]]} == {f"{HOSTILE}/copy.ogg", f"good/{original}"}
    metrics = json.loads((judged / "data/metrics/duplicates.json").read_text())
    assert (metrics["pairs"], metrics["within_a_corpus"], metrics["across_corpora"]) == (1, 1, 0)


def test_the_page_shows_and_plays_what_is_wrong_and_other_peoples_names_stay_text(judged):
    text = (judged / "data/quality.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags["audio"] == page.tags["img"] == 6  # a clip of each broken rule
    assert page.tags["svg"] == 8
    assert page.handlers == []
    assert page.tags["script"] == text.count("'sha256-") == 1  # that of the players, which the page's policy names
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert f"{HOSTILE}/clipped.wav" in page.text
    assert "max_clipping_ratio 0.1" in page.text
    sounds = [source for source in page.sources if source.startswith("data:audio/flac")]
    for source in sounds:
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert (len(wave), rate) == (80_000, 16_000)
    assert "<img src=x" not in text


def test_the_page_of_duplicates_shows_and_plays_both_clips_of_a_pair(project):
    text = (project / "data/duplicates.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags["audio"] == page.tags["img"] == 2
    assert (page.handlers, "<img src=x" in text) == ([], False)
    assert "1 pair" in page.text
    original = sorted(path.name for path in (project / "recordings/good").iterdir())[1]
    pair = page.text.partition("same sound")[0]  # the names come before the kind
    assert f"{HOSTILE}/copy.ogg" in pair
    assert f"good/{original}" in pair


def test_the_page_and_the_numbers_are_in_mlflow(here, tracked):
    from mlflow import MlflowClient

    metrics = call(quality)
    assert tracking.sync(here) == (0, "")
    mlflow = MlflowClient(tracking.store(here).uri)
    found = mlflow.search_runs([mlflow.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    (run,) = (run for run in found if run.info.run_name == "quality")
    assert run.info.status == "FINISHED"
    assert (run.data.metrics["kept"], run.data.metrics["rejected_for.min_bandwidth_hz"]) == (metrics["kept"], 1) == (7, 1)
    page = here / "mlartifacts" / run.info.run_id / "artifacts" / "quality.html"
    assert page.read_bytes() == Path("data/quality.html").read_bytes()


def test_the_page_shows_hours_by_licence_and_unknown_ones(here):
    table = pq.read_table("data/corpus/recordings.parquet")
    whose = [HOSTILE if path.startswith("good/") else None for path in table["path"].to_pylist()]
    for name, values in (("licence", whose), ("creator", whose), ("source_url", whose), ("ai_terms", [None] * len(whose))):
        if name in table.column_names:
            table = table.drop_columns(name)
        table = table.append_column(name, pa.array(values, pa.string()))
    os.unlink("data/corpus/recordings.parquet")
    pq.write_table(table, "data/corpus/recordings.parquet")
    call(quality)
    text = Path("data/quality.html").read_text(encoding="utf-8")
    page = Page(text)
    shown = page.text.partition("of the recordings")[2].partition("Measures and rules")[0]
    expected = (
        f"licencehoursshare unknown{6 * 5 / 3600:.2f} {HOSTILE}{6 * 5 / 3600:.2f} terms for AIhoursshare unknown{60 / 3600:.2f}"
    )
    assert " ".join(shown.split()) == expected  # and 0.2 s of the short one
    assert page.tags["meter"] == 3
    assert "<img src=x" not in text


def test_the_page_stays_within_its_bounds(here, project):
    settle(here, project / "recordings", report={"examples": 1, "megabytes": 0.5})
    call(quality)
    page = Page(Path("data/quality.html").read_text(encoding="utf-8"))
    assert page.tags["audio"] == 3  # of 160 kB each, before they are packed
    assert page.text.count("Sound omitted") == 3
    settle(here, project / "recordings", report={"examples": 1, "megabytes": 0.2})
    call(duplicates)
    page = Page(Path("data/duplicates.html").read_text(encoding="utf-8"))
    assert (page.tags["audio"], page.text.count("Sound omitted")) == (1, 1)


def test_rules_that_leave_nothing_are_an_error_that_names_the_rule(here, project):
    settle(here, project / "recordings", min_seconds=9.0)
    with pytest.raises(SystemExit, match=r"all 13 clips break a rule.*quality\.rules\.min_seconds 9 .*median of seconds: 5\.0"):
        call(quality)
    assert not Path("data/quality.parquet").exists()


@pytest.mark.parametrize("change", [{"max_clipping_ratio": 1.5}, {"min_channel_correlation": -2.0}, {"max_dc": 0.1}])
def test_impossible_rules_are_refused(here, project, change):
    settle(here, project / "recordings", **change)
    with pytest.raises(SystemExit, match=rf"quality\.rules\.{next(iter(change))}"):
        call(quality)
