"""Which family's scores a pipeline's run is listed by."""

from flows import summary


def scored(fad: float | None, unranked: bool = False) -> dict[str, object]:
    metrics = {"fad_tagger": fad, "baselines": {"fad_tagger": {"floor": 1.0}}, "embedders": {"tagger": {}}}
    return metrics | ({"unranked": {"fad_tagger": "the model was trained against tagger"}} if unranked else {})


def test_the_best_family_has_the_lowest_distance_of_those_that_are_ranked():
    scores = {"poor": scored(9.0), "withheld": scored(None), "own_loss": scored(0.5, unranked=True), "good": scored(3.0)}
    assert summary.best(scores) == ("good", scores["good"])
    assert summary.best({}) == ("", {})
    assert summary.best({"alone": scored(None)})[0] == "alone"
