"""From recordings to clips of one bar: the embedded loops, and folders in which there is none, or one."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmill import manifest, params
from soundmill.audio import flac
from soundmill.corpora import loop_corpus
from stages import corpus, loops, resample, segment
from tests.flows.tiny import DOG
from tests.imports import ROOT
from tests.stages.handling import call, failure, scanned, settle, table, tree

DOCUMENT = params.compose(ROOT / "conf", ["corpus=loops", "loops=one_bar", "corpus.recordings=18", "corpus.valid_fraction=0.4"])
LOOPS = ("--variant", "one_bar", "--corpus", "data/corpus", "--loops", "data/loops/one_bar", "--picture", "data/loops.png")
RATE = 22_050


@pytest.fixture
def folder(project) -> Path:
    """A corpus to come, in a project whose parameters know it."""
    (project / "mine").mkdir()
    document = params.compose(ROOT / "conf", ["corpus=folder", f"corpus.path={project / 'mine'}", "loops=one_bar"])
    settle(project, **document)
    return project / "mine"


def beats(bpm: float, bars: int) -> np.ndarray:
    rng, wave = np.random.default_rng(0), np.zeros(round(bars * 240 / bpm * RATE))
    for beat in range(4 * bars):
        at = round(beat * 60 / bpm * RATE)
        wave[at : at + 2000] += 0.2 * (rng.standard_normal(2000) * np.exp(-np.arange(2000) / 300))[: len(wave) - at]
    return wave


@pytest.mark.slow
def test_the_embedded_loops_become_clips_of_a_bar(project):
    settle(project, **DOCUMENT)
    assert call(corpus, "--corpus", "data/corpus")["recordings"] == 18
    metrics = call(loops, *LOOPS)
    with Path("data/corpus/metadata.csv").open(encoding="utf-8", newline="") as file:
        listed = {row["file_name"]: row for row in csv.DictReader(file)}
    found = [row for path in sorted(Path("data/loops/one_bar/audio").iterdir()) for row in table(path)]
    assert metrics["loops"] == len(found) == 18
    assert all(abs(row["bpm"] / float(listed[row["path"]]["bpm"]) - 1) < 0.01 for row in found)
    planned = {loop.name: loop for loop in loop_corpus.plan(18, 0.4, 0.25, 0)}
    late = [row["path"] for row in found if abs(row["start"] - planned[row["path"]].lead) > 0.03]
    assert late == ["loop_0011.ogg"]  # hi-hats that are louder between the beats
    assert [row["bars"] for row in found] == [planned[row["path"]].bars for row in found]
    assert metrics["misnamed"] == sum(row["hint"] == "wrong" for row in listed.values()) > 0
    assert Path("data/loops.png").read_bytes().startswith(b"\x89PNG")
    for row in found:
        assert flac.decode_mono(row["audio"]["bytes"]).shape == (row["bars"] * 32_000,)
        assert row["stretch"] == pytest.approx(row["bpm"] / 120, rel=1e-4)
    ports = ("--variant", "one_bar", "--corpus", "data/loops/one_bar", "--segments", "data/segments.parquet")
    call(segment, *ports, section="clips")
    clips = call(resample, *ports, "--clips", "data/clips", section="clips")
    assert (clips["clips"], clips["seconds"], clips["quarantined"]) == (metrics["bars"], 2.0 * metrics["bars"], 0)
    before = table("data/corpus/recordings.parquet")
    after = table("data/loops/one_bar/recordings.parquet")
    kept = ("recording_id", "labels", "split", "group", "shard", "path", *manifest.TERMS)
    assert {row["licence"] for row in after} == {"CC0-1.0"}
    assert {str([row[key] for key in kept]) for row in after} == {str([row[key] for key in kept]) for row in before}

    once = tree(Path("data/loops/one_bar"))
    settle(project, 2, **DOCUMENT)
    call(loops, *LOOPS)
    assert tree(Path("data/loops/one_bar")) == once


def test_a_folder_without_loops_is_refused_with_the_commonest_reasons(folder, capsys):
    rng = np.random.default_rng(0)
    soundfile.write(folder / "silence.wav", np.zeros(4 * RATE), RATE)
    soundfile.write(folder / "short.wav", beats(120, 1)[: RATE // 2], RATE)
    for number in range(2):
        soundfile.write(folder / f"noise {number}.wav", 0.1 * rng.standard_normal(4 * RATE), RATE)
    scanned()
    said = failure(capsys, loops, *LOOPS)
    assert "none of the 4 recordings is a loop: 2 no tempo, 1 too short, 1 silent; first: noise 0.wav: no tempo (" in said


def test_a_corpus_of_which_all_is_forgotten_is_refused(folder, capsys):
    soundfile.write(folder / "groove.wav", beats(100, 2), RATE)
    scanned()
    (row,) = table("data/corpus/recordings.parquet")
    entry = DOG | {name: row[name] for name in ("recording_id", "digest")} | {"start": 1.0, "end": 2.0}
    params.write_yaml({"forgotten": [entry]}, Path("forgotten.yaml"))
    said = failure(capsys, loops, *LOOPS, "--forgotten", "forgotten.yaml")
    assert "no recording is left for loops: all are in forgotten.yaml" in said


def test_one_loop_is_enough_and_a_wrong_name_is_told(folder, capsys):
    soundfile.write(folder / "groove 131bpm.wav", beats(100, 2), RATE)
    soundfile.write(folder / "slow 60bpm.wav", beats(60, 1), RATE)
    soundfile.write(folder / "rain.wav", 0.1 * np.random.default_rng(0).standard_normal(4 * RATE), RATE)
    scanned()
    metrics = call(loops, *LOOPS)
    assert (metrics["loops"], metrics["bars"], metrics["misnamed_first"]) == (1, 2, ["groove 131bpm.wav"])
    assert "groove 131bpm.wav: its name says 131 bpm, but it has 100" in capsys.readouterr().out
    refused = {row["path"]: (row["reason"], row["detail"]) for row in table("data/quarantine/loops.parquet")}
    assert refused["slow 60bpm.wav"] == ("stretch", "a bar at 60 bpm would be stretched by 0.5 (tempo by name)")
    assert refused["rain.wav"][0] == "no tempo"


def test_real_loops_have_the_tempi_of_their_lengths(shared, folder):
    """CC0 loops; of one whose name tells nothing, a length of whole bars does. Rooms and rubbed glass are no loops."""
    source = shared / "data/cc0_samples"
    for name in ("loop_amen_full", "loop_tabla", "loop_compus", "ambi_glass_rub", "ambi_lunar_land"):
        (folder / f"{name}.flac").write_bytes((source / f"{name}.flac").read_bytes())
    scanned()
    assert call(loops, *LOOPS)["found_by"] == {"length": 3}
    found = {row["path"]: row["bpm"] for path in Path("data/loops/one_bar/audio").iterdir() for row in table(path)}
    assert found == pytest.approx({"loop_amen_full.flac": 140, "loop_tabla.flac": 89.95, "loop_compus.flac": 148}, rel=1e-3)
