"""What `soundmill experiments` shows: the named experiments, and the last scores that were recorded of each."""

import pytest

from soundmill import params, tracking
from tests.commands.running import refused, soundmill, works
from tests.imports import ROOT


@pytest.fixture
def project(home, monkeypatch):
    """A checkout whose conf/ is the project's."""
    monkeypatch.setenv("COLUMNS", "200")
    (home / "conf").symlink_to(ROOT / "conf")
    return home


def record(home, overrides, scores, in_a_stage=False):
    document = params.compose(ROOT / "conf", overrides)
    document.get("experiment", {}).pop("name", None)  # as `dvc exp run` composes it
    params.write_yaml(document, home / "params.yaml")
    with tracking.pipeline_run(home, "a pipeline") as run:
        if in_a_stage:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(tracking.PARENT, run.id)
                with tracking.stage_run(home, "evaluate/ddpm_mel", {}, family="ddpm_mel") as stage:
                    stage.log_metrics_tree(scores)
        else:
            run.log_metrics_tree(scores)


def shown(home, name):
    """The lines about one experiment."""
    done = works("experiments", cwd=home)
    lines = done.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{name}:"))
    return lines[start : next(number for number, line in enumerate(lines[start + 1 :], start + 1) if not line.startswith(" "))]


def test_each_has_its_title_recordings_minutes_and_last_scores(project, bring):
    record(project, ["experiment=esc10_ddpm_mel"], {"fad_yamnet": 20.5, "fad_yamnet_low": 18.0})
    bring(project)
    record(project, ["experiment=esc10_ddpm_mel", "corpus.path=/elsewhere"], {"fad_yamnet": 10.25, "loss": 3.0}, in_a_stage=True)
    record(project, ["experiment=loops_projected_gan", "projected_gan.train.steps=7"], {"kl_tagger": 1.5})
    record(project, ["model=ddpm_mel"], {"fad_yamnet": 1.0})  # of no experiment
    bring(project)
    found = shown(project, "esc10_ddpm_mel")
    assert found == ["esc10_ddpm_mel: The mel DDPM by label", "  ESC-10, 45 minutes of training", "  fad_yamnet 10.2 (a pipeline)"]
    assert shown(project, "loops_projected_gan")[-1] == "  kl_tagger 1.5 (a pipeline; with other projected_gan.train.steps)"
    assert len(shown(project, "esc10_tango")) == 2  # no scores


def test_they_are_listed_where_nothing_is_recorded(project, monkeypatch):
    monkeypatch.setenv(tracking.SWITCH, "off")
    assert len(shown(project, "esc10_tango")) == 2
    assert "No scores: off" in soundmill("experiments", cwd=project).stdout
    monkeypatch.delenv(tracking.SWITCH)
    (project / "mlflow.db").unlink()
    assert "no runs are recorded here yet" in soundmill("experiments", cwd=project).stdout


def test_a_wrong_key_of_an_experiment_is_named(project):
    (project / "conf").unlink()
    folder = project / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("experiment: {name: mine, titel: Mine, corpus: mine, minutes: 1}\n")
    assert "mine.yaml: experiment.titel: unknown key; did you mean 'title'?" in refused("experiments", cwd=project)
    (folder / "mine.yaml").write_text('experiment: {name: mine, title: "[/x] [a]", corpus: "[/y]", minutes: 1}\n')
    assert "mine: [/x] [a]\n  [/y], 1 minutes" in works("experiments", cwd=project).stdout
