"""Families of AudioSet's classes: that they are AudioSet's, tell real clips apart, and what a shuffled prompt would match."""

from __future__ import annotations

import json
import os
from collections import Counter

import numpy as np
import pytest

from bench import prompt_following as following
from bench.prompt_following import FAMILIES, FAMILY_OF_LABEL, ClassScores
from soundmill.corpora.folder import class_label
from soundmill.decoding.decode import read_mono
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders.yamnet import LOGITS


@pytest.fixture(scope="module")
def network(shared):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
        return embedders.load("yamnet", shared)


def test_families_are_apart():
    classes = Counter(name for family in FAMILIES.values() for name in family.classes)
    assert set(classes.values()) == {1}
    assert len(FAMILIES) == 10
    assert sum(len(family.labels) for family in FAMILIES.values()) == len(FAMILY_OF_LABEL)


def test_every_class_of_a_family_is_one_of_yamnets(network):
    assert len(network.classes) == LOGITS[1]
    for family in FAMILIES.values():
        assert [network.classes.count(name) for name in family.classes] == [1] * len(family.classes)


def test_real_clips_match_their_labels(network, shared):
    """Three clips of each class; the strongest of all classes is mostly one above those of a family, or Silence."""
    heard, top = {}, {}
    for folder in sorted(path for path in (shared / "data" / "esc10").iterdir() if path.is_dir()):
        family = FAMILY_OF_LABEL[class_label(os.fsencode(folder.name))]
        waves = [read_mono(path, network.sample_rate, 60.0) for path in sorted(folder.glob("*.ogg"))[:24:8]]
        scores = [following.score_classes(network, wave) for wave in waves]
        heard[family] = [list(FAMILIES)[following.family_scores(one, network.classes, list(FAMILIES)).argmax()] for one in scores]
        top[family] = [following.family_of_top_class(one, network.classes) for one in scores]
    assert set(heard) == set(FAMILIES)
    own, shuffled = following.matches(heard)
    assert own.mean() > 0.9
    assert shuffled.mean() == pytest.approx((1 - own.mean()) / 9)
    strict, _ = following.matches(top)
    assert 0.1 < strict.mean() < own.mean()


def test_what_is_heard_is_what_the_network_says(network):
    wave = (0.1 * np.random.default_rng(0).standard_normal(40_000)).astype(np.float32)
    heard = following.score_classes(network, wave)
    np.testing.assert_allclose(heard.logits, network.embed([wave]).logits[0], atol=1e-5)
    assert heard.probabilities.shape == (LOGITS[1],)
    assert 0 <= heard.probabilities.min() < heard.probabilities.max() <= 1


def test_the_strongest_class_decides():
    names = ["Speech", "Dog", "Bark", "Rain", "Raindrop", "Rain on surface", *FAMILIES["dog"].classes[2:]]
    scores = np.zeros(len(names))
    scores[[0, 1, 2, 3]] = [0.9, 0.3, 0.3, 0.4]  # many weak classes of one family are no more than one strong one
    heard = ClassScores(scores, scores)
    assert following.family_scores(heard, names, ["dog", "rain"]).tolist() == [0.3, 0.4]
    assert following.family_of_top_class(heard, names) is None
    scores[0] = 0
    assert following.family_of_top_class(heard, names) == "rain"


def test_matches_and_what_shuffled_prompts_would_match():
    """Known answer: of the prompts dog, rain and rooster; what none of them asks for agrees with nothing."""
    own, shuffled = following.matches({"dog": ["dog", "rain"], "rain": ["rain", "rain"], "rooster": ["dog", None]})
    assert own.tolist() == [[1, 0], [1, 1], [0, 0]]
    assert shuffled.tolist() == [[0, 0.5], [0, 0], [0.5, 0]]


def test_a_family_heard_everywhere_ranks_no_sound_above_others():
    """Known answer: rooster is loudest in all, but alike; dog is heard a little more where it was asked for; rain in one of two."""
    scores = np.array(
        [
            [[0.2, 0.0, 0.9], [0.3, 0.1, 0.9]],  # asked for: dog
            [[0.1, 0.2, 0.9], [0.1, 0.0, 0.9]],  # rain
            [[0.1, 0.1, 0.9], [0.0, 0.1, 0.9]],  # rooster
        ]
    )
    ranks = following.rank_above_others(scores)
    np.testing.assert_allclose(ranks, [[1, 1], [1, 1 / 8], [0.5, 0.5]])


def test_intervals_know_that_sounds_of_a_prompt_are_alike():
    random = np.random.default_rng(0)
    alike = np.repeat(random.integers(2, size=(10, 1)), 8, axis=1).astype(float)
    mixed = alike.ravel()[random.permutation(80)].reshape(10, 8)
    wide, narrow = (following.mean_with_interval(values, 2000, 0) for values in (alike, mixed))
    assert wide["value"] == narrow["value"] == pytest.approx(alike.mean())
    assert wide["low"] <= wide["value"] <= wide["high"]
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])
    expected = 2 * 1.96 * (alike.mean() * (1 - alike.mean()) / 10) ** 0.5  # as if there were ten sounds
    assert wide["high"] - wide["low"] == pytest.approx(expected, rel=0.2)
    assert wide["low_these"] == wide["high_these"] == wide["value"]  # other seeds of these prompts would all say the same
    of_these = 2 * 1.96 * (mixed.var(axis=1).mean() / 80) ** 0.5
    assert narrow["high_these"] - narrow["low_these"] == pytest.approx(of_these, rel=0.2)
    assert json.dumps(wide) == json.dumps(following.mean_with_interval(alike, 2000, 0))
