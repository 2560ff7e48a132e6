"""The ladder: which sounds stand on it, and the sentences about where a model stands."""

import pytest

from soundmill.evaluation import ladder
from soundmill.evaluation.ladder import Climbed, Ladder
from soundmill.evaluation.library import Members
from soundmill.evaluation.spoilings import SPOILINGS

FLOOR = Members.of("real", (f"real{index:02d}" for index in range(40)))
OTHERS = Members.of("real", (f"other{index:02d}" for index in range(60)))
GENERATED = Members.of("generated", (f"made{index:02d}" for index in range(50)))
CLASSES = {name: "dog" if index % 4 == 0 else "rain" if index % 4 == 1 else "bell" for index, name in enumerate(FLOOR.ids)}


def rungs(paired: bool = False, classes: dict[str, str] = CLASSES) -> dict[str, ladder.Sides]:
    chosen = ladder.choose(FLOOR, len(GENERATED), ["fad"], classes, 0)
    pairs = FLOOR, Members("real", dict(zip(FLOOR.ids, OTHERS.ids, strict=False)))
    generated = GENERATED, Members("real", dict(zip(GENERATED.ids, OTHERS.ids, strict=False)))
    return dict(chosen.sides(pairs, generated, True) if paired else chosen.sides((FLOOR, OTHERS), (GENERATED, OTHERS), False))


def test_every_rung_has_equally_many_sounds_and_the_same_reference():
    found = rungs()
    assert list(found) == ["generated", "real", *SPOILINGS, "missing_class", "repeated"]
    assert {len(sounds) for sounds, _ in found.values()} == {ladder.CLIPS}
    assert all(against is OTHERS for _, against in found.values())
    real = found["real"][0]
    assert set(real.ids) < set(FLOOR.ids)
    for kind in SPOILINGS:
        assert found[kind][0] == Members(kind, real.ids)
    assert found == rungs()  # nothing but ids and the seed
    assert found["generated"][0].ids.keys() < GENERATED.ids.keys()


def test_a_class_is_missing_and_clips_are_repeated():
    found = rungs()
    real = set(found["real"][0].ids.values())
    left = set(found["missing_class"][0].ids.values())
    counts = {name: sum(CLASSES[clip] == name for clip in real) for name in ("dog", "rain", "bell")}
    assert counts["bell"] == max(counts.values())  # the largest class is left out
    assert left == {clip for clip in real if CLASSES[clip] != "bell"}
    twice = list(found["repeated"][0].ids.values())
    assert sorted(twice[: ladder.CLIPS // 2] * 2) == sorted(twice)
    assert len(set(twice)) == ladder.CLIPS // 2
    assert set(twice) != set(sorted(real)[: ladder.CLIPS // 2])  # names that begin with a class would lose classes
    for classes in ({}, dict.fromkeys(FLOOR.ids, "dog"), {next(iter(FLOOR.ids)): "dog"}):
        assert "missing_class" not in rungs(classes=classes)


def test_pairs_stay_pairs():
    found = rungs(paired=True)
    assert list(found) == ["generated", "real", *SPOILINGS]
    for sounds, against in found.values():
        assert list(sounds.ids) == list(against.ids)
    assert found["bits_8"][1].ids == {name: OTHERS_OF[name] for name in found["bits_8"][0].ids}


OTHERS_OF = dict(zip(FLOOR.ids, OTHERS.ids, strict=False))


@pytest.mark.parametrize(("floor", "generated", "clips"), [(40, 50, 20), (40, 17, 16), (13, 50, 12), (7, 50, 0), (40, 5, 0)])
def test_no_more_clips_than_both_sets_have(floor, generated, clips):
    chosen = ladder.choose(Members.of("real", list(FLOOR.ids)[:floor]), generated, ["fad"], {}, 0)
    assert len(chosen.clips) == clips
    assert ladder.choose(FLOOR, generated, [], {}, 0) is None


def test_what_cannot_be_measured_is_told():
    too_few = ladder.choose(FLOOR, 5, ["fad"], {}, 0)
    assert too_few.document({}) == {}
    assert "at least 8 generated and 8 real sounds" in too_few.why_not()
    unsuitable = Ladder(["kl"], FLOOR, 0)
    assert unsuitable.document({"kl_yamnet": {"real": 1.0}}) == {}  # without the model
    assert "(kl) can be measured" in unsuitable.why_not()


def climbed(value: float, metric: str = "fad", **rungs: float) -> Climbed:
    return Climbed(f"{metric}_yamnet", metric, "yamnet", value, rungs)


OF_YAMNET = {"real": 3.2, "pieces_200ms": 4.4, "pieces_50ms": 10.0, "random_phases": 20.6, "bits_8": 3.3}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (8.8, "FAD (yamnet) 8.8: between pieces of 200 ms (4.4) and pieces of 50 ms (10)"),
        (4.4, "FAD (yamnet) 4.4: between pieces of 200 ms (4.4) and pieces of 50 ms (10)"),
        (3.25, "FAD (yamnet) 3.25: between real sounds (3.2) and pieces of 200 ms (4.4)"),
        (3.0, "FAD (yamnet) 3: no worse than real sounds (3.2)"),
        (50.0, "FAD (yamnet) 50: worse than all rungs, the last of them random phases (20.6)"),
    ],
)
def test_the_place_of_a_model(value, place):
    one = climbed(value, **OF_YAMNET)
    assert one.place() == place
    assert one.sentence() == f"{place}; deaf to 8-bit samples"


def test_what_a_metric_is_deaf_to_is_no_mark():
    """The tagger's FAD rates pieces of 200 ms better than intact sounds."""
    one = climbed(5.0, real=8.9, pieces_200ms=3.4, pieces_50ms=16.8)
    assert one.deaf_to == ["pieces_200ms"]
    assert one.place() == "FAD (yamnet) 5: no worse than real sounds (8.9)"
    assert climbed(5.0, real=-0.001, bits_8=0.002).deaf_to == []  # MMD is unbiased, so it may be below zero


def test_more_is_better():
    one = climbed(0.5, "recall", real=0.9, pieces_50ms=0.6, random_phases=0.1)
    assert one.place() == "Recall (yamnet) 50.0%: between pieces of 50 ms (60.0%) and random phases (10.0%)"
    assert (
        climbed(0.95, "recall", real=0.9, random_phases=0.1).place() == "Recall (yamnet) 95.0%: no worse than real sounds (90.0%)"
    )


def test_sentences_are_about_scores_that_rank():
    scores = {"generated": 8.8, **OF_YAMNET}
    metrics = {
        "embedders": {"yamnet": {}}, "fad_yamnet": 9.0, "mmd_yamnet": 9.0, "baselines": {"fad_yamnet": {"noise": 63.0}},
        "unranked": {"mmd_yamnet": "unfit"}, "ladder": {"clips": 32, "scores": {"fad_yamnet": scores, "mmd_yamnet": scores}},
    }  # fmt: skip
    assert [one.key for one in ladder.climbed(metrics)] == ["fad_yamnet", "mmd_yamnet"]
    ladder.add_sentences(metrics)
    assert metrics["ladder"]["sentences"] == {"fad_yamnet": climbed(8.8, **OF_YAMNET).place()}
    without = {"embedders": {"yamnet": {}}, "fad_yamnet": 9.0, "baselines": {}, "unranked": {}}
    ladder.add_sentences(without)
    assert "ladder" not in without
    assert ladder.climbed(without) == []
