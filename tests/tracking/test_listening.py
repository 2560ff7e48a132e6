"""What a listening test leaves in MLflow: a run of its own, and one for each model with ears beside the other scores."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.commands.running import soundmill
from tests.listening.answering import answered, make_key, write
from tests.tracking.reading import files, runs, text

LIKED = {"tiny": 4, "other": 3, "real": 5, "bad": 1}


def test_a_listening_test_stands_beside_the_scores(home: Path, bring: Callable[[Path], None]) -> None:
    (home / "dvc.yaml").write_text("stages: {}\n")
    facts = {"tiny": {"family": "tiny", "weights": "abc", "scores": {"fad_x": 2.5}}, "other": {"scores": {"fad_x": 7.0}}}
    key = make_key(["tiny", "other"], 3, **facts)
    (home / "listening-test").mkdir()
    write(home / "listening-test" / "key.json", key.model_dump(mode="json"))
    for rater in (1, 2):
        write(home / f"{rater}.json", answered(key, rater, lambda question, systems, *_: LIKED[systems[0]]))
    done = soundmill("listening-test", "score", "1.json", "2.json", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "recorded in MLflow: listening test 0123456789ab" in done.stdout
    bring(home)
    found = runs(home)
    whole, tiny, other = (found[f"{name}listening test {key.test}"] for name in ("", "tiny · ", "other · "))
    assert (whole.data.metrics["counts.passed"], whole.data.metrics["questions.quality.agreement"]) == (2, 1)
    assert {run.data.tags["mlflow.parentRunId"] for run in (tiny, other)} == {whole.info.run_id}
    assert {run.data.tags["kind"] for run in (whole, tiny, other)} == {"listening-test"}
    assert tiny.data.metrics == {"fad_x": 2.5, "mos_quality": 4.0, "mos_quality_low": 4.0, "mos_quality_high": 4.0}
    assert (other.data.metrics["mos_quality"], other.data.tags["family"]) == (3.0, "other")
    assert "metrics.json" in files(home, whole.info.run_id)
    kept = json.loads(text(home, whole.info.run_id, "metrics.json"))
    assert kept["raters"] == {"passed": [1, 2], "failed": {}}


def test_with_tracking_off_nothing_is_said_of_it(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("SOUNDMILL_TRACKING", "off")
    (home / "dvc.yaml").write_text("stages: {}\n")
    key = make_key(["tiny"], 3)
    write(home / "key.json", key.model_dump(mode="json"))
    write(home / "1.json", answered(key, 1, lambda question, systems, *_: LIKED[systems[0]]))
    done = soundmill("listening-test", "score", "1.json", "--key", "key.json", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "MLflow" not in done.stdout
    assert "One rater passed" in done.stdout
