"""The protocol: who is compared with whom, known scores of known embeddings, and what is published of them."""

from __future__ import annotations

import numpy as np
import pytest

from soundmill.errors import UserError
from soundmill.evaluation import cache, features, protocol
from soundmill.evaluation.protocol import Clip, choose_sets
from soundmill.evaluation.quality import Quality

LABELS = ("bark", "rain", "bell")


def catalog() -> list[Clip]:
    """90 clips of 45 recordings in 3 classes: 60 train, 12 valid, 18 test."""
    clips = []
    for index in range(90):
        split = "train" if index < 60 else "valid" if index < 72 else "test"
        label = LABELS[(index // 2) % 3]
        clips.append(Clip(f"clip{index:02d}", f"recording{index // 2}", 0, split, (label,), (f"a {label}",)))
    return clips


def ids(split: str) -> list[str]:
    return [clip.clip_id for clip in catalog() if clip.split == split]


def test_sets_against_the_test_split():
    clips = {clip.clip_id: clip for clip in catalog()}
    sets = choose_sets(catalog(), ids("test")[:9], ids("valid"), "test", 1000, 0)
    assert sets.reference == tuple(ids("test"))
    assert len(sets.floor) == len(set(sets.floor)) == 9  # as many as generated: equal bias
    assert all(clips[clip_id].split == "train" for clip_id in sets.floor)
    assert sets.floor_reference == sets.reference
    assert len(sets.codec) == 9
    assert set(sets.codec) < set(ids("valid"))
    assert [name for name, _ in sets.partners] == list(sets.generated)
    assert all(clips[name].labels == clips[other].labels for name, other in sets.partners)
    assert len({other for _, other in sets.partners}) == 9
    assert len(sets.probe) == 90
    assert dict(sets.asked) == {name: clips[name].labels[0] for name in sets.generated}
    assert sets.real() >= {*sets.reference, *sets.floor, *sets.codec}


def test_sets_against_all_clips_keep_kin_apart():
    clips = {clip.clip_id: clip for clip in catalog()}
    sets = choose_sets(catalog(), ids("test"), ids("valid"), "all", 1000, 0)
    assert len(sets.reference) == 90
    assert sets.floor == tuple(ids("test"))
    assert {clips[clip_id].split for clip_id in sets.floor_reference} == {"train", "valid"}
    assert {clips[clip_id].split for clip_id in sets.codec_reference} == {"train", "test"}


def test_a_reference_of_one_split_loses_the_recordings_of_the_codec_clips():
    clips = {clip.clip_id: clip for clip in catalog()}
    sets = choose_sets(catalog(), ids("test"), ids("test")[:5], "test", 1000, 0)
    recordings = {clips[clip_id].recording_id for clip_id in sets.codec}
    assert sets.codec_reference
    assert recordings.isdisjoint(clips[clip_id].recording_id for clip_id in sets.codec_reference)


def test_sets_depend_on_ids_and_seed_alone():
    random = np.random.default_rng(0)
    first = choose_sets(catalog(), ids("test")[:7], ids("valid"), "test", 40, 3)
    shuffled = sorted([catalog()[i] for i in random.permutation(90)], key=lambda clip: clip.clip_id)
    assert choose_sets(shuffled, ids("test")[:7][::-1], ids("valid")[::-1], "test", 40, 3) == first
    other = choose_sets(catalog(), ids("test")[:7], ids("valid"), "test", 40, 4)
    assert other.floor != first.floor
    assert len(first.probe) <= 40


def test_ids_without_a_real_clip_are_named():
    with pytest.raises(UserError, match="generated nobody_1: no real clip"):
        choose_sets(catalog(), [*ids("test"), "nobody_1"], ids("valid"), "test", 0, 0)
    with pytest.raises(UserError, match="generated clip00: no real clip"):  # a training clip is none of the reference
        choose_sets(catalog(), [*ids("test"), "clip00"], ids("valid"), "test", 0, 0)
    with pytest.raises(UserError, match="codec nobody_1"):
        choose_sets(catalog(), ids("test"), [*ids("valid"), "nobody_1"], "test", 0, 0)
    with pytest.raises(UserError, match="1 generated sounds; at least 2"):
        choose_sets(catalog(), ids("test")[:1], ids("valid"), "test", 0, 0)
    with pytest.raises(UserError, match=r"evaluate\.reference: all"):
        choose_sets([clip for clip in catalog() if clip.split != "test"], ["a", "b"], ids("valid"), "test", 0, 0)


def test_without_single_labels_there_is_no_probe_and_no_floor_of_pairs():
    unlabelled = [Clip(clip.clip_id, clip.recording_id, 0, clip.split, (), clip.captions) for clip in catalog()]
    sets = choose_sets(unlabelled, ids("test"), ids("valid"), "test", 1000, 0)
    assert sets.probe == sets.asked == sets.partners == ()
    assert len(sets.floor) == len(sets.generated)
    assert choose_sets(catalog(), ids("test"), ids("valid"), "test", 0, 0).probe == ()


def heard(tmp_path, role: str, clip_ids: list[str], offset: float, seed: int) -> features.View:
    random = np.random.default_rng(seed)
    labels = {clip.clip_id: LABELS.index(clip.labels[0]) for clip in catalog()}
    rows = []
    for name in clip_ids:
        frames = (random.standard_normal((4, 6)) * 0.3 + 3 * np.eye(6)[labels[name]] + offset).astype(np.float32)
        rows.append(cache.Embedding(name, Quality(16_000, False, False, name), 16_000, frames, frames.mean(axis=0)))
    cache.add(tmp_path / role, rows)
    return features.View(tmp_path / role, {name: name for name in clip_ids})


@pytest.fixture
def library(tmp_path):
    roles = {
        "real": ([clip.clip_id for clip in catalog()], 0.0),
        "generated": (ids("test"), 1.0),
        "codec": (ids("valid"), 0.2),
        "silence": (ids("test"), 5.0),
        "noise": (ids("test"), 9.0),
    }
    views = {
        ("tagger", role): heard(tmp_path, role, names, offset, seed) for seed, (role, (names, offset)) in enumerate(roles.items())
    }
    facts = {role: {name: Quality(16000, False, False, f"{role}{name}") for name in names} for role, (names, _) in roles.items()}
    return features.Library(views, facts)


def test_scores_of_known_embeddings(library, tmp_path):
    sets = choose_sets(catalog(), ids("test"), ids("valid"), "test", 1000, 0)
    results = {
        workers: protocol.score(library, ["tagger"], sets, 60, 0, tmp_path / f"scores{workers}", workers, lambda n: None)
        for workers in (1, 2)
    }
    assert results[1] == results[2]
    found = results[1]["tagger"]
    ruler = found["ruler"]
    assert found["fad"]["value"] == pytest.approx(6.0, abs=0.5)  # shifted by 1 in 6 dimensions, covariance alike
    assert found["fad"]["low"] < found["fad"]["value"] < found["fad"]["high"]
    assert 0 < ruler["fad"]["floor"] < 0.3
    assert ruler["fad"]["floor"] < ruler["fad"]["codec"] < found["fad"]["value"] < ruler["fad"]["silence"] < ruler["fad"]["noise"]
    assert ruler["fad"]["codec_floor"] < ruler["fad"]["codec"]
    assert found["kl"]["low"] <= found["kl"]["value"] <= found["kl"]["high"]
    assert set(found["kl_of"]) == set(sets.generated)
    assert found["kl"]["value"] == pytest.approx(np.mean(list(found["kl_of"].values())))
    assert set(ruler["kl"]) == {"floor", "codec", "silence", "noise"}
    assert found["label_accuracy"]["value"] == 1
    assert ruler["label_accuracy"] == {"real": 1.0, "chance": pytest.approx(1 / 3), "codec": 1.0}
    assert found["embeddings"] == {"generated": 72, "reference": 72}

    metrics = protocol.publish(results[1], sets, library, {"tagger": "abc"}, {"yamnet": "no file"}, "test")
    assert metrics["protocol"] == "soundmill-1"
    assert metrics["fad_tagger"] == pytest.approx(found["fad"]["value"], rel=1e-5)
    assert {"fad_tagger_low", "fad_tagger_high", "kl_tagger", "label_accuracy_tagger"} < set(metrics)
    assert metrics["embedders"]["tagger"]["weights"] == "abc"
    assert metrics["embedders"]["yamnet"] == "unavailable: no file"
    assert metrics["ruler"]["kl_tagger"]["noise"] == protocol.rounded(ruler["kl"]["noise"])
    assert metrics["counts"]["reference"] == 18
    said = protocol.warnings(results[1], sets, library, {"yamnet": "no file"})
    assert any("yamnet was not used: no file" in line for line in said)
    assert any("codec line rests on 12 clips, not 18" in line for line in said)


def test_without_bootstrap_there_is_no_interval(library, tmp_path):
    sets = choose_sets(catalog(), ids("test"), ids("valid"), "test", 0, 0)
    found = protocol.score(library, ["tagger"], sets, 0, 0, tmp_path / "scores", 1, lambda n: None)["tagger"]
    assert set(found["fad"]) == set(found["kl"]) == {"value"}
    assert "label_accuracy" not in found


def test_warnings_about_the_sounds_themselves(library):
    sets = choose_sets(catalog(), ids("test"), ids("valid"), "test", 0, 0)
    for name in ids("test")[:9]:
        library.quality["generated"][name] = Quality(8000, True, False, "same")
    said = "\n".join(protocol.warnings({}, sets, library, {}))
    assert "50% of the generated sounds are silent" in said
    assert "44% of the generated sounds are copies of another one" in said
    assert "9 generated sounds are not as long as their reference clips (first: clip72)" in said
