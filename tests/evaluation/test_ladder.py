"""The ladder: which sounds stand on it, the sentences about where a model stands, and what each way to degrade a sound changes."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from soundmill.evaluation import degradations, ladder
from soundmill.evaluation.degradations import DEGRADATIONS
from soundmill.evaluation.ladder import Climbed, Ladder
from soundmill.evaluation.library import Members
from tests import waves

FLOOR = Members.of("real", (f"real{index:02d}" for index in range(40)))
OTHERS = Members.of("real", (f"other{index:02d}" for index in range(60)))
GENERATED = Members.of("generated", (f"made{index:02d}" for index in range(50)))
CLASSES = {name: "dog" if index % 4 == 0 else "rain" if index % 4 == 1 else "bell" for index, name in enumerate(FLOOR.ids)}


def rungs(paired: bool = False, classes: dict[str, str] = CLASSES) -> dict[str, ladder.Sides]:
    chosen = ladder.choose(FLOOR, len(GENERATED), ["fad"], classes, 0)
    pairs = FLOOR, Members("real", dict(zip(FLOOR.ids, OTHERS.ids, strict=False)))
    generated = GENERATED, Members("real", dict(zip(GENERATED.ids, OTHERS.ids, strict=False)))
    return dict(chosen.sides(pairs, generated, True) if paired else chosen.sides((FLOOR, OTHERS), (GENERATED, OTHERS), False))


def test_every_rung_has_equally_many_sounds_one_reference_and_its_own_change_of_the_clips():
    found = rungs()
    assert list(found) == ["generated", "real", *DEGRADATIONS, "missing_class", "repeated"]
    assert {len(sounds) for sounds, _ in found.values()} == {ladder.CLIPS}
    assert all(against is OTHERS for _, against in found.values())
    real = found["real"][0]
    assert set(real.ids) < set(FLOOR.ids)
    for kind in DEGRADATIONS:
        assert found[kind][0] == Members(kind, real.ids)
    assert found == rungs()  # nothing but ids and the seed
    assert found["generated"][0].ids.keys() < GENERATED.ids.keys()
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
    found = rungs(paired=True)
    assert list(found) == ["generated", "real", *DEGRADATIONS]
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
    return Climbed(f"{metric}_yamnet", metric, "yamnet", 32, value, rungs)


OF_YAMNET = {"real": 3.2, "pieces_200ms": 4.4, "pieces_50ms": 10.0, "random_phases": 20.6, "bits_8": 3.3}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (8.8, "FAD (yamnet, 32 sounds) 8.8: between pieces of 200 ms (4.4) and pieces of 50 ms (10)"),
        (4.4, "FAD (yamnet, 32 sounds) 4.4: between pieces of 200 ms (4.4) and pieces of 50 ms (10)"),
        (3.25, "FAD (yamnet, 32 sounds) 3.25: between real sounds (3.2) and pieces of 200 ms (4.4)"),
        (3.0, "FAD (yamnet, 32 sounds) 3: no worse than real sounds (3.2)"),
        (50.0, "FAD (yamnet, 32 sounds) 50: worse than all rungs, the last of them random phases (20.6)"),
    ],
)
def test_the_place_of_a_model(value, place):
    one = climbed(value, **OF_YAMNET)
    assert one.place() == place
    assert one.sentence() == f"{place}; deaf to 8-bit samples"


def test_what_a_metric_is_deaf_to_is_no_mark_and_more_may_be_better():
    """The tagger's FAD rates pieces of 200 ms better than intact sounds."""
    one = climbed(5.0, real=8.9, pieces_200ms=3.4, pieces_50ms=16.8)
    assert one.deaf_to == ["pieces_200ms"]
    assert one.place() == "FAD (yamnet, 32 sounds) 5: no worse than real sounds (8.9)"
    assert climbed(5.0, real=-0.001, bits_8=0.002).deaf_to == []  # MMD is unbiased, so it may be below zero
    one = climbed(0.5, "recall", real=0.9, pieces_50ms=0.6, random_phases=0.1)
    assert one.place() == "Recall (yamnet, 32 sounds) 50.0%: between pieces of 50 ms (60.0%) and random phases (10.0%)"
    best = climbed(0.95, "recall", real=0.9, random_phases=0.1)
    assert best.place() == "Recall (yamnet, 32 sounds) 95.0%: no worse than real sounds (90.0%)"


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


RATE = 16_000
RANDOM = np.random.default_rng(0)
tone = partial(waves.tone, seconds=2.0, amplitude=0.3)


def level(wave: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(wave, dtype=np.float64))))


@pytest.mark.parametrize("kind", degradations.DEGRADATIONS)
@pytest.mark.parametrize("num_samples", [0, 1, 2, 100, 4_000, 32_000])
def test_the_length_is_kept_and_the_result_depends_on_id_and_seed_alone(kind, num_samples):
    wave = np.clip(tone(300) + tone(700) + 0.5 * np.sign(tone(3)), -1, 1)[:num_samples].astype(np.float32)
    before = wave.copy()
    degraded = degradations.degrade(kind, wave, RATE, "a", 0)
    assert degraded.shape == wave.shape
    assert degraded.dtype == np.float32
    assert np.isfinite(degraded).all()
    np.testing.assert_array_equal(wave, before)
    np.testing.assert_array_equal(degradations.degrade(kind, wave, RATE, "a", 0), degraded)
    if num_samples == 32_000:
        chance = kind not in ("low_pass_4khz", "pitch_2_semitones", "bits_8")
        for clip_id, seed in (("b", 0), ("a", 1)):
            assert np.array_equal(degradations.degrade(kind, wave, RATE, clip_id, seed), degraded) != chance
        assert not np.array_equal(degraded, wave)


@pytest.mark.parametrize("seconds", [0.2, 0.05])
def test_pieces_are_moved_and_nothing_else(seconds):
    wave = RANDOM.standard_normal(32_100)
    in_place = SimpleNamespace(permutation=np.arange)
    np.testing.assert_allclose(degradations.shuffle_pieces(wave, RATE, in_place, seconds), wave, atol=1e-12)
    two = np.concatenate([tone(400)[:RATE], tone(2_000)[:RATE]])  # one tone after the other
    shuffled = degradations.shuffle_pieces(two, RATE, np.random.default_rng(1), seconds)
    for half in np.split(shuffled, 2):  # both tones everywhere
        spectrum = np.abs(np.fft.rfft(half))
        assert min(spectrum[380:420].max(), spectrum[1980:2020].max()) > 10 * np.median(spectrum)


def test_random_phases_keep_the_spectrum_and_pitch_leaves_events_where_they_are():
    wave = np.zeros(32_000)
    wave[8_000:9_000] = RANDOM.standard_normal(1_000) * 0.5
    degraded = degradations.degrade("random_phases", wave, RATE, "a", 0)
    np.testing.assert_allclose(np.abs(np.fft.rfft(degraded))[1:-1], np.abs(np.fft.rfft(wave))[1:-1], atol=1e-3)
    assert level(degraded[16_000:]) == pytest.approx(level(wave), abs=1)  # the burst is everywhere
    spectrum = np.abs(np.fft.rfft(degradations.degrade("pitch_2_semitones", tone(440), RATE, "a", 0)))  # of two seconds
    assert spectrum.argmax() / 2 == pytest.approx(440 * 2 ** (2 / 12), abs=1)
    wave = np.zeros(32_000)
    wave[20_000:20_400] = RANDOM.standard_normal(400) * 0.3
    degraded = degradations.degrade("pitch_2_semitones", wave, RATE, "a", 0)
    assert np.average(np.arange(32_000), weights=np.square(degraded)) == pytest.approx(20_200, abs=0.02 * RATE)


def test_a_low_pass_removes_what_is_above_it_and_8_bits_have_few_values():
    assert level(degradations.degrade("low_pass_4khz", tone(6_000), RATE, "a", 0)) < level(tone(6_000)) - 30
    degraded = degradations.degrade("low_pass_4khz", tone(1_000), RATE, "a", 0)
    np.testing.assert_allclose(degraded[2000:-2000], tone(1_000)[2000:-2000], atol=1e-3)
    np.testing.assert_array_equal(degradations.degrade("low_pass_4khz", tone(1_000), 8_000, "a", 0), tone(1_000))
    degraded = degradations.degrade("bits_8", tone(440), RATE, "a", 0)
    assert len(np.unique(degraded)) < 80
    assert np.abs(degraded - tone(440)).max() <= 1 / 254 + 1e-6


@pytest.mark.parametrize(("kind", "decibels"), [("noise_20db", 20), ("noise_0db", 0)])
def test_noise_has_the_ratio_to_the_sound(kind, decibels):
    added = degradations.degrade(kind, 0.1 * tone(500), RATE, "a", 0) - 0.1 * tone(500)
    assert level(0.1 * tone(500)) - level(added) == pytest.approx(decibels, abs=0.2)
    assert not degradations.degrade(kind, np.zeros(1_000, np.float32), RATE, "a", 0).any()
