"""Forgetting a recording and a clip of the shrunk demo graph, and what comes out beside a corpus that never had them."""

import contextlib
import os
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile

from flows import locks
from soundmill import forgetting, ledger, manifest, params, shards
from soundmill.audio import fingerprint
from soundmill.corpora import forgotten, inventory
from soundmill.corpora.csv_rows import AUDIOCAPS
from soundmill.errors import UserError
from soundmill.forgetting import listing
from soundmill.holdings import Piece, Project, named
from soundmill.shards import code
from stages import loops, resample, scan, segment
from stages.corpus import CSV_FILES, SYNTHESISED
from tests import graph
from tests.checkouts import dvc
from tests.commands.running import refused, soundmill, works
from tests.imports import ROOT
from tests.prepared import PLAN
from tests.stages.handling import BOUNDS, call, external, settle
from tests.stages.test_loops import LOOPS, beats

# Of one family; the stages of tango run no other code of forgetting, and what it has of the sound must be found.
STAGES = (
    "corpus@synthetic", "segment@default", "resample@default", "duplicates", "quality@default", "splits", "catalog@default",
    "mixup", "spectrogram@ddpm_mel", "spectrogram@tagger", "tagger", "train@ddpm_mel",
    "attribution@ddpm_mel", "generate@ddpm_mel", "evaluate@ddpm_mel",
)  # fmt: skip
SAME = (
    "corpus", "segments", "clips", "duplicates.parquet", "duplicates.html", "quality", "splits.parquet", "catalog", "mixes",
    "mixes.html", "spectrograms/clips/ddpm_mel", "spectrograms/clips/tagger", "tagger", "models/ddpm_mel", "attribution/ddpm_mel",
    "generated/ddpm_mel", "codec/ddpm_mel", "report/ddpm_mel",
)  # fmt: skip
PLACES = ("models", "attribution", "generated", "codec", "report", "spectrograms/clips")
OTHERS = ("audiocaps", "tango", *(f"{place}/tango" for place in PLACES))
RATE = PLAN["sample_rate"]


def run_here(checkout: Path, *stages: str) -> None:
    """Run stages by their commands, in this process: each of its own would import torch anew."""
    document = params.read_yaml(checkout / "params.yaml")
    document["execution"]["workers"] = 1
    (checkout / "params.yaml").unlink()
    params.write_yaml(document, checkout / "params.yaml")
    commands = {name: shlex.split(entry["cmd"]) for name, entry in params.read_yaml(checkout / "dvc.lock")["stages"].items()}
    for name in stages:
        with contextlib.chdir(checkout), pytest.MonkeyPatch.context() as monkeypatch:
            code.code_identity.cache_clear()  # of `__main__`, which is another module now; by it finished shards are reused
            monkeypatch.setattr(sys, "argv", commands[name][3:])  # after `sh stages/python.sh -m`
            runpy.run_module(commands[name][3], run_name="__main__", alter_sys=True)


def outputs(checkout: Path) -> dict[str, bytes]:
    places = [checkout / "data" / name for name in SAME]
    files = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*"))) if path.is_file()]
    return {str(path.relative_to(checkout)): path.read_bytes() for path in files}


def never_had(checkout: Path, recording: str, clip: str) -> None:
    """Make the rest of the graph from a corpus without the recording, and a plan without the clip, both taken out by hand."""
    corpus = checkout / "data/corpus"
    row = pd.read_parquet(corpus / "recordings.parquet").set_index("recording_id").loc[recording]
    (corpus / "audio" / row.path).unlink()
    captions = pd.concat(pd.read_csv(corpus / f"{split}.csv", dtype=str).assign(split=split) for split in ("train", "val", "test"))
    captions = captions[captions.youtube_id != row.group].sort_values("audiocap_id", key=lambda numbers: numbers.astype(int))
    captions["audiocap_id"] = range(1, len(captions) + 1)
    labels = pd.read_csv(corpus / "labels.csv", dtype=str)
    for name, rows in {"labels": labels[labels.youtube_id != row.group], **dict(list(captions.groupby("split")))}.items():
        (corpus / f"{name}.csv").unlink()
        rows.drop(columns="split", errors="ignore").to_csv(corpus / f"{name}.csv", index=False)
    files = inventory.list_files(corpus / "audio")
    files.metadata = {name.encode(): bytes(corpus / name) for name in CSV_FILES}
    tables = AUDIOCAPS.read(files, 3)
    tables.settle("synthetic")
    for row in tables.recordings:
        row |= SYNTHESISED
    for name, schema in (("recordings", manifest.RECORDINGS), ("captions", manifest.CAPTIONS)):
        (corpus / f"{name}.parquet").unlink()
        shards.write_rows(getattr(tables, name), corpus / f"{name}.parquet", schema)
    run_here(checkout, "segment@default")
    plan = checkout / "data/segments/default.parquet"
    rows = [cut for cut in shards.read_rows(plan, manifest.SEGMENTS) if cut["clip_id"] != clip]
    plan.unlink()  # it may be linked to DVC's cache
    shards.write_rows(rows, plan, manifest.SEGMENTS)
    run_here(checkout, *STAGES[2:])


@pytest.mark.slow(minutes=1)
@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
def test_what_is_forgotten_leaves_no_trace(graph_copy, built_graph, tmp_path):
    """One recording and one clip of a mix; in the other checkout both are taken out of the tables by hand."""
    mixes = pd.read_parquet(built_graph / "data/mixes")
    catalog = pd.read_parquet(built_graph / "data/catalog/default.parquet").set_index("clip_id")
    clip = mixes["first"][0]
    recording = catalog.recording_id[mixes["second"][0]]
    path = catalog.source[mixes["second"][0]]
    done = works("forget", f"clip:{clip}", str(path), "--reason", "its owner asks for it", cwd=graph_copy)
    for word in (clip, mixes.clip_id[0], "data/models/ddpm_mel", "data/models/tango", "data/tango/vocoder", "data/tagger"):
        assert word in done.stdout
    entries = forgotten.read(graph_copy / ledger.FILE).entries
    assert [(entry.recording_id, entry.is_whole, entry.copy_of) for entry in entries] == [
        (catalog.recording_id[clip], False, None),
        (recording, True, None),
    ]
    assert all(len(entry.words) for entry in entries)
    before = soundmill("forget", "--check", cwd=graph_copy)
    assert before.returncode == 1
    assert f"data/mixes: {mixes.clip_id[0]}" in before.stdout

    run_here(graph_copy, *STAGES)
    now = pd.read_parquet(graph_copy / "data/mixes")
    assert mixes.clip_id[0] not in set(now.clip_id)
    assert not {clip, *catalog.index[catalog.recording_id == recording]} & {*now["first"], *now["second"]}
    done = dvc(graph_copy, "commit", "--force", *STAGES)
    assert done.returncode == 0, done.stderr
    left = soundmill("forget", "--check", cwd=graph_copy)  # tango has not run again
    assert left.returncode == 1
    of_tango = [f"data/{name}" for name in OTHERS] + ["data/.work/latents-", "data/.work/spectrogram-tango/", "DVC's cache: "]
    store, *held = left.stdout.splitlines()
    assert store.startswith("MLflow: ")
    assert [line for line in held if not line.startswith(tuple(of_tango))] == []
    assert "data/models/tango: trained on" in left.stdout
    assert f"data/audiocaps/audio/{clip}.wav" in left.stdout
    assert "data/tango/latents/clips/" in left.stdout
    for name in OTHERS:
        shutil.rmtree(graph_copy / "data" / name)
    lock = params.read_yaml(graph_copy / "dvc.lock")  # as if tango had been taken out
    lock["stages"] = {name: entry for name, entry in lock["stages"].items() if name in STAGES}
    (graph_copy / "dvc.lock").unlink()
    params.write_yaml(lock, graph_copy / "dvc.lock")
    kept = graph_copy / "mlartifacts/1/run/artifacts/listen"
    kept.mkdir(parents=True)
    shutil.copy(built_graph / f"data/audiocaps/audio/{clip}.wav", kept / f"{clip}-codec.wav")
    shutil.copy(built_graph / f"data/audiocaps/audio/{clip}.wav", kept / "renamed.wav")
    killed = graph_copy / "data/.work/train-ddpm_mel/0123"
    killed.mkdir()
    elsewhere = soundmill("forget", "--check", cwd=graph_copy)
    assert elsewhere.returncode == 1
    places = elsewhere.stdout.splitlines()
    assert any(line.startswith("DVC's cache: ") for line in places)
    assert any(f"listen/{clip}-codec.wav: a sound named after a clip of it" in line for line in places)
    assert any("listen/renamed.wav: sounds like" in line for line in places)
    assert "data/.work/train-ddpm_mel/0123: a stage's scratch directory, not searched" in elsewhere.stderr
    assert "not by fingerprint" in elsewhere.stderr

    after = works("forget", "--erase", "--yes", cwd=graph_copy)
    assert after.stdout.splitlines()[-1] == "no searched place holds forgotten sounds"
    assert not killed.exists()
    assert not list(kept.iterdir())
    at_first, cached = ({path.name for path in (one / ".dvc/cache/files/md5").rglob("*")} for one in (built_graph, graph_copy))
    assert at_first - cached
    quarantined = {
        (row["path"], row["reason"])
        for name in ("corpus", "segment/default")
        for row in pq.read_table(graph_copy / f"data/quarantine/{name}.parquet").to_pylist()
    }
    assert quarantined == {(path, "forgotten"), (catalog.source[clip], "forgotten")}

    other = graph.copy(built_graph, tmp_path / "never had it")
    shutil.rmtree(other / "data/.work")  # nothing is taken over
    never_had(other, recording, clip)
    here, there = outputs(graph_copy), outputs(other)
    assert [name for name in here if there.get(name) != here[name]] == []
    assert set(here) == set(there)


@pytest.fixture(autouse=True)
def _one_worker(monkeypatch) -> None:
    """Fingerprints are made in this process (tests/conftest.py)."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A project of six seconds of noise in a recording, its bytes under another name, a softer lossy copy, and another noise."""
    noise, other = (0.1 * np.random.default_rng(seed).standard_normal(RATE * 6) for seed in (0, 1))
    (tmp_path / "sounds").mkdir()
    soundfile.write(tmp_path / "sounds/a.wav", noise, RATE)
    shutil.copy(tmp_path / "sounds/a.wav", tmp_path / "sounds/renamed.wav")
    soundfile.write(tmp_path / "sounds/lossy.ogg", 0.5 * noise, RATE)
    soundfile.write(tmp_path / "sounds/other.wav", other, RATE)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    ledger.write([], tmp_path / ledger.FILE)
    settle(tmp_path, corpus=external("sounds"), clips={"default": PLAN | {"tail": "keep"}, "hifi": PLAN | {"clip_seconds": 2.0}})
    monkeypatch.chdir(tmp_path)
    make()
    return tmp_path


def make() -> None:
    """The corpus and its clips, of both variants."""
    call(scan, "--name", "scan", "--corpus", "data/corpus", "--forgotten", "forgotten.yaml", section="corpus")
    clips_of(default="data/corpus", hifi="data/corpus")


def clips_of(**variants: str) -> None:
    """The clips of these variants, each of its corpus."""
    for variant, corpus in variants.items():
        ports = ("--variant", variant, "--corpus", corpus, "--segments", f"data/segments/{variant}.parquet")
        call(segment, "--name", f"segment/{variant}", *ports, "--forgotten", "forgotten.yaml", section="clips")
        call(resample, "--name", f"resample/{variant}", *ports, "--clips", f"data/clips/{variant}", section="clips")


def sources(variant: str = "default") -> list[tuple[str, float]]:
    """Path and first second of every clip."""
    rows = pq.read_table(f"data/clips/{variant}").to_pylist()
    return sorted((row["source"], row["start"]) for row in rows)


def cut(variant: str, start: float, source: str | None = None) -> str:
    """The clip of a variant from this second of a recording on."""
    rows = pq.read_table(f"data/clips/{variant}").to_pylist()
    (found,) = [row["clip_id"] for row in rows if row["start"] == start and source in (None, row["source"])]
    return found


def test_copies_are_found_and_left_out_until_that_is_undone(small):
    works("forget", "a.wav", "--reason", "asked for", cwd=small)
    entries = {entry.source: entry for entry in forgotten.read(small / ledger.FILE).entries}
    assert set(entries) == {"a.wav", "renamed.wav", "lossy.ogg"}
    assert all(entry.is_whole for entry in entries.values())
    assert {entry.copy_of for entry in entries.values()} == {None, entries["a.wav"].recording_id}
    assert entries["lossy.ogg"].reason == "a copy of a.wav: asked for"

    again = works("forget", "a.wav", "--reason", "once more", cwd=small)
    assert "already forgotten: a.wav (asked for)" in again.stdout
    assert {entry.source: entry for entry in forgotten.read(small / ledger.FILE).entries} == entries

    make()
    assert {source for source, _ in sources()} == {"other.wav"}
    assert soundmill("forget", "--check", cwd=small).returncode == 0
    shutil.copy("sounds/a.wav", "sounds/under a new name.wav")
    noise, _ = soundfile.read("sounds/a.wav")
    soundfile.write("sounds/later.mp3", 0.8 * noise, RATE)
    make()
    assert {source for source, _ in sources()} == {"other.wav", "later.mp3"}
    later = soundmill("forget", "--check", cwd=small)
    assert later.returncode == 1
    assert "sounds like" in later.stdout
    assert "by fingerprint" in later.stdout
    undone = works("forget", "--undo", "a.wav", cwd=small)
    assert undone.stdout.count("no longer forgotten") == 3
    make()
    assert {source for source, _ in sources()} == {path.name for path in Path("sounds").iterdir()}
    assert "not forgotten" in refused("forget", "--undo", "a.wav", cwd=small)


def test_what_the_terms_refuse_is_shown_and_forgotten(small):
    none = refused("forget", "--refused", "--reason", "their terms", cwd=small)
    assert "data/refused.parquet lists no recording; set corpus.terms" in none
    row = "a.wav,CC BY 4.0,Ann,https://a.org,refused"
    (small / "sounds/licences.csv").write_text(f"glob,licence,creator,source_url,ai_terms\n{row}\n")
    terms = {**BOUNDS["terms"], "ai_refused": "quarantine"}
    settle(small, corpus=external("sounds") | {"terms": terms}, clips={"default": PLAN | {"tail": "keep"}})
    ports = ("--corpus", "data/corpus", "--refused", "data/refused.parquet", "--forgotten", "forgotten.yaml")
    call(scan, "--name", "scan", *ports, section="corpus")
    shown = soundmill("lineage", "a.wav", cwd=small).stdout
    found = "licence=CC-BY-4.0 ai_terms=refused creator=Ann terms_found=licences.csv:2".split()
    for fact in (*found, "refused=use for AI refused"):
        assert fact in shown
    assert "refused=the same file as a.wav" in soundmill("lineage", "renamed.wav", cwd=small).stdout
    assert "licence=unknown ai_terms=unknown" in soundmill("lineage", "other.wav", cwd=small).stdout
    works("forget", "--refused", "--reason", "their terms", cwd=small)
    assert {entry.source for entry in forgotten.read(small / ledger.FILE).entries} == {"a.wav", "renamed.wav", "lossy.ogg"}
    assert soundmill("forget", "--refused", "other.wav", "--reason", "x", cwd=small).returncode == 1


def test_a_clip_takes_every_cut_that_overlaps_it(small):
    clip = cut("default", 5.0, "other.wav")
    assert soundmill("forget", clip, "--reason", "asked for", cwd=small).returncode == 0
    (entry,) = forgotten.read(small / ledger.FILE).entries
    assert (entry.start, entry.end) == (5.0, 6.0)
    make()
    assert [start for source, start in sources() if source == "other.wav"] == [0.0]
    assert [start for source, start in sources("hifi") if source == "other.wav"] == [0.0, 2.0]
    assert len(sources("hifi")) == 3 * 3 + 2
    assert soundmill("forget", "--check", cwd=small).returncode == 0


def test_mistakes_change_nothing(small):
    before = (small / ledger.FILE).read_bytes()
    for words, said in {
        ("othr.wav", "--reason", "x"): "did you mean 'other.wav'",
        ("other.wav",): "--reason",
        ("other.wav", "nobody.wav", "--reason", "x"): "nobody.wav",
        (): "name clips or recordings",
        ("--undo",): "name clips or recordings",
        ("other.wav", "--check", "--erase"): "exclude each other",
        ("--check", "--reason", "x"): "leave it out",
        ("other.wav", "--erase"): "leave out the names",
    }.items():
        assert said in refused("forget", *words, cwd=small)
    assert (small / ledger.FILE).read_bytes() == before
    (small / ledger.FILE).write_text("forgotten: [{recording: x}]\n")
    assert "forgotten.0.recording" in soundmill("forget", "other.wav", "--reason", "x", cwd=small).stderr
    with pytest.raises(SystemExit, match=r"forgotten\.0\.recording"):
        make()


@pytest.fixture
def looped(tmp_path, monkeypatch) -> Path:
    """A project of a loop of four bars of 2.67 s, cut as it is, and by bars that are stretched to 2 s."""
    (tmp_path / "mine").mkdir()
    soundfile.write(tmp_path / "mine/a 90bpm.wav", beats(90, 4), 22_050)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    ledger.write([], tmp_path / ledger.FILE)
    document = params.compose(ROOT / "conf", ["corpus=folder", f"corpus.path={tmp_path / 'mine'}", "loops=one_bar"])
    settle(tmp_path, **document)
    monkeypatch.chdir(tmp_path)
    call(scan, "--name", "scan", "--corpus", "data/corpus", "--forgotten", "forgotten.yaml", section="corpus")
    call(loops, *LOOPS, "--forgotten", "forgotten.yaml")
    clips_of(default="data/corpus", one_bar="data/loops/one_bar")
    return tmp_path


def test_a_clip_of_a_loop_is_forgotten_by_the_seconds_of_its_recording(looped):
    """Bar 4 is from 6 to 8 s of the stretched loop, and from 8 to 10.67 s of the recording."""
    bar = cut("one_bar", 6.0)
    outcome = forgetting.forget(looped, [f"clip:{bar}"], "asked for")
    (entry,) = outcome.added
    assert (entry.start, entry.end) == pytest.approx((8.0, 32 / 3), abs=0.03)
    assert bar in {clip.clip_id for clip in entry.clips}
    seconds = len(entry.words) / fingerprint.FRAMES_PER_SECOND
    assert seconds == pytest.approx(8 / 3, abs=0.5)
    assert [row["start"] for row in outcome.held.clips["default"]] == [5.0]
    assert [row["clip_id"] for row in outcome.held.clips["one_bar"]] == [bar]


def test_a_clip_takes_the_bars_that_hold_it(looped):
    """From 5 s on is some of bar 2, though in the loop that ends at 4 s."""
    outcome = forgetting.forget(looped, [f"clip:{cut('default', 5.0)}"], "asked for")
    assert {row["clip_id"] for row in outcome.held.clips["one_bar"]} == {cut("one_bar", start) for start in (2.0, 4.0, 6.0)}


def test_a_loop_that_no_stage_made_anew_is_found(looped):
    assert forgetting.forget(looped, ["a 90bpm.wav"], "asked for").added
    for left in ("clips", "segments", "corpus"):
        shutil.rmtree(looped / "data" / left)
    assert "data/loops/one_bar/audio/shard-00015.parquet: 1 loops of it" in forgetting.check(looped).found


def test_what_a_recording_repeats_of_a_clip_is_forgotten_too(small):
    noise, other = (0.1 * np.random.default_rng(seed).standard_normal(RATE * 5) for seed in (2, 3))
    soundfile.write("sounds/twice.wav", np.concatenate([noise, other, noise]), RATE)
    make()
    clip = cut("default", 0.0, "twice.wav")
    added = forgetting.forget(small, [f"clip:{clip}"], "asked for").added
    assert (added[0].start, added[0].end) == (0.0, 5.0)
    assert any(entry.start <= 10.0 and entry.end == 15.0 for entry in added)
    make()
    assert [start for source, start in sources() if source == "twice.wav"] == [5.0]
    assert forgetting.check(small).found == []


def test_workspaces_are_looked_at_and_what_cannot_be_searched_is_said(small, monkeypatch):
    shutil.copytree(small / "data", small / "workspaces/bakeoff/data")
    forgetting.forget(small, ["other.wav"], "asked for")
    make()
    found = forgetting.check(small).found
    assert any(sentence.startswith("workspaces/bakeoff/data/clips/default: clip ") for sentence in found)
    with pytest.raises(UserError, match="use --undo there"):
        forgetting.use_again(small / "workspaces/bakeoff", ["other.wav"])
    remedies = ("; delete workspaces/bakeoff, or run it again", "; `soundmill forget --erase` removes it")
    assert all(sentence.startswith("workspaces/bakeoff/") and sentence.endswith(remedies) for sentence in found)
    shutil.rmtree(small / "workspaces/bakeoff")
    damaged = small / "mlartifacts/1/run/artifacts/clips.parquet"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"PAR1, and no more")
    proof = forgetting.check(small)
    assert proof.found == []
    assert "mlartifacts/1/run/artifacts/clips.parquet: cannot be read, so it was not searched" in proof.notes
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    unheard = soundmill("forget", "--check", cwd=small)
    assert "files of runs at http://127.0.0.1:9 were not searched" in unheard.stderr


def test_what_is_said_to_be_a_recording_is_that_whatever_is_in_its_name(small):
    clip = cut("default", 0.0, "other.wav")
    for name in ("at 12:00:other.wav", clip):
        shutil.copy(small / "sounds/a.wav", small / "sounds" / name)
    make()
    (piece,) = Project(small).find("recording:at 12:00:other.wav")
    assert piece.source == "at 12:00:other.wav"
    with pytest.raises(UserError, match=f"clip:{clip}, or recording:{clip} "):
        forgetting.forget(small, [clip], "asked for")


def test_sounds_that_a_bake_off_keeps_are_looked_at(small):
    kept = small / "data/report/bakeoff/runs/tiny-0/generated"
    kept.mkdir(parents=True)
    clip = cut("default", 0.0, "other.wav")
    wave, rate = soundfile.read(small / "sounds/other.wav")
    soundfile.write(kept / f"{clip}.wav", wave[: 5 * rate], rate)
    soundfile.write(kept / "renamed.wav", wave[: 5 * rate], rate)
    assert forgetting.forget(small, ["other.wav"], "asked for").held.files == [str((kept / f"{clip}.wav").relative_to(small))]
    make()
    found = forgetting.check(small).found
    assert len(found) == 2
    assert "a sound named after a clip of it; delete data/report/bakeoff, or run the bake-off again" in found[0]
    assert "renamed.wav: sounds like other.wav" in found[1]


def test_mixes_of_a_forgotten_sound_are_found_in_tables_that_have_only_their_ids(tmp_path):
    traces = listing.Traces.of([], [Piece("cat", "cat.wav")], ["cat_0"])
    kept, cache = tmp_path / "data/.work/mixed/kept", tmp_path / "cache/files/md5/aa"
    rows = [
        (manifest.MIXES, {"clip_id": "mix_1", "first": "dog_0", "second": "cat_0"}),
        (manifest.MIXED_CATALOG, {"clip_id": "mix_2", "recording_id": "dog", manifest.MIXED: ["dog_0", "cat_0"]}),
        *((schema, {"clip_id": f"mix_{n}"}) for schema in (manifest.CLIPS, manifest.SPECTROGRAMS) for n in (1, 2, 3)),
    ]
    for number, (schema, row) in enumerate(rows):
        shards.write_rows([dict.fromkeys(schema.names) | row], kept / f"{number}.parquet", schema)
    shutil.copytree(kept, cache)
    expected = ["0", "1", "2", "3", "5", "6"]  # not mix_3
    assert sorted(path.stem for path, _ in listing.kept(tmp_path, traces)) == expected
    assert sorted(path.stem for path in listing.in_cache(tmp_path / "cache", traces)) == expected


def test_a_path_is_found_however_a_text_writes_it():
    written = ("<td>R&amp;B/it&#39;s &#34;ä&#34;.wav</td>", 'x,"R&B/it\'s ""ä"".wav",y', '["R&B/it\'s \\"\\u00e4\\".wav"]')
    assert all(named([], ['R&B/it\'s "ä".wav']).search(text) for text in written)
    assert [bool(named([], ["dog.wav"]).search(text)) for text in ("see dog.wav.", "see dogs/dog.wav")] == [True, False]


def test_beside_a_pipeline_nothing_is_written(small):
    with locks.only_one(small, 0, print):
        done = soundmill("forget", "other.wav", "--reason", "asked for", "--wait-minutes", "0", cwd=small)
    assert done.returncode == 1
    assert f"is in use by process {os.getpid()}" in done.stderr
    assert forgotten.read(small / ledger.FILE).entries == ()
    assert soundmill("forget", "other.wav", "--reason", "asked for", "--wait-minutes", "0", cwd=small).returncode == 0


def test_a_recording_is_looked_for_whether_it_is_listed_or_not(small, tmp_path_factory):
    held = soundmill("forget", "--check", "a.wav", cwd=small)
    assert held.returncode == 1
    assert "data/clips/default: clip " in held.stdout
    assert soundmill("forget", "--check", cwd=small).returncode == 0  # nothing is listed
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    noise, _ = soundfile.read(small / "sounds/a.wav")
    soundfile.write(elsewhere / "mine.flac", 0.7 * noise, RATE)
    alike = soundmill("forget", "--check", str(elsewhere / "mine.flac"), cwd=small)
    assert alike.returncode == 1
    assert "sounds like" in alike.stdout
    soundfile.write(elsewhere / "new.wav", 0.1 * np.random.default_rng(9).standard_normal(RATE * 5), RATE)
    assert soundmill("forget", "--check", str(elsewhere / "new.wav"), cwd=small).returncode == 0
    assert "nobody.wav: no clip" in soundmill("forget", "--check", "nobody.wav", cwd=small).stderr


def test_what_is_kept_for_the_next_run_is_found_and_erased(small):
    assert soundmill("forget", "other.wav", "--reason", "asked for", cwd=small).returncode == 0
    shutil.copytree(small / "data/.work", small / "before")
    make()
    assert soundmill("forget", "--check", cwd=small).returncode == 0
    shutil.rmtree(small / "data/.work")
    shutil.copytree(small / "before", small / "data/.work")
    found = forgetting.check(small).found
    assert found
    assert all(sentence.startswith("data/.work/") for sentence in found)
    plan = forgetting.find(small)
    assert len(plan.paths) >= len(found)
    forgetting.erase(small, plan)
    assert forgetting.check(small).found == []
    make()  # what was removed is made anew
    assert {source for source, _ in sources()} == {"a.wav", "renamed.wav", "lossy.ogg"}
