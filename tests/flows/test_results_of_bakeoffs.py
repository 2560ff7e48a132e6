"""What a bake-off's numbers say, from numbers whose answer is known."""

import csv
import io
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from flows import publishing, results
from flows.publishing import TOTAL_COLOR, draw
from flows.results import Estimate, MetricResult, Row, Training, falling, front, leading, not_ranked, scores_under, slope
from flows.results_table import csv_of_rows, of_bakeoff, verdict, why_unranked
from flows.scores import best
from soundmill.clips import Tables

FALLING, FLAT = Estimate(-0.2, -0.21, -0.19), Estimate(0.0, -0.005, 0.005)


def row(name: str, fad: float, seconds: float | None, slope: Estimate | None = None) -> Row:
    result = MetricResult(Estimate(fad, fad - 1, fad + 1), baselines={"floor": 3.0})
    scores = {"fad": result, "label_accuracy": MetricResult(Estimate(0.5))}
    trainings = (Training("train", 300, 2.0, slope),)
    facts = {"parameters": 1000, "trainings": trainings, "peak_memory_bytes": 2.0**30, "seconds_per_second": seconds}
    return Row(name, scores, kind="a model", **facts)


def difference(a: str, b: str, value: float, p: float) -> results.Difference:
    ends = {"low": value - 1, "high": value + 1}
    return {"metric": "fad", "a": a, "b": b, "value": value, **ends, "p": p, "better": a if p < 0.05 else "neither"}


def table(rows: list[Row]):
    return of_bakeoff("A bake-off", rows, [], []).table()


ROWS = [row("slow", 10.0, 4.0, slope=FALLING), row("quick", 14.0, 0.1, slope=FLAT), row("poor", 20.0, 1.0)]
EXCLUDED = results.without_score("upsampler", "does not generate sound from a request")


def test_scores_are_those_of_one_embedder_with_intervals_and_baselines():
    metrics = {"fad_yamnet": 9.0, "fad_yamnet_low": 8.0, "fad_yamnet_high": 11.0, "fad_tagger": 1.0, "kl_yamnet": None}
    metrics["baselines"] = {"fad_yamnet": {"floor": 3.0, "codec": 5.0, "silence": 40.0}}
    first = Estimate(9.0, 8.0, 11.0)
    assert scores_under("yamnet", {3: metrics}) == {"fad": MetricResult(first, {3: first}, baselines={"codec": 5.0, "floor": 3.0})}
    (fad,) = scores_under("yamnet", {3: metrics, 4: {**metrics, "fad_yamnet": 11.0}}).values()
    assert list(fad.by_seed) == [3, 4]
    assert fad.total.value == 10.0
    assert fad.total.high - 10.0 == pytest.approx(12.706, abs=1e-3)  # Student's, one degree of freedom
    assert scores_under("yamnet", {3: metrics, 4: {}}) == {}  # a mean over other seeds would not compare


def test_near_copies_have_an_interval_and_the_rate_of_real_sounds():
    """Wilson (1927): of 0 of 20 clips up to 16.1 %. Here the tagger searches for copies, and another embedder scores."""
    metrics = {"memorised_tagger": 0.0, "memorised_tagger_real": 0.05, "counts": {"generated": 20}, "embedders": {"tagger": {}}}
    metrics |= {"label_accuracy_yamnet": 0.5, "baselines": {"label_accuracy_yamnet": {"real": 0.9, "chance": 0.1}}}
    found = scores_under("yamnet", {0: metrics})
    copies = found["memorised"]
    assert (copies.total.value, copies.total.low, copies.baselines) == (0.0, 0.0, {"real": 0.05})
    assert copies.total.high == pytest.approx(0.161, abs=1e-3)
    assert found["label_accuracy"].baselines == {"real": 0.9}
    text = table([Row("one", found)]).loc[0]
    assert text["near-copies"] == "0 % (0 % … 16 %), real 5 %"


def test_a_score_that_is_not_ranked_is_marked_and_wins_nothing():
    """A model trained against the scoring network is not compared by it, nor one measured against other clips."""
    metrics = {"fad_tagger": 1.0, "unranked": {"fad_tagger": "the model was trained against tagger"}}
    own = replace(row("own loss", 1.0, 0.01), scores=scores_under("tagger", {0: metrics}))
    other = not_ranked(row("other clips", 2.0, 0.02), "measured against clips of `one_bar`, the others of `default`")
    rows = [own, other, *ROWS]
    said = "For quality choose slow: FAD 10, not tested against quick and poor. For speed choose quick"
    assert verdict(rows, []).startswith(said)
    assert [one.name for one in front(rows)] == ["quick", "slow"]
    assert list(table(rows)["family"]) == ["slow", "quick", "poor", "own loss", "other clips"]
    assert table(rows).loc[3]["FAD"] == "1†"
    assert why_unranked(rows)[0] == "† not ranked: FAD of own loss: the model was trained against tagger."
    assert "one_bar" in why_unranked(rows)[1]
    assert next(csv.DictReader(io.StringIO(csv_of_rows(rows))))["unranked"] == "fad"
    assert "dagger" in of_bakeoff("", rows, [], []).latex
    assert verdict([own], []) == "No family has a ranked score."
    by_mmd = [replace(one, scores={**one.scores, "mmd": MetricResult(Estimate(0.1))}) for one in (own, own)]
    assert leading(by_mmd) == "mmd"


def test_the_slope_of_a_loss_is_what_twice_the_steps_promise():
    falling = [(step, 2 - 0.1 * math.log2(step)) for step in range(100, 2100, 100)]
    found = slope(falling)
    assert found.low == pytest.approx(found.value) == pytest.approx(found.high) == pytest.approx(-0.1 / falling[-1][1])
    flat = slope([(step, 1 + 0.01 * (-1) ** (step // 100)) for step in range(100, 2100, 100)])
    assert flat.low < 0 < flat.high
    assert slope(falling[:4]) is None
    for unfit in ([(step, -1.0) for step in range(1, 10)], [*falling[:9], (1000, math.nan), falling[10]], [(100, 1.0)] * 9):
        assert slope(unfit) is None


def test_whether_more_minutes_help_has_three_answers_and_all_trainings_are_asked():
    def words(*slopes: Estimate | None) -> str:
        trainings = [Training(stage, 10, 1.0, slope) for stage, slope in zip(("train", "autoencoder"), slopes, strict=False)]
        return verdict([replace(row("one", 1.0, 1.0), trainings=trainings)], []).rpartition("fastest. ")[2]

    assert words(FALLING) == "More minutes would likely help one: twice as many should lower its held-out loss by 20% in train."
    assert words(FLAT) == "More minutes would hardly help one: its held-out loss no longer falls."
    noisy = Estimate(-0.1, -0.4, 0.2)
    for unsure in (noisy, Estimate(0.01, -0.3, 0.32), None):
        assert words(unsure) == "The held-out loss of one does not show whether more minutes would help."
    assert words(FLAT, FALLING).endswith("by 20% in autoencoder.")
    assert "does not show" in words(FLAT, noisy)
    assert falling(replace(ROWS[0], trainings=[Training("train", 10, 1.0, Estimate(-0.005, -0.006, -0.004))])) == []


def test_nothing_beats_the_front_in_both():
    assert [one.name for one in front([*ROWS, EXCLUDED])] == ["quick", "slow"]
    assert front([EXCLUDED, row("unknown", 1.0, None)]) == []


def test_few_clips_are_ranked_by_the_kernel_distance() -> None:
    """A FAD of fewer than 50 real clips is none."""
    few = [replace(one, scores={"mmd": MetricResult(Estimate(one.scores["fad"].total.value / 100))}) for one in ROWS]
    assert verdict(few, []).startswith("For quality choose slow: MMD 0.1, not tested against quick and poor.")
    assert list(table(few)["MMD"]) == ["0.1", "0.14", "0.2"]
    assert draw("Few", few).axes[0].get_xlabel().startswith("Kernel distance (MMD)")


def test_the_verdict_names_the_best_and_the_fastest():
    sure = [difference("slow", "quick", -4, 0.001), difference("slow", "poor", -10, 0.001)]
    assert verdict([*ROWS, EXCLUDED], sure) == (
        "For quality choose slow: FAD 10, significantly better than all others. For speed choose quick: 0.1 s per second of sound, "
        "FAD 14. More minutes would likely help slow: twice as many should lower its held-out loss by 20% in train."
    )
    unsure = [difference("slow", "quick", -4, 0.5), {**sure[1], "better": "slow"}]
    assert "not significantly better than quick." in verdict(ROWS, unsure)
    alone = verdict([row("slow", 10.0, 4.0)], [])
    assert alone.startswith("For quality choose slow: FAD 10, the only one with a ranked score. It is also the fastest.")
    assert "does not show" in alone
    assert verdict([EXCLUDED], []) == "No family has a score."


def test_the_table_in_every_form():
    rows = [*ROWS, EXCLUDED, Row("mine", {"fad": MetricResult(Estimate(5.0))}, kind="a folder")]
    shown = table(rows)
    assert list(shown["family"]) == ["mine", "slow", "quick", "poor", "upsampler"]
    facts = shown.loc[1, ["parameters", "minutes", "steps", "peak memory"]]
    assert list(facts) == ["1,000", "2", "train 300 in 2", "1.00 GiB"]
    assert shown.loc[1]["FAD"] == "10 (9 … 11), floor 3"
    assert shown.loc[1]["requested class"] == "50 %"
    assert shown.loc[4]["no score because"] == "does not generate sound from a request"
    text = of_bakeoff("A bake-off", rows, [difference("slow", "poor", -10, 0.001)], ["a note"]).markdown()
    assert "| FAD   | slow | poor" in text
    lines = list(csv.DictReader(io.StringIO(csv_of_rows(rows))))
    assert [line["fad"] for line in lines] == ["10.0", "14.0", "20.0", "", "5.0"]
    assert (lines[0]["fad_low"], lines[0]["fad_floor"], lines[0]["steps"]) == ("9.0", "3.0", "300")
    assert r"\toprule" in of_bakeoff("", rows, [], []).latex
    assert "50 \\%" in of_bakeoff("", rows, [], []).latex


def test_the_picture_has_the_leading_score_and_the_speed_of_every_row():
    """MMD has no bias, so that of the best may be under zero."""
    figure = draw("A bake-off", [*ROWS, EXCLUDED])
    score, speed = figure.axes
    assert [label.get_text() for label in score.get_yticklabels()] == ["slow", "quick", "poor", "upsampler"]
    assert [text.get_text() for text in score.texts] == ["failed"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in speed.lines] == [(4.0, 0), (0.1, 1), (1.0, 2)]
    assert [line.get_color() == TOTAL_COLOR for line in speed.lines] == [True, True, False]  # the Pareto front
    assert draw("None", [EXCLUDED]).axes
    below = replace(ROWS[0], scores={"mmd": MetricResult(Estimate(-0.02, -0.12, 0.1))})
    low, high = draw("Few", [below]).axes[0].get_xlim()
    assert low < -0.12 < 0.1 < high


def test_the_page_is_there_without_a_figure(tmp_path, monkeypatch):
    """A figure that could not be drawn is left out."""
    written = []
    for name in ("read_family", "gather"):
        monkeypatch.setattr(f"soundmill.listening.material.{name}", lambda *_: SimpleNamespace(sounds={}))
    monkeypatch.setattr("soundmill.listening.material.real_clips", lambda *_: ({}, {}))
    monkeypatch.setattr("soundmill.listening.side_by_side.write", lambda path, *_, above, **__: written.append(above))
    tables = Tables(tmp_path / "clips", tmp_path / "catalog.parquet")
    publishing.write_page(tmp_path, tables, of_bakeoff("A bake-off", ROWS, [], ["a note"]), {"slow": tmp_path}, {})
    assert "Scores" in written[0]
    assert "Quality and speed" not in written[0]


def scored(fad: float | None, unranked: bool = False) -> dict[str, object]:
    metrics = {"fad_tagger": fad, "baselines": {"fad_tagger": {"floor": 1.0}}, "embedders": {"tagger": {}}}
    return metrics | ({"unranked": {"fad_tagger": "the model was trained against tagger"}} if unranked else {})


def test_the_best_family_has_the_lowest_distance_of_those_that_are_ranked():
    scores = {"poor": scored(9.0), "withheld": scored(None), "own_loss": scored(0.5, unranked=True), "good": scored(3.0)}
    assert best(scores) == ("good", scores["good"])
    assert best({}) == ("", {})
    assert best({"alone": scored(None)})[0] == "alone"
