"""What a bake-off's numbers say, from numbers whose answer is known."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from flows import bakeoff_page
from flows.bakeoff_table import (
    Difference,
    Part,
    Row,
    Score,
    apart,
    csv_text,
    draw,
    falling,
    front,
    latex,
    leading,
    markdown,
    scores_of,
    slope,
    table,
    unranked,
    verdict,
)
from flows.sweep_table import Estimate

FALLING, FLAT = Estimate(-0.2, -0.21, -0.19), Estimate(0.0, -0.005, 0.005)


def row(name: str, fad: float, seconds: float | None, slope: Estimate | None = None) -> Row:
    scores = {"fad": Score(Estimate(fad, fad - 1, fad + 1), {"floor": 3.0}), "label_accuracy": Score(Estimate(0.5))}
    return Row(name, "a model", None, 1000, (Part("train", 300, 2.0, slope),), 2.0**30, seconds, scores)


def difference(a: str, b: str, value: float, p: float) -> Difference:
    return Difference("fad", a, b, value, value - 1, value + 1, p, a if p < 0.05 else "neither")


ROWS = [row("slow", 10.0, 4.0, slope=FALLING), row("quick", 14.0, 0.1, slope=FLAT), row("poor", 20.0, 1.0)]
CANNOT = Row("upsampler", why_not="makes no sound from a request")


def test_scores_are_those_of_one_embedder_with_their_intervals_and_lines():
    metrics = {"fad_yamnet": 9.0, "fad_yamnet_low": 8.0, "fad_yamnet_high": 11.0, "fad_tagger": 1.0, "kl_yamnet": None}
    metrics["baselines"] = {"fad_yamnet": {"floor": 3.0, "codec": 5.0, "silence": 40.0}}
    assert scores_of([metrics], "yamnet") == {"fad": Score(Estimate(9.0, 8.0, 11.0), {"codec": 5.0, "floor": 3.0})}
    (fad,) = scores_of([metrics, {**metrics, "fad_yamnet": 11.0}], "yamnet").values()
    assert fad.total.value == 10.0
    assert fad.total.high - 10.0 == pytest.approx(12.706, abs=1e-3)  # Student's, one degree of freedom


def test_near_copies_have_an_interval_and_the_rate_of_real_sounds():
    """Wilson (1927): of 0 of 20 clips up to 16.1 %. The tagger looks for copies where others judge."""
    metrics = {"memorised_tagger": 0.0, "memorised_tagger_real": 0.05, "counts": {"generated": 20}, "embedders": {"tagger": {}}}
    metrics |= {"label_accuracy_yamnet": 0.5, "baselines": {"label_accuracy_yamnet": {"real": 0.9, "chance": 0.1}}}
    found = scores_of([metrics], "yamnet")
    copies = found["memorised"]
    assert (copies.total.value, copies.total.low, copies.lines) == (0.0, 0.0, {"real": 0.05})
    assert copies.total.high == pytest.approx(0.161, abs=1e-3)
    assert found["label_accuracy"].lines == {"real": 0.9}
    text = table([Row("one", scores=found)]).loc[0]
    assert text["near-copies"] == "0 % (0 % … 16 %), real 5 %"


def test_what_ranks_no_models_is_marked_and_wins_nothing():
    """A model that was trained against the judge may come first in its own loss; one of other clips has another scale."""
    metrics = {"fad_tagger": 1.0, "unranked": {"fad_tagger": "the model was trained against tagger"}}
    own = replace(row("own loss", 1.0, 0.01), scores=scores_of([metrics], "tagger"))
    other = apart(row("other clips", 2.0, 0.02), "measured against clips of `one_bar`, the others of `default`")
    rows = [own, other, *ROWS]
    assert verdict(rows, []).startswith(
        "For quality take slow: FAD 10, not surely better than quick and poor. For speed take quick"
    )
    assert [one.name for one in front(rows)] == ["quick", "slow"]
    assert list(table(rows)["family"]) == ["slow", "quick", "poor", "own loss", "other clips"]
    assert table(rows).loc[3]["FAD"] == "1†"
    assert unranked(rows)[0] == "† ranks no models: FAD of own loss: the model was trained against tagger."
    assert "one_bar" in unranked(rows)[1]
    assert next(csv.DictReader(io.StringIO(csv_text(rows))))["unranked"] == "fad"
    assert "dagger" in latex(rows)
    assert verdict([own], []) == "No family has a score that ranks."
    by_mmd = [replace(one, scores={**one.scores, "mmd": Score(Estimate(0.1))}) for one in (own, own)]
    assert leading(by_mmd) == "mmd"


def test_the_slope_of_a_loss_is_what_twice_the_steps_promise():
    falling = [(step, 2 - 0.1 * math.log2(step)) for step in range(100, 2100, 100)]
    found = slope(falling)
    assert found.low == pytest.approx(found.value) == pytest.approx(found.high) == pytest.approx(-0.1 / falling[-1][1])
    flat = slope([(step, 1 + 0.01 * (-1) ** (step // 100)) for step in range(100, 2100, 100)])
    assert flat.low < 0 < flat.high
    assert slope(falling[:4]) is None
    assert slope([(step, -1.0) for step in range(1, 10)]) is None


def test_whether_more_minutes_help_has_three_answers_and_all_trainings_are_asked():
    def words(*slopes: Estimate | None) -> str:
        parts = [Part(stage, 10, 1.0, its) for stage, its in zip(("train", "autoencoder"), slopes, strict=False)]
        return verdict([replace(row("one", 1.0, 1.0), parts=parts)], []).rpartition("too. ")[2]

    assert words(FALLING) == "More minutes would likely help one: twice as many promise a held-out loss 20% lower in train."
    assert words(FLAT) == "More minutes would hardly help one: its held-out loss does not fall any more."
    noisy = Estimate(-0.1, -0.4, 0.2)
    for unsure in (noisy, Estimate(0.01, -0.3, 0.32), None):
        assert words(unsure) == "Whether more minutes would help one cannot be told from its held-out loss."
    assert words(FLAT, FALLING).endswith("20% lower in autoencoder.")
    assert "cannot be told" in words(FLAT, noisy)
    assert falling(replace(ROWS[0], parts=[Part("train", 10, 1.0, Estimate(-0.005, -0.006, -0.004))])) == []


def test_nothing_beats_the_front_in_both():
    assert [one.name for one in front([*ROWS, CANNOT])] == ["quick", "slow"]
    assert front([CANNOT, row("unknown", 1.0, None)]) == []


def test_few_clips_are_ranked_by_the_kernel_distance() -> None:
    """A FAD of fewer than 50 real clips is none."""
    few = [replace(one, scores={"mmd": Score(Estimate(one.scores["fad"].total.value / 100))}) for one in ROWS]
    assert verdict(few, []).startswith("For quality take slow: MMD 0.1, not surely better than quick and poor.")
    assert list(table(few)["MMD"]) == ["0.1", "0.14", "0.2"]
    assert draw("Few", few).axes[0].get_ylabel() == "MMD (lower is better)"


def test_the_last_line_says_which_to_take():
    sure = [difference("slow", "quick", -4, 0.001), difference("slow", "poor", -10, 0.001)]
    assert verdict([*ROWS, CANNOT], sure) == (
        "For quality take slow: FAD 10, better than every other, beyond chance. For speed take quick: 0.1 s for a second of sound, "
        "FAD 14. More minutes would likely help slow: twice as many promise a held-out loss 20% lower in train."
    )
    unsure = [difference("slow", "quick", -4, 0.5), replace(sure[1], better="slow")]
    assert "not surely better than quick." in verdict(ROWS, unsure)
    alone = verdict([row("slow", 10.0, 4.0)], [])
    assert alone.startswith("For quality take slow: FAD 10, nothing to compare with. It is the fastest too.")
    assert "cannot be told" in alone
    assert verdict([CANNOT], []) == "No family has a score."


def test_the_table_in_every_form():
    rows = [*ROWS, CANNOT, Row("mine", "a folder", scores={"fad": Score(Estimate(5.0))})]
    shown = table(rows)
    assert list(shown["family"]) == ["mine", "slow", "quick", "poor", "upsampler"]
    facts = shown.loc[1, ["parameters", "minutes", "steps", "peak memory"]]
    assert list(facts) == ["1,000", "2", "train 300 in 2", "1.00 GiB"]
    assert shown.loc[1]["FAD"] == "10 (9 … 11), floor 3"
    assert shown.loc[1]["class asked for"] == "50 %"
    assert shown.loc[4]["why not"] == "makes no sound from a request"
    text = markdown("A bake-off", rows, [difference("slow", "poor", -10, 0.001)], ["a note"])
    assert "| FAD     | slow | poor" in text.replace("| score   ", "")
    lines = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert [line["fad"] for line in lines] == ["10.0", "14.0", "20.0", "", "5.0"]
    assert (lines[0]["fad_low"], lines[0]["fad_floor"], lines[0]["steps"]) == ("9.0", "3.0", "300")
    assert r"\toprule" in latex(rows)
    assert "50 \\%" in latex(rows)


def test_the_picture_names_every_row_that_has_both():
    names = {text.get_text() for text in draw("A bake-off", [*ROWS, CANNOT]).axes[0].texts}
    assert names == {"slow", "quick", "poor", "real sounds"}
    assert draw("None", [CANNOT]).axes
    near = [replace(row, seconds_per_second=speed) for row, speed in zip(ROWS, (0.2, 0.3, 0.7), strict=True)]  # within a decade
    for rows in ([*ROWS, CANNOT], near):
        figure = draw("A bake-off", rows)
        figure.savefig(io.BytesIO())
        axes = figure.axes[0]
        ticks = [label.get_text() for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels(which="both")]
        assert any(ticks)
        assert not [text for text in ticks if "$" in text]  # it would be drawn literally


def test_a_distance_below_zero_is_in_the_picture():
    """MMD has no bias, so that of the best may be under zero, where a logarithmic scale ends."""
    few = [
        replace(one, scores={"mmd": Score(Estimate(value, value - 0.1, value + 0.1))})
        for one, value in zip(ROWS, (-0.02, 0.3, 0.5), strict=True)
    ]
    axes = draw("Few", few).axes[0]
    assert axes.get_yscale() == "linear"
    low, high = axes.get_ylim()
    assert low < -0.12 < 0.6 < high
    assert draw("Many", ROWS).axes[0].get_yscale() == "log"


def test_the_page_is_there_without_a_figure(tmp_path, monkeypatch):
    """A figure that could not be drawn is left out."""
    written = []
    for name in ("read_family", "gather"):
        monkeypatch.setattr(f"soundmill.listening.material.{name}", lambda *_: SimpleNamespace(sounds={}))
    monkeypatch.setattr("soundmill.listening.material.real_clips", lambda *_: ({}, {}))
    monkeypatch.setattr("soundmill.listening.side_by_side.write", lambda path, *_, above, **__: written.append(above))
    bakeoff_page.write(tmp_path, tmp_path, "default", "A bake-off", ROWS, [], ["a note"], 0, {})
    assert "Scores" in written[0]
    assert "Quality against speed" not in written[0]
