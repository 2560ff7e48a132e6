import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from soundmill import hashing, manifest, shards, stage
from soundmill.audio.flac import decode_mono, encode_flac
from soundmill.audio.levels import mix, mix_ratio, pressure_level
from soundmill.audio.log_mels import iterate_log_mels, read_spec
from soundmill.audio.mel import SpectrogramParams, num_frames
from soundmill.params import read_yaml, write_yaml
from soundmill.training.tagger import load_tagger
from stages import mixup, spectrogram, tagger
from stages.mixup import Candidate, plan_pairs
from tests import prepared
from tests.stages.handling import tree

SHARDS = 3
KINDS = ("bell", "rain", "clicks")


def sound(kind: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(16_000 + 4000 * (seed % 2)) / 16_000
    tone, noise = np.sin(2 * np.pi * rng.uniform(400, 900) * t), rng.normal(0, 0.3, len(t))
    wave = [tone, noise, 3 * noise * (t * 8 % 1 < 0.01)][kind]
    return np.clip((0.1 + 0.9 * (seed % 3 == 0)) * wave, -1, 1).astype(np.float32)


def write_corpus(data: Path, *, labels: bool = True, captions: bool = True, count: int = 24) -> None:
    """Clips of three kinds, two of each recording, unequal in length and level; one is silent, one has no caption."""
    rows = []
    for index in range(count):
        kind = index // 2 % 3
        recording, clip_id = f"rec{index // 2:02d}", f"rec{index // 2:02d}_{index % 2}"
        wave = np.zeros(16_000, np.float32) if index == 6 else sound(kind, index)
        place = {"shard": shards.shard_of(recording, SHARDS), "source": f"{recording}.wav", "start": float(index % 2)}
        split = {7: "valid", 8: "valid", 9: "test"}.get(index // 2, "train")
        texts = [f"A {KINDS[kind]} is heard", f"The sound of {KINDS[kind]}"] if captions and index != 4 else []
        told = {"split": split, "captions": texts, "labels": [KINDS[kind]] if labels else [], "digest": hashing.digest(index)}
        rows.append(prepared.sound(clip_id, wave, recording_id=recording, **place, **told))
    prepared.write_sounds(rows, data / "clips", data / "catalog.parquet")


@pytest.fixture
def project(tmp_path, root, monkeypatch) -> Path:
    """A project with the real sections of params.yaml, the tagger's shrunk, and a small corpus."""
    monkeypatch.chdir(root)
    document = read_yaml(root / "params.yaml")
    sections = {name: document[name] for name in ("execution", "mixup", "spectrogram", "tagger")}
    sections["execution"] = prepared.execution()
    sections["tagger"] |= {"width": 4, "embedding_size": 8, "epochs": 6, "batch_size": 8, "crop_seconds": 1.0, "threads": 1}
    write_yaml(sections, tmp_path / "params.yaml")
    write_corpus(tmp_path / "data")
    return tmp_path


def arguments(project: Path, name: str) -> list[str]:
    data = project / "data"
    paths = {
        "mixup": {"clips": "clips", "catalog": "catalog.parquet", "mixes": "mixes", "picture": "mixup.png", "report": "mixes.html"},
        "spectrogram": {"audio": "clips", "spectrograms": "spectrograms/clips/tagger"},
        "tagger": {"mels": "spectrograms/clips/tagger", "catalog": "catalog.parquet", "tagger": "tagger", "curves": "tagger.csv"},
    }[name]
    argv = [word for port, path in paths.items() for word in (f"--{port}", str(data / path))]
    argv += ["--metrics", str(data / f"{name}.json"), "--params", str(project / "params.yaml")]
    return argv + (["--variant", "tagger", "--name", f"{name}/tagger"] if name == "spectrogram" else [])


def make(project: Path, name: str) -> dict:
    stage.main({"mixup": mixup, "spectrogram": spectrogram, "tagger": tagger}[name].run, name, arguments(project, name))
    return json.loads((project / "data" / f"{name}.json").read_text())


def rows_of(project: Path, name: str) -> dict[str, dict]:
    """Of the directory `clips` or `mixes`."""
    schema = manifest.MIXES if name == "mixes" else manifest.CLIPS
    paths = shards.shard_paths(project / "data" / name)
    return {row["clip_id"]: row for path in paths for row in shards.read_rows(path, schema)}


def waves_of(project: Path) -> dict[str, np.ndarray]:
    return {name: decode_mono(row["audio"]["bytes"]) for name, row in rows_of(project, "clips").items()}


def test_mixes_are_of_the_training_split_at_equal_pressure(project):
    make(project, "mixup")
    fewer = {name: row["digest"] for name, row in rows_of(project, "mixes").items()}
    prepared.edit_params(project, "mixup", ratio=2.0)
    metrics = make(project, "mixup")
    mixes, waves = rows_of(project, "mixes"), waves_of(project)
    catalog = {row["clip_id"]: row for row in pq.read_table(project / "data/catalog.parquet").to_pylist()}
    assert metrics["training_clips"] == 18
    assert metrics["without_caption"] == 1
    assert metrics["mixes"] == len(mixes) == 34
    assert metrics["missing_mixes"] == 0
    assert fewer == {name: mixes[name]["digest"] for name in fewer}  # so that nothing after them is made again
    scaled = 0
    for row in mixes.values():
        first, second = catalog[row["first"]], catalog[row["second"]]
        assert first["split"] == second["split"] == "train"
        assert first["recording_id"] != second["recording_id"]
        assert row["labels"] == sorted({*first["labels"], *second["labels"]})
        assert len(row["labels"]) == 2
        assert row["caption"] in {f"{a} and {b[0].lower()}{b[1:]}" for a in first["captions"] for b in second["captions"]}
        a, b = waves[row["first"]], waves[row["second"]]
        assert row["level_first"] == pressure_level(a, 16_000)
        assert row["ratio"] == mix_ratio(row["level_first"], row["level_second"])
        expected, found = mix(a, b, row["ratio"]), decode_mono(row["audio"]["bytes"])
        scaled += np.abs(expected).max() > 1
        expected *= min(1, 32767 / 32768 / np.abs(expected).max())
        assert row["num_samples"] == len(found) == max(len(a), len(b))
        np.testing.assert_allclose(found, expected, atol=2 / 32768)
        assert row["audio"]["path"] == f"{row['clip_id']}.flac"
    assert metrics["scaled_down"] == scaled > 0


def test_random_pairing_draws_the_level_difference_and_another_seed_draws_others(project):
    """Uniformly from -5 to 20 dB; its spread is then that of a mean of 7.5 and a deviation of 25/√12 dB."""
    prepared.edit_params(project, "mixup", pairing="random", ratio=6.0)
    metrics = make(project, "mixup")
    before = rows_of(project, "mixes")
    drawn = [row["level_first"] - row["level_second"] + 20 * np.log10(row["ratio"] / (1 - row["ratio"])) for row in before.values()]
    assert -5 < min(drawn) < -3 < 18 < max(drawn) < 20
    assert metrics["level_difference_after"]["mean"] == pytest.approx(np.mean(drawn), abs=1e-3) == pytest.approx(7.5, abs=2)
    assert metrics["level_difference_after"]["deviation"] == pytest.approx(25 / 12**0.5, abs=1)
    prepared.edit_params(project, "mixup", seed=1)
    make(project, "mixup")
    assert not set(before) & set(rows_of(project, "mixes"))


@pytest.mark.parametrize("pairing", ["pressure", "fixed"])
def test_the_page_plays_mixes_and_shows_how_they_are_spread(project, pairing):
    prepared.edit_params(project, "mixup", pairing=pairing)
    metrics = make(project, "mixup")
    rows = rows_of(project, "mixes").values()
    differences = np.array([row["level_first"] - row["level_second"] for row in rows])
    spread = {"mean": differences.mean(), "deviation": differences.std()}
    assert metrics["level_difference_before"] == pytest.approx(spread, abs=1e-4)
    equal, half = pytest.approx({"mean": 0, "deviation": 0}, abs=1e-4), {"mean": 0.5, "deviation": 0.0}
    assert (metrics["level_difference_after"] == equal) == (pairing == "pressure")
    assert (metrics["ratio"] == half) == (pairing == "fixed")
    text = (project / "data/mixes.html").read_text()
    assert text.count("<audio ") == 3 * mixup.EXAMPLES
    row = next(row for row in rows if f"<code>{row['clip_id']}</code>" in text)
    assert all(f"{row[role]}, {row[f'level_{role}']:.1f} dB" in text for role in ("first", "second"))
    assert base64.b64encode((project / "data/mixup.png").read_bytes()).decode() in text
    assert np.asarray(Image.open(project / "data/mixup.png").convert("L")).std() > 10


@pytest.mark.parametrize("why", ["none", "ratio", "captions", "one recording"])
def test_no_mixes_is_a_valid_result(project, capsys, why):
    if why == "none":
        prepared.edit_params(project, "mixup", pairing="none")
    elif why == "ratio":
        prepared.edit_params(project, "mixup", ratio=0.0)
    elif why == "captions":
        write_corpus(project / "data", captions=False)
    else:
        write_corpus(project / "data", count=2)
    metrics = make(project, "mixup")
    assert metrics["mixes"] == 0
    assert ("no caption" in capsys.readouterr().out) == (why == "captions")
    assert metrics["missing_mixes"] == (1 if why == "one recording" else 0)


def test_spectrograms_of_every_clip_with_their_spec(project):
    metrics = make(project, "spectrogram")
    spec = SpectrogramParams.model_validate(read_yaml(project / "params.yaml")["spectrogram"]["tagger"]).spec
    found = dict(iterate_log_mels(project / "data/spectrograms/clips/tagger"))
    lengths = {row["clip_id"]: row["num_samples"] for row in rows_of(project, "clips").values()}
    assert read_spec(project / "data/spectrograms/clips/tagger") == spec
    assert found.keys() == lengths.keys()
    assert metrics == {"clips": len(found), "frames": sum(values.shape[1] for values in found.values()), "bands": 64}
    for clip_id, values in found.items():
        assert values.shape == (64, num_frames(spec, lengths[clip_id]))
        assert np.isfinite(values).all()
    assert np.allclose(found["rec03_0"], np.log(spec.floor), atol=0.02)  # the silent one


def test_another_rate_is_named(project):
    document = read_yaml(project / "params.yaml")
    document["spectrogram"]["tagger"]["sample_rate"] = 22_050
    write_yaml(document, project / "params.yaml")
    with pytest.raises(SystemExit, match=r"sample_rate is 22050, but .*clip 'rec00_0' has 16000"):
        make(project, "spectrogram")


def test_a_changed_corpus_gives_the_bytes_of_one_made_afresh(project, tmp_path_factory):
    """Clips added, taken away, changed; with other numbers of workers, and after a stage was killed."""
    write_corpus(project / "data", count=18)
    for name in ("mixup", "spectrogram"):
        make(project, name)
    before = rows_of(project, "mixes")
    write_corpus(project / "data", count=24)
    for path in sorted((project / "data/clips").iterdir())[:2]:
        rows = list(shards.read_rows(path, manifest.CLIPS))
        rows[0]["audio"]["bytes"] = encode_flac(sound(1, 99), 16_000)
        rows[0]["digest"] = "changed"
        shards.write_rows(rows[:-1], path, manifest.CLIPS)
    left = {row["clip_id"] for path in (project / "data/clips").iterdir() for row in shards.read_rows(path, manifest.CLIPS)}
    catalog = [row for row in pq.read_table(project / "data/catalog.parquet").to_pylist() if row["clip_id"] in left]
    shards.write_rows(catalog, project / "data/catalog.parquet", manifest.CATALOG)
    # What a killed run leaves: half an attempt.
    for kept in (project / "data/.work").glob("*/kept/*/*"):
        (kept / f"{shards.shard_name(0)}.attempt-x").mkdir()
    fresh = tmp_path_factory.mktemp("fresh")
    shutil.copytree(project / "data/clips", fresh / "data/clips")
    for path in ("params.yaml", "data/catalog.parquet"):
        shutil.copy(project / path, fresh / path)
    prepared.edit_params(project, "execution", workers=2)
    for name in ("mixup", "spectrogram"):
        assert make(project, name) == make(fresh, name)
    assert tree(project / "data") == tree(fresh / "data")
    assert before.keys() & rows_of(project, "mixes").keys()


def test_what_did_not_change_is_not_made_again(project):
    """Told by sound that changed behind the back of its digest, which no stage does."""
    make(project, "spectrogram")
    first = tree(project / "data/spectrograms")
    for path in (project / "data/clips").iterdir():
        rows = [{**row, "audio": {"bytes": b"no sound", "path": ""}} for row in shards.read_rows(path, manifest.CLIPS)]
        shards.write_rows(rows, path, manifest.CLIPS)
    make(project, "spectrogram")
    assert tree(project / "data/spectrograms") == first
    document = read_yaml(project / "params.yaml")
    document["spectrogram"]["tagger"]["n_mels"] = 32
    write_yaml(document, project / "params.yaml")
    with pytest.raises(SystemExit):  # other parameters: nothing of the kind is left
        make(project, "spectrogram")


@pytest.mark.parametrize(
    ("labels", "captions", "targets"), [(True, True, "labels"), (False, True, "caption words"), (False, False, "clusters")]
)
def test_tagger_learns_what_the_corpus_tells(project, capsys, labels, captions, targets):
    write_corpus(project / "data", labels=labels, captions=captions)
    make(project, "spectrogram")
    metrics = make(project, "tagger")
    said = capsys.readouterr().out
    model = load_tagger(project / "data/tagger")
    assert metrics["targets"] == model.targets == targets
    assert (targets in said) == (targets != "labels")
    assert metrics["classes"] == len(model.labels)
    if targets != "clusters":
        assert model.labels == sorted(KINDS)
    assert metrics["clips"]["train"] + metrics["clips"]["valid"] + metrics["clips"]["test"] + metrics["without_target"] == 24
    assert set(metrics["valid"]) == {"loss", "accuracy", "mean_average_precision"}
    curve = (project / "data/tagger.csv").read_text().splitlines()
    assert curve[0] == "step,loss/train,loss/valid,accuracy/valid"
    assert len(curve) == 7
    embeddings, logits = model.embed(list(waves_of(project).values()))
    assert all(np.isfinite(part).all() for part in [*embeddings, logits])


def test_two_clips_without_a_word_still_make_a_tagger_and_a_catalog_that_does_not_fit_is_named(project):
    write_corpus(project / "data", labels=False, captions=False, count=2)
    make(project, "spectrogram")
    metrics = make(project, "tagger")
    assert (metrics["targets"], metrics["classes"], "valid" in metrics) == ("clusters", 1, False)
    write_corpus(project / "data")
    make(project, "spectrogram")
    rows = pq.read_table(project / "data/catalog.parquet").to_pylist()
    shards.write_rows([*rows, {**rows[0], "clip_id": "stranger"}], project / "data/catalog.parquet", manifest.CATALOG)
    with pytest.raises(SystemExit, match="'stranger'"):
        make(project, "tagger")
    with pytest.raises(SystemExit, match="'stranger'"):
        prepared.edit_params(project, "mixup", ratio=20.0)
        make(project, "mixup")


def candidates(count: int, kinds: int = 3, per_recording: int = 2) -> list[Candidate]:
    return [
        Candidate(f"clip{i:03d}", f"rec{i // per_recording}", frozenset({f"kind{i // per_recording % kinds}"}))
        for i in range(count)
    ]


@given(st.integers(2, 40), st.integers(0, 60), st.integers(0, 5), st.randoms())
def test_pairs_are_of_two_recordings_never_twice_and_independent_of_order(count, limit, seed, random):
    some = candidates(count)
    pairs = plan_pairs(some, limit, seed)
    assert len(pairs) <= limit
    assert all(a.recording_id != b.recording_id for a, b in pairs)
    assert len({frozenset((a.clip_id, b.clip_id)) for a, b in pairs}) == len(pairs)
    shuffled = list(some)
    random.shuffle(shuffled)
    assert plan_pairs(shuffled, limit, seed) == pairs


def test_pairs_are_of_different_kinds_while_there_are_any():
    pairs = plan_pairs(candidates(60), 120, seed=0)
    assert len(pairs) == 120
    assert not any(a.kinds & b.kinds for a, b in pairs)
    first = [a.clip_id for a, _ in pairs]
    assert {first.count(one) for one in set(first)} == {2}
    assert len(plan_pairs(candidates(8, kinds=1), 4, seed=0)) == 4  # one kind only: better the same than none


def test_partners_of_any_kind_are_drawn_evenly():
    """Twenty mixes a clip, as TANGO's 40 epochs take: every clip is also the second of about twenty."""
    some = [Candidate(f"clip{index:03d}", f"rec{index}", frozenset()) for index in range(200)]
    pairs = plan_pairs(some, 4000, seed=0)
    assert len(pairs) == 4000
    second = [sum(b.clip_id == one.clip_id for _, b in pairs) for one in some]
    assert min(second) >= 5
    assert max(second) <= 45


def test_few_clips_make_the_pairs_there_are():
    assert plan_pairs([], 5, 0) == []
    assert plan_pairs(candidates(2, per_recording=2), 5, 0) == []
    assert len(plan_pairs(candidates(2, per_recording=1), 5, 0)) == 1


def test_one_more_clip_changes_few_pairs():
    old = {(a.clip_id, b.clip_id) for a, b in plan_pairs(candidates(200, per_recording=1), 100, seed=0)}
    new = {(a.clip_id, b.clip_id) for a, b in plan_pairs(candidates(201, per_recording=1), 100, seed=0)}
    assert len(old & new) >= 95
