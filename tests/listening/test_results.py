"""The result of a listening test, as people read it."""

from soundmill.listening import results


def test_any_name_is_shown_as_it_is(capsys):
    """Brackets are letters, whatever they mean to what prints."""
    names = ("[run]", "[/run]", "a [bold]")
    means = {name: {"mean": 3.0, "low": 2.0, "high": 4.0} for name in names}
    line = {"a": names[0], "b": names[1], "difference": 0.5, "low": 0.1, "high": 0.9, "p": 0.01, "p_corrected": 0.01}
    part = {"means": means, "differences": [{**line, "better": names[1]}], "agreement": None, "correlation": {}}
    result = {
        "test": "[/test]",
        "scale": "1 to 5",
        "requests": 2,
        "raters": {"passed": ["one"], "failed": {}},
        "questions": {"quality": part},
        "failed_means": {},
        "warnings": [],
    }
    results.show(result)
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*names, "[/test]", "[run] − [/run]"))
    assert shown.count("[/run]") == 3
