"""A family's scores of known embeddings: sets, pairs, codec line and probe, as the scorer measures them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from soundmill import shards
from soundmill.errors import UserError
from soundmill.evaluation import cache, embedders, family, features, folders, probe, protocols, scorer
from soundmill.evaluation.cache import Facts
from soundmill.evaluation.library import Library, Members, Setup
from soundmill.evaluation.sets import choose_sets, comparisons
from tests.evaluation import test_sets
from tests.evaluation.test_sets import LABELS, catalog

RATE = 16_000
CATALOG = catalog(90, 30, 60)
ids = partial(test_sets.ids, clips=CATALOG)


class EmbedderConfig(features.EmbedderConfig):
    """Embeddings that were put into its directory."""

    weights = "none"

    def directory(self, cache):
        return cache / self.name


class Given(Setup):
    @property
    def configs(self):
        return [EmbedderConfig(name) for name in self.protocol.embedders]


def put(library: Library, role: str, clip_ids: list[str], offset: float, jitter: float, seed: int) -> None:
    """Patches [4, 6] about the place of each clip's class, which is moved by `offset` in every dimension."""
    random = np.random.default_rng(seed)
    labels = {clip.clip_id: LABELS.index(clip.labels[0]) for clip in CATALOG}
    rows, sounds = [], {}
    for name in clip_ids:
        frames = random.standard_normal((4, 6)) * jitter + 3 * np.eye(6)[labels[name]] + offset
        key = f"{role} {name}"
        facts = Facts(RATE, RATE, role == "silence", False, key)
        rows.append(cache.Embedding(key, facts, frames.astype(np.float32), frames.mean(axis=0)))
        sounds[name] = features.Sound(name, key)
    cache.add(library.setup.cache / "tagger", rows)
    library.sounds[role] = sounds
    library.facts[role] = {row.key.split()[1]: replace(row.facts, patches=len(row.frames)) for row in rows}


@pytest.fixture
def library(tmp_path):
    result = protocols.load("project").with_embedders(["tagger"])
    compared = [score for score in result.scores if score.metric in ("fad", "kl", "precision")]
    protocol = result.model_copy(update={"scores": compared, "replicates": 60})
    library = Library(Given(protocol, tmp_path, 1), {})
    put(library, "real", [clip.clip_id for clip in CATALOG], 0.0, 0.3, 0)
    put(library, "generated", ids("test"), 1.0, 0.3, 1)
    put(library, "codec", ids("valid"), 0.2, 0.3, 2)
    put(library, "silence", ids("test"), 0.0, 0.0, 3)  # in the middle of every class
    put(library, "noise", ids("test"), 9.0, 0.3, 4)
    return library


def score(library: Library, sets, seen=None) -> scorer.Scored:
    """Without the codec's waves, which are not there."""
    compared = replace(comparisons(sets, library, reconstructed=False), waves=None)
    return scorer.score(library.setup, library, compared, seen or {})


def test_scores_of_known_embeddings(library):
    scored = score(library, choose_sets(CATALOG, ids("test"), ids("valid"), "test", 1000, 0))
    values, baselines = scored.values, scored.baselines["fad_tagger"]
    assert values["fad_tagger"] == pytest.approx(6.0, abs=0.5)  # shifted by 1 in 6 dimensions, covariance alike
    assert values["fad_tagger_low"] < values["fad_tagger"] < values["fad_tagger_high"]
    assert 0 < baselines["floor"] < 0.3
    assert baselines["floor"] < baselines["codec"] < values["fad_tagger"] < baselines["noise"]
    assert baselines["codec_floor"] < baselines["codec"]
    assert set(scored.baselines["kl_tagger"]) == {"floor", "codec", "silence", "noise"}
    assert values["kl_tagger"] == pytest.approx(np.mean(list(scored.of["kl_tagger"].values())), rel=1e-5)


@pytest.mark.parametrize(("biases", "expected"), [((2.0, 3.0), 6.0), ((2.0, None), 1.0), ((None, None), 1.0)])
def test_a_floor_of_other_sizes_is_aligned_with_the_compared_sets(biases, expected):
    """By the bias where it was measured, else by the numbers of sounds: 1/40 + 1/40 for 1/10 + 1/10."""
    tasks, results = [], {}
    for role, count, bias in zip(("floor", "generated"), (10, 40), biases, strict=True):
        view = features.View(Path(), {str(number): "" for number in range(count)})
        tasks.append(scorer.Measurement("fad_x", "fad", role, view, view, 0, 0))
        results["fad_x", role] = {"value": 4.0} | ({} if bias is None else {"bias": bias})
    scorer._align_floors(tasks, results)
    assert (results["fad_x", "floor"]["value"], results["fad_x", "generated"]["value"]) == (expected, 4.0)


def test_a_group_too_small_for_every_score_is_left_out(library):
    only = library.setup.protocol.model_copy(update={"scores": library.setup.protocol.scores[:1]})
    library.setup = Given(only, library.setup.cache, 1)
    left_out = score(library, choose_sets(CATALOG[-8:], ids("test")[-2:], [], "test", 1000, 0)).left_out
    assert left_out.keys() == {"fad_tagger"}
    with pytest.raises(UserError, match="fad_tagger: a Fréchet distance needs"):
        scorer.check_measured(only, left_out)


@pytest.mark.parametrize(
    ("metric", "baselines", "expected"),
    [
        ("fad", {"floor": 2.0, "silence": 2.0, "noise": 3.0}, "silence (2) is as good as real sound (2)"),
        ("fad", {"floor": 2.0, "silence": 2.1, "noise": 3.0}, None),
        ("fad", {"silence": 1.0, "noise": 3.0}, None),  # without a floor nothing can be said
        ("density", {"floor": 2.29, "silence": 24.0, "noise": 3.0}, "silence (24) and noise (3) are as good as real sound (2.29)"),
        ("production_quality", {"floor": 6.2, "silence": 4.0, "noise": 6.5}, "noise (6.5) is as good as real sound (6.2)"),
        ("label_accuracy", {"real": 0.5, "chance": 0.5}, "chance (50.0%) is as good as real sound (50.0%)"),
        ("label_accuracy", {"real": 0.9, "chance": 0.5, "codec": 0.95}, None),
    ],
)
def test_what_unfit_is(metric, baselines, expected):
    assert scorer.unfit(metric, baselines) == (expected and f"unfit for these sets: {expected}")


def test_a_probe_tells_classes_and_never_sees_the_fold_it_classifies(library):
    sets = choose_sets(CATALOG, ids("test"), ids("valid"), "test", 1000, 0)
    guesses = family._guess(library, sets)["tagger"]
    of, baselines = probe.label_accuracy(guesses, sets.probe, dict(sets.requested), sets.codec)
    assert set(of.values()) == {1.0}
    assert of.keys() == set(sets.generated)
    assert baselines == {"real": 1.0, "chance": pytest.approx(1 / 3), "codec": 1.0}
    wrong = {clip_id: "bell" for clip_id, _ in sets.requested}
    assert np.mean(list(probe.label_accuracy(guesses, sets.probe, wrong, ())[0].values())) == pytest.approx(1 / 3)


def remove_patches(library: Library, role: str, clip_ids: list[str]) -> None:
    """Replace sounds by sounds that are too short for a patch."""
    facts = Facts(RATE // 10, RATE, False, False, "short")
    empty, logits = np.zeros((0, 0), np.float32), np.zeros(6, np.float32)
    rows = [cache.Embedding(f"{role} {name}, short", facts, empty, logits) for name in clip_ids]
    cache.add(library.setup.cache / "tagger", rows)
    library.sounds[role] |= {name: features.Sound(name, row.key) for name, row in zip(clip_ids, rows, strict=True)}


def test_sounds_too_short_for_a_patch_are_not_classified(library):
    sets = choose_sets(CATALOG, ids("test"), ids("valid"), "test", 1000, 0)
    source = family.Source(CATALOG, library.setup.cache, {}, {}, folders.About())
    real = [clip_id for clip_id, _, _ in sets.probe][:2]
    for role, short in (("real", real), ("generated", [sets.generated[0]]), ("codec", [sets.codec[0]])):
        remove_patches(library, role, short)
    guesses = family._guess(library, sets)
    scored = family._score(library, replace(sets, codec=(), codec_reference=()), source, guesses)
    assert scored.of["label_accuracy_tagger"].keys() == set(sets.generated[1:])
    assert scored.baselines["label_accuracy_tagger"]["real"] == 1.0
    assert guesses["tagger"].real.keys() == {clip_id for clip_id, _, _ in sets.probe} - set(real)


@pytest.mark.parametrize("role", ["real", "generated"])
def test_without_any_patch_label_accuracy_is_left_out(library, role):
    sets = choose_sets(CATALOG, ids("test"), ids("valid"), "test", 1000, 0)
    remove_patches(library, role, sorted(library.sounds[role]))
    scored = scorer.Scored()
    family._add_label_accuracy(scored, library.setup.protocol, sets, "tagger", family._guess(library, sets)["tagger"])
    assert not scored.values
    assert scored.warnings == ["label_accuracy_tagger is left out: too few sounds are long enough for a patch of tagger."]


def test_what_a_result_says_of_the_sounds_themselves(library):
    for name in ids("test")[:9]:
        library.facts["generated"][name] = Facts(RATE // 2, RATE, True, False, "same", 4)
    sides = {"generated": Members.of("generated", ids("test")), "reference": Members.of("real", ids("test"))}
    result = scorer.metrics_of(library, sides, scorer.Scored())
    message = "\n".join(result["warnings"])
    assert "15.0% of the generated sounds are silent" in message
    assert "13.3% of the generated sounds are copies of another one" in message
    assert "Generated sounds last 0.925 s on average and reference sounds 1 s" in message
    assert result["protocol"] == "soundmill-3"
    assert result["files"]["generated"] != result["files"]["reference"]


def test_a_model_s_own_record_of_its_sounds(tmp_path):
    path = tmp_path / "about.json"
    assert folders.about(tmp_path) == folders.About()
    for text in ("{}", "no JSON", '{"made_by": "hand"}', "[" * 100_000):
        path.write_text(text)
        assert folders.about(tmp_path) == folders.About()
    path.write_text('{"family": "gan", "made_by": "generate", "trained_against": ["tagger"]}')
    assert folders.about(tmp_path).trained_against == ("tagger",)
    assert folders.about(tmp_path).seen == {"tagger": "the model was trained against tagger"}
    path.write_text('{"family": "gan", "made_by": "generate", "chosen_by": ["tagger"]}')
    assert folders.about(tmp_path).seen == {"tagger": "the model's weights were chosen by tagger"}
    assert folders.about(tmp_path).candidates == 1
    path.write_text('{"family": "gan", "made_by": "generate", "trained_against": "tagger"}')
    with pytest.raises(UserError, match=r"about\.json: trained_against: expected a list"):
        folders.about(tmp_path)


@pytest.mark.parametrize(
    ("gpus", "devices", "expected"),
    [
        ([], None, [(["yamnet", "clap"], 6)]),
        (["0", "1"], None, [(["clap"], 2), (["yamnet"], 6)]),
        (["0", "1"], 3, [(["clap"], 3), (["yamnet"], 6)]),
    ],
)
def test_embedders_of_gpus_get_a_process_for_each_and_others_all(monkeypatch, gpus, devices, expected):
    assert [embedders.find(name).gpu for name in ("yamnet", "clap")] == [False, True]
    calls = []

    def embed_all(configs, sounds, cache, workers, progress, refused=()):
        calls.append(([config.name for config in configs], workers))
        return [f"damaged by {configs[0].name}"] if refused or len(configs) == 1 else []

    monkeypatch.setattr(shards, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(features, "embed_all", embed_all)
    setup = Setup(protocols.load("project"), Path("cache"), 6, devices=devices)
    configs = [features.EmbedderConfig(name) for name in ("yamnet", "clap")]
    damaged = setup.embed(configs, [], lambda count: None, [{"path": "a", "detail": "b"}])
    assert calls == expected
    assert damaged == [f"damaged by {names[0]}" for names, _ in expected]
