"""The summary of a pipeline's run in MLflow: scores, reports, what was trained on what, changed parameters."""

import math
from pathlib import Path
from typing import Any

from flows.results_scores import metrics_in
from flows.scores import by_baseline, markdown_table, read_json
from soundmill import attribution, hashing, manifest, tracking
from soundmill.errors import UserError
from soundmill.params import compose, read_yaml

RUN = "#/experiments/{experiment_id}/runs/{run_id}"  # the uploader fills in the ids
TRAINING = "?workflowType=machine_learning"  # otherwise MLflow shows its pages for chats
NESTED = "#/experiments/{experiment_id}/runs" + TRAINING + "&searchFilter=tags.%60mlflow.parentRunId%60%3D%22{run_id}%22"
STAGES = f"[The runs of its stages]({NESTED}): curves, pictures and sounds of each."
SHOWN_CHANGES = 20
SPACE = "&emsp;"  # MLflow leaves no space between cells
MODELS, REPORT, ATTRIBUTION = Path("data/models"), Path("data/report"), Path("data/attribution")


def markdown(root: Path, scores: dict[str, dict[str, Any]]) -> str:
    """The summary in Markdown, without unknown facts; MLflow shows its first lines, and all of it on a click."""
    parts = [_line(root, family, metrics) for family, metrics in scores.items()]
    for family, metrics in scores.items():
        parts += [f"### {family}", _trained(root, family), table(metrics)]
    return "\n\n".join(filter(None, [*parts, STAGES, _changed(root)]))


def _line(root: Path, family: str, metrics: dict[str, Any]) -> str:
    """A family's scores, and a link to its report."""
    values = " · ".join(f"{key} **{metrics[key]:.3g}**" for key in metrics_in([metrics]))
    report = f"[report: the sounds beside real ones]({RUN}/artifacts/{page_of(family)}{TRAINING})"
    return f"{family}: {values}" + (f" · {report}" if (root / REPORT / family / "index.html").exists() else "")


def table(metrics: dict[str, Any]) -> str:
    """A family's scores with 95 % intervals and baselines."""
    keys = metrics_in([metrics])
    names = sorted({name for key in keys for name in metrics["baselines"][key]}, key=by_baseline)
    if not keys:
        return ""
    rows = [["score", "value", "95 % interval", *(name.replace("_", " ") for name in names)]]
    for key in keys:
        baselines, low, high = metrics["baselines"][key], metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        interval = f"{low:.3g} … {high:.3g}" if isinstance(low, float) and isinstance(high, float) else ""
        unfit = " (not ranked)" if key in metrics.get("unranked", {}) else ""
        cells = [f"{baselines[name]:.3g}" if name in baselines else "" for name in names]
        rows.append([key, f"**{metrics[key]:.3g}**{unfit}", interval, *cells])
    return markdown_table(rows, SPACE)


def page_of(family: str) -> str:
    """Path of a family's report among a run's files; MLflow compares only files at the top level."""
    return f"{family}.html"


def record(run: tracking.PipelineRun, root: Path, scores: dict[str, dict[str, Any]]) -> None:
    """Log the scores that the run is listed by, the models' scores, and the reports."""
    family, metrics = best(scores)
    if family:
        run.log_metrics_tree(values_with_intervals(metrics))
        run.set_tags({"family": family if len(scores) == 1 else f"{family} (best of {len(scores)})"})
        if words := _material(root, family):
            run.set_tags({"training_material": words})
    for name in scores:
        if (root / MODELS / name).is_dir():
            unranked = scores[name].get("unranked", {})
            values = {key: value for key, value in values_with_intervals(scores[name]).items() if key not in unranked}
            digest = hashing.model_digest(root / MODELS / name)
            run.log_model_scores(digest, name, values)
        if (table := root / ATTRIBUTION / name / manifest.ATTRIBUTION).is_file():
            run.log_file(table, "attribution", f"{name}.csv")
        for path in sorted((root / REPORT / name).glob("*")):
            if path.name == "index.html":
                run.log_file(path, "", page_of(name))
            else:
                run.log_file(path, f"report/{name}")


def _material(root: Path, family: str) -> str:
    """Whether the terms of its training material are known and none refuses its use; empty before the stage `attribution`."""
    about = read_json(root / ATTRIBUTION / family / "summary.json")
    return attribution.material(about["marks"]) if about else ""


def best(scores: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The family with the lowest ranked distance and its metrics, for the list of runs; empty without scores."""
    if not scores:
        return "", {}
    first = next(iter(metrics_in(scores.values())), None)

    def distance(family: str) -> float:
        value = scores[family].get(first)
        return math.inf if value is None or first in scores[family].get("unranked", {}) else value

    family = min(scores, key=distance)
    return family, scores[family]


def values_with_intervals(metrics: dict[str, Any]) -> dict[str, float]:
    """A family's scores with their intervals, under the names that all families share."""
    keys = [name for key in metrics_in([metrics]) for name in (key, f"{key}_low", f"{key}_high")]
    return {key: metrics[key] for key in keys if isinstance(metrics.get(key), int | float)}


def _trained(root: Path, family: str) -> str:
    trained, corpus = (_metrics(root, name) for name in (f"train/{family}", "corpus"))
    if not trained:
        return ""
    facts = [f"{trained[what]:,} {what}" for what in ("steps", "parameters") if what in trained]
    losses = (("loss", "loss"), ("valid_loss", "held-out loss"))
    facts += [f"{name} {trained[key]:.3g}" for key, name in losses if isinstance(trained.get(key), float)]
    counts = [f"{trained[what]:,} {what}" for what in ("clips", "labels", "captions", "mixes") if trained.get(what)]
    source = f" ({corpus['recordings']:,} recordings)" if "recordings" in corpus else ""
    name = tracking.corpus_name(read_yaml(root / "params.yaml"))
    terms = f" Terms of the recordings: {words}." if (words := _material(root, family)) else ""
    return f"Trained on **{name}**{source}: {', '.join(counts)}; {', '.join(facts)}.{terms}"


def _changed(root: Path) -> str:
    changed = changed_parameters(root)
    if not changed:
        return ""
    rows = [[key, str(value), str(default)] for key, (value, default) in list(changed.items())[:SHOWN_CHANGES]]
    more = f"\n\nand {len(changed) - SHOWN_CHANGES} more" if len(changed) > SHOWN_CHANGES else ""
    return "### Changed from conf/\n\n" + markdown_table([["parameter", "here", "default"], *rows], SPACE) + more


def changed_parameters(root: Path) -> dict[str, tuple[Any, Any]]:
    """Parameters of params.yaml that differ from conf/ without overrides: (value, default) by key."""
    if not (root / "conf" / "config.yaml").exists():
        return {}
    try:
        default = tracking.flatten(compose(root / "conf", []))
    except UserError:
        return {}
    current = tracking.flatten(read_yaml(root / "params.yaml"))
    return {key: (value, default.get(key, "not set")) for key, value in current.items() if value != default.get(key, "not set")}


def _metrics(root: Path, name: str) -> dict[str, Any]:
    return read_json(root / "data" / "metrics" / f"{name}.json")
