"""Rows, intervals and differences with known answers; the paper's numbers and what they are called; tables and the figure."""

import csv
import io

import pytest

from flows import publishing, results, results_table, sweep
from flows.results import Estimate, Outcome, Row, make_rows
from flows.results_table import ResultsTable

PAPER = {"pressure": {"fd": 24.52, "kl": 1.37, "fad": 1.59}, "AudioLDM-L": {"fad": 2.08}}


def scored(fad: float, accuracy: float = 0.5, clips: int = 80, files: str = "a") -> dict:
    return {
        "protocol": "soundmill-2",
        "embedders": {"yamnet": {}},
        "fad_yamnet": fad,
        "fad_yamnet_low": fad - 1,
        "fad_yamnet_high": fad + 2,
        "label_accuracy_yamnet": accuracy,
        "baselines": {"fad_yamnet": {"floor": 1.0}, "label_accuracy_yamnet": {"real": 0.9}, "kl_yamnet": {"floor": 2.0}},
        "counts": {"generated": clips},
        "files": {"reference": files},
    }


def rows_of(*outcomes: Outcome, **paper: str | None) -> list[Row]:
    return make_rows(outcomes, PAPER, paper.get("protocol") or "another", paper.get("files"))


@pytest.mark.parametrize(
    ("distances", "named", "costly"),
    [([20.0, 12.0, 11.5, 11.8], "2", False), ([20.0, 15.0, 12.0], "3", True), ([10.0, 12.0, 14.0], "1", False)],
)
def test_the_knee_is_the_cheapest_row_that_is_as_good_as_the_best(distances, named, costly):
    """Intervals reach one below each value: 12 reaches 11.5, and 15 does not reach 12."""
    rows = make_rows([Outcome(str(n), 0, scored(fad)) for n, fad in enumerate(distances, 1)], {}, "", None)
    (told,) = [note for note in results_table.of_sweep("Ranks", rows, None, True).notes if note.startswith("Knee")]
    assert told.startswith(f"Knee: “{named}” is the cheapest whose fad_yamnet cannot be told from the best, {min(distances):.3g}")
    assert ("more may be better still" in told) == costly
    assert not [note for note in results_table.of_sweep("Ranks", rows, None).notes if note.startswith("Knee")]


def tuned(fad: float, copies: float, of_base: float = 20.0) -> dict:
    """Scores of a fine-tuned model, with its base's, and near-copies of training clips among both models' sounds."""
    metrics = scored(fad) | {"memorised_yamnet": copies, "memorised_yamnet_real": 0.05, "memorised_fingerprint": 0.0}
    metrics["baselines"] = {"fad_yamnet": {"floor": 1.0, "base": of_base}, "label_accuracy_yamnet": {"real": 0.9, "base": 0.25}}
    return metrics | {"base": {"memorised_yamnet": 0.0125, "forgetting": {}}, "unranked": {}}


def test_copies_are_beside_the_scores_and_the_base_is_the_first_row():
    ranks = [Outcome("rank 2", 0, tuned(12.0, 0.1)), Outcome("rank 8", 0, tuned(11.0, 0.5))]
    rows = rows_of(*ranks, Outcome("rank 16", 0, failure="why"))
    assert [row.name for row in rows][:4] == ["base", "rank 2", "rank 8", "rank 16"]
    lines = table(rows).table()
    assert lines["fad_yamnet"].tolist()[:3] == ["20", "12 (11 … 14)", "11 (10 … 13)"]
    assert lines["label_accuracy_yamnet"][0] == "25.0 %"
    # Wilson's interval of 8 of 80
    assert lines["memorised_yamnet"].tolist()[1] == "10.0 % (5.2 % … 18.5 %), real 5.0 %"
    assert lines["memorised_yamnet"][0].startswith("1.2 % (")
    assert lines["memorised_fingerprint"].tolist()[:2] == ["–", "0.0 % (0.0 % … 4.6 %)"]
    assert rows[1].scores["fad_yamnet"].difference == Estimate(-8.0)
    assert "memorised_…: share of near-copies" in table(rows).markdown()
    lines = list(csv.reader(io.StringIO(results_table.csv_of_seeds(rows))))
    assert ["base", "score", "0", "fad_yamnet", "20.0", "", "", ""] in lines
    assert not [axes for axes in publishing.draw("Ranks", rows).axes if "copies" in axes.get_xlabel()]


def test_bases_that_differ_are_a_row_each():
    pairs = [(name, of_base, seed) for name, of_base in (("one", 20.0), ("two", 30.0)) for seed in (0, 1)]
    outcomes = [Outcome(name, seed, tuned(12.0 + seed, 0.1, of_base + seed)) for name, of_base, seed in pairs]
    assert [row.name for row in rows_of(*outcomes[:2])][:2] == ["base", "one"]
    rows = rows_of(*outcomes)
    assert [row.name for row in rows][:4] == ["base of one", "base of two", "one", "two"]
    assert [rows[number].scores["fad_yamnet"].total.value for number in (0, 1)] == [20.5, 30.5]


def test_a_base_that_fine_tuning_does_not_better_is_the_knee():
    rows = make_rows([Outcome(str(n), 0, tuned(fad, 0.1, 10.0)) for n, fad in enumerate((15.0, 12.0), 1)], {}, "", None)
    (told,) = [note for note in results_table.of_sweep("Ranks", rows, None, True).notes if note.startswith("Knee")]
    assert told.startswith("Knee: “base” is the cheapest")


def test_one_seed_keeps_its_bootstrap_interval():
    pressure, none, theirs = rows_of(Outcome("pressure", 0, scored(10.0)), Outcome("none", 0, scored(12.0)))
    assert pressure.scores["fad_yamnet"].total == Estimate(10.0, 9.0, 12.0)
    assert none.scores["fad_yamnet"].difference == Estimate(2.0)  # one pair has no interval
    assert list(none.scores) == ["fad_yamnet", "label_accuracy_yamnet"]  # kl has baselines, and no value
    assert (theirs.name, theirs.scores, theirs.paper) == ("AudioLDM-L", {}, {"fad": 2.08})


def test_several_seeds_have_students_interval_and_differences_are_taken_seed_by_seed():
    # 10, 12, 14: mean 12, standard error 2/√3, t(0.975, 2) = 4.302653; the differences 3, 3, 3 have no spread
    rows = rows_of(
        *(Outcome("pressure", seed, scored(10.0 + 2 * seed, accuracy=0.5 + 0.25 * seed)) for seed in range(3)),
        *(Outcome("none", seed, scored(13.0 + 2 * seed)) for seed in range(3)),
    )
    total = rows[0].scores["fad_yamnet"].total
    half = 4.302652729911275 * 2 / 3**0.5
    assert (total.value, total.low, total.high) == pytest.approx((12.0, 12.0 - half, 12.0 + half))
    share = rows[0].scores["label_accuracy_yamnet"].total
    assert (share.value, share.low, share.high) == (0.75, pytest.approx(0.75 - half / 8), 1.0)
    difference = rows[1].scores["fad_yamnet"].difference
    assert (difference.value, difference.low, difference.high) == pytest.approx((3.0, 3.0, 3.0))
    assert results_table.differences(rows)["fad_yamnet"].tolist() == ["+3 (+3 … +3)"]
    assert table(rows).table()["seeds"][0] == "0 1 2"


def test_differences_are_over_the_seeds_that_both_have_and_failures_are_named():
    failed = Outcome("pressure", 1, failure="stage train@tango failed: it ran out of memory")
    done = [Outcome("none", 0, scored(11.0)), Outcome("none", 1, scored(20.0))]
    rows = rows_of(Outcome("pressure", 0, scored(10.0)), failed, *done)
    assert rows[1].scores["fad_yamnet"].total.value == 15.5
    assert rows[1].scores["fad_yamnet"].difference == Estimate(1.0)
    record = table(rows).table().iloc[0]
    assert record["failed"] == "seed 1: stage train@tango failed: it ran out of memory"
    assert record["fad_yamnet"] == "10"  # no interval over clips in a table of intervals over seeds
    assert "it ran out of memory" in table(rows, "table 4").markdown()


def table(rows: list[Row], source: str | None = None) -> ResultsTable:
    return results_table.of_sweep("Mixup", rows, source)


@pytest.mark.parametrize(
    ("protocol", "files", "comparable"),
    [("soundmill-2", "a", True), ("soundmill-2", "b", False), ("soundmill-2", None, False), ("audioldm_eval-16k", "a", False)],
)
def test_the_papers_numbers_are_other_data_unless_protocol_and_files_agree(protocol, files, comparable):
    rows = rows_of(Outcome("pressure", 0, scored(10.0)), protocol=protocol, files=files)
    assert (rows[0].compares_with == "") is comparable
    text = table(rows, "Ghosal et al. 2023, table 4").markdown()
    assert ("FD 24.52, KL 1.37, FAD 1.59 (other data)" in text) is not comparable
    assert "FD 24.52, KL 1.37, FAD 1.59" in text
    assert "FAD 2.08 (other data)" in text  # what we have no row for is never ours to compare


def test_scores_by_the_papers_own_protocol_are_columns_and_compare_with_it():
    block = {"protocol": "audioldm_eval-16k-1", "embedders": {"vggish": {}, "panns_cnn14_16k": {}}, "unranked": {}}
    block |= {"fad_vggish": 2.5, "fad_vggish_low": 2.0, "fad_vggish_high": 3.0, "fd_panns_cnn14_16k": 30.0}
    block |= {"baselines": {"fad_vggish": {"floor": 0.5}, "fd_panns_cnn14_16k": {"floor": 9.0}}}
    metrics = scored(10.0) | {"protocols": {"audioldm_eval-16k": block}}
    rows = rows_of(Outcome("pressure", 0, metrics), protocol="audioldm_eval-16k-1", files="a")
    assert rows[0].compares_with == "@audioldm_eval-16k"
    shown = table(rows[:1], "Ghosal et al. 2023, table 4")
    cells = shown.table().iloc[0].to_dict()
    assert cells["fad_vggish@audioldm_eval-16k"] == "2.5 (2 … 3)"
    assert (cells["fd_panns_cnn14_16k@audioldm_eval-16k"], cells["paper"]) == ("30", "FD 24.52, KL 1.37, FAD 1.59")
    assert "measured by the same protocol on the same files" in " ".join(shown.notes)
    panels = {axes.get_xlabel() for axes in publishing.draw("Table 4", rows[:1]).axes if axes.get_xlabel()}
    assert "Fréchet distance · vggish@audioldm_eval-16k   ← better" in panels
    assert sum("FD in the paper" in label for label in panels) == 0  # on the panel of our FD
    (of_family,) = [results.scores_under("yamnet", {0: metrics})]
    assert list(of_family) == ["fad", "label_accuracy", "fad_vggish@audioldm_eval-16k", "fd_panns_cnn14_16k@audioldm_eval-16k"]
    columns = results_table.of_bakeoff("Systems", [Row("TANGO", of_family)], [], []).table()
    assert "FAD vggish@audioldm_eval-16k" in columns


def test_groups_of_prompts_have_the_scores_by_other_protocols_too():
    block = {"protocol": "audioldm_eval-16k-1", "files": {}, "embedders": {"vggish": {}}}
    block["subsets"] = {
        "events": {"one event": {"fad_vggish": 2.5, "baselines": {"fad_vggish": {}}}, "several events": {"counts": {}}}
    }
    metrics = scored(10.0) | {"subsets": {"events": {"one event": scored(9.0), "several events": scored(11.0)}}}
    one, several = rows_of(
        *(
            Outcome(group, 0, sweep.of_group(metrics | {"protocols": {"audioldm_eval-16k": block}}, "events", group))
            for group in block["subsets"]["events"]
        ),
        protocol="audioldm_eval-16k-1",
        files="a",
    )[:2]
    assert one.scores["fad_vggish@audioldm_eval-16k"].total.value == 2.5
    assert (one.scores["fad_yamnet"].total.value, several.scores["fad_yamnet"].total.value) == (9.0, 11.0)
    assert (one.compares_with, "fad_vggish@audioldm_eval-16k" in several.scores) == ("@audioldm_eval-16k", False)


def test_every_number_is_in_the_csv():
    rows = rows_of(Outcome("pressure", 0, scored(10.0)), Outcome("pressure", 1, scored(11.0)), Outcome("none", 0, failure="why"))
    lines = list(csv.reader(io.StringIO(results_table.csv_of_seeds(rows))))
    assert ["pressure", "score", "1", "fad_yamnet", "11.0", "10.0", "13.0", ""] in lines
    assert ["pressure", "paper (other data)", "", "fad", "1.59", "", "", ""] in lines
    assert ["none", "failed", "0", "", "", "", "", "why"] in lines


def test_a_metric_that_ranks_no_models_has_no_difference_and_says_why():
    reason = "unfit for these sets: noise (0.9) is as good as real sound (1)"
    outcomes = [
        Outcome(name, seed, scored(fad + seed) | {"unranked": {"fad_yamnet": reason}})
        for name, fad in (("pressure", 10.0), ("none", 12.0))
        for seed in (0, 1)
    ]
    rows = rows_of(*outcomes)
    assert rows[1].scores["fad_yamnet"].difference is None
    assert rows[1].scores["label_accuracy_yamnet"].difference == Estimate(0.0, 0.0, 0.0)
    assert table(rows).table()["fad_yamnet"][0].endswith("†")
    assert results_table.differences(rows)["fad_yamnet"].tolist() == ["–"]
    assert f"- † fad_yamnet is not ranked: {reason}." in table(rows).markdown()
    assert reason in results_table.csv_of_seeds(rows)
    assert any("not ranked" in axes.get_xlabel() for axes in publishing.draw("Mixup", rows).axes)


def test_scores_of_an_older_protocol_do_not_compare():
    old = scored(10.0) | {"protocol": "soundmill-1"}
    rows = rows_of(Outcome("pressure", 0, old), Outcome("none", 0, scored(12.0)))
    assert rows[0].scores == {}
    assert rows[0].failures == {0: "scored by soundmill-1, which does not compare with soundmill-2: score it again"}
    assert rows[1].scores["fad_yamnet"].difference is None
    assert "scored by soundmill-1, which does not compare" in table(rows).markdown()


def test_a_withheld_score_is_no_number():
    rows = rows_of(Outcome("pressure", 0, scored(10.0) | {"fad_yamnet": None}))
    assert list(rows[0].scores) == ["label_accuracy_yamnet"]


def test_rows_of_different_size_are_warned_of():
    alike = results_table.notes(rows_of(Outcome("one", 0, scored(1.0)), Outcome("two", 0, scored(1.0))), None)
    other = results_table.notes(rows_of(Outcome("one", 0, scored(1.0)), Outcome("two", 0, scored(1.0, clips=7))), None)
    assert [line for line in other if line not in alike] == [
        "Rows have different numbers of clips: Fréchet distances of fewer clips are biased upward."
    ]


def test_the_figure_has_a_panel_for_each_metric_and_shows_intervals_failures_and_the_paper():
    rows = rows_of(Outcome("pressure", 0, scored(10.0)), Outcome("pressure", 1, scored(12.0)), Outcome("none", 0, failure="why"))
    figure = publishing.draw("Mixup", rows)
    panels = {axes.get_xlabel().split(" ·")[0]: axes for axes in figure.axes}
    assert set(panels) == {"Fréchet distance", "Label accuracy", "FAD in the paper (other data)"}
    ends = [tuple(line.get_xdata()) for line in panels["Fréchet distance"].lines if len(line.get_xdata()) == 2]
    assert {(9.0, 12.0), (11.0, 14.0)} < set(ends)  # each seed's own
    assert min(ends)[0] < 0  # the mean's over seeds, which is wider
    assert "failed" in [text.get_text() for text in panels["Fréchet distance"].texts]
    assert [line.get_xdata()[0] for line in panels["FAD in the paper (other data)"].lines] == [1.59, 2.08]
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend[0] == "mean of 2 seeds, 95 % over seeds"
    assert legend[-1] == "paper (other data: scale above)"


def test_rows_may_be_named_by_any_label():
    rows = rows_of(Outcome("$x^$", 0, scored(10.0)), Outcome(r"_^}{%#&\n🐶 " * 1000, 0, scored(12.0)))
    figure = publishing.draw("$x^$", rows)
    figure.savefig(io.BytesIO(), format="png")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "$x^$"
    assert len(names[1]) == publishing.LONGEST_NAME


def test_a_figure_that_fails_loses_no_table(tmp_path, no_picture, capsys):
    (tmp_path / "figure.png").write_bytes(b"of fewer rows")
    rows = rows_of(Outcome("one", 0, scored(10.0)))
    publishing.write(tmp_path, table(rows))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.json", "table.md"]
    assert f"{tmp_path / 'figure.png'} could not be made: MemoryError: no picture" in capsys.readouterr().err


def test_nothing_done_is_a_table_too():
    rows = make_rows([Outcome("pressure", 0, failure="why")], {}, "", None)
    assert "seed 0: why" in table(rows).markdown()
    publishing.draw("Mixup", rows).canvas.draw()
