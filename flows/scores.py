"""The scores of all families as text: for the terminal, for Prefect, and for the pipeline's run in MLflow."""

import json
import math
from pathlib import Path
from typing import Any

from flows.results import metrics_in
from flows.terminal import tell
from soundmill import params, tracking
from soundmill.errors import UserError
from soundmill.params import read_yaml

RUN = "#/experiments/{experiment_id}/runs/{run_id}"  # the uploader fills in the ids
TRAINING = "?workflowType=machine_learning"  # otherwise MLflow shows its pages for chats
NESTED = "#/experiments/{experiment_id}/runs" + TRAINING + "&searchFilter=tags.%60mlflow.parentRunId%60%3D%22{run_id}%22"
SHOWN_CHANGES = 20
SPACE = "&emsp;"  # MLflow leaves no space between cells
BASELINES = ("floor", "real", "codec_floor", "codec", "silence", "noise", "chance")  # in this order, before others
MODELS, REPORT, ATTRIBUTION = Path("data/models"), Path("data/report"), Path("data/attribution")


def read_scores(root: Path) -> dict[str, dict[str, Any]]:
    """`data/metrics/evaluate/<family>.json` of every family of params.yaml that has one."""
    scores = {}
    for name in sorted(_families(root)):
        path = root / "data" / "metrics" / "evaluate" / f"{name}.json"
        if not path.exists():
            continue
        try:
            scores[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            tell(f"{path}: not readable as JSON ({error}); `dvc repro` rebuilds it")
    return scores


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def rows(scores: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A header, then a row per family and score: the value and its baselines."""
    keys = [(family, metrics, key) for family, metrics in scores.items() for key in metrics_in([metrics])]
    found = {name for _, metrics, key in keys for name in metrics["baselines"][key]}
    names = [*(name for name in BASELINES if name in found), *sorted(found.difference(BASELINES))]
    table = [["family", "score", "value", *(name.replace("_", " ") for name in names)]]
    for family, metrics, key in keys:
        baselines, unranked = metrics["baselines"][key], "†" if key in metrics.get("unranked", {}) else ""
        cells = (f"{baselines[name]:.3g}" if name in baselines else "" for name in names)
        table.append([family, key, f"{metrics[key]:.3g}{unranked}", *cells])
    return table


def markdown(scores: dict[str, dict[str, Any]]) -> str:
    table = rows(scores)
    return markdown_table(table) if len(table) > 1 else "No scores with baselines in data/metrics/evaluate."


def markdown_table(rows: list[list[str]], gap: str = " ") -> str:
    """A Markdown table; the first row is its head, and `gap` ends each cell but the last."""
    lines = [[" ".join(cell.replace("|", r"\|").splitlines()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *body = [f"| {f'{gap}| '.join(map(str.ljust, cells, widths))} |" for cells in lines]
    return "\n".join([head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *body])


def closing_lines(root: Path, scores: dict[str, dict[str, Any]], page: str | None = None) -> list[str]:
    """The last lines on the terminal: scores, paths of sounds and reports, the run's `page` in MLflow, other families to train."""
    lines = [""]
    table = rows(scores)
    if len(table) > 1:
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = [f"{cell:{'<' if index < 2 else '>'}{widths[index]}}" for index, cell in enumerate(row)]
            lines.append("  ".join(cells).rstrip())
        lines.append(
            "  fad, mmd, kl: lower is better; label_accuracy: higher. Next to it: the same of real clips, the codec, silence"
        )
        if any("†" in row[2] for row in table):
            lines.append("  † not ranked; the report says why")
        protocols = {family: metrics.get("protocol") for family, metrics in scores.items()}
        if len(set(protocols.values())) > 1:
            listed = ", ".join(f"{family} by {protocol}" for family, protocol in protocols.items())
            lines.append(f"  These scores are not comparable: {listed}; `dvc repro` scores all by the newest protocol")
        for family, metrics in scores.items():  # between which degraded real sounds its sounds are
            sentences = metrics.get("ladder", {}).get("sentences", {})
            places = [text for key, text in sentences.items() if key.startswith("fad_")]
            lines += [f"  {family}: {text}" if len(scores) > 1 else f"  {text}" for text in places]
        lines.append("")
    for family in scores:
        sounds = sorted((root / "data" / "generated" / family).glob("*.wav"))
        if sounds:
            lines.append(f"Sounds   {shown(sounds[0].parent, root)} (WAV files: {len(sounds)})")
        report = root / "data" / "report" / family / "index.html"
        if report.exists():
            lines.append(f"Report   {shown(report, root)} (open it in a web browser: the sounds next to real ones)")
    lines.append(f"Runs     make browse, then {page}" if page else "Runs     make browse")
    others = sorted({path.stem for path in (root / "conf" / "model").glob("*.yaml")} - _families(root))
    if others and root.parent.name != tracking.WORKSPACES:  # a sweep or bake-off chooses its families
        lines.append(f"More     make run MODEL=NAME, one of {', '.join(others)}")
    return lines


def _families(root: Path) -> set[str]:
    return set(read_yaml(root / "params.yaml").get("families") or {})


def shown(path: Path, root: Path) -> Path:
    """The path relative to the project, also if `root` is one of its workspaces."""
    home = root.parents[1] if root.parent.name == tracking.WORKSPACES else root
    return path.relative_to(home)


# In MLflow


def summary(root: Path, scores: dict[str, dict[str, Any]]) -> str:
    """The page of a pipeline's run in MLflow, without unknown facts: scores, reports, what was trained on what, changes."""
    parts = []
    for family, metrics in scores.items():  # a line each, with a link to its report
        values = " · ".join(f"{key} **{metrics[key]:.3g}**" for key in metrics_in([metrics]))
        report = f" · [report: the sounds beside real ones]({RUN}/artifacts/{family}.html{TRAINING})"
        parts.append(f"{family}: {values}{report if (root / REPORT / family / 'index.html').exists() else ''}")
    for family, metrics in scores.items():
        parts += [f"### {family}", _trained(root, family), _with_intervals(metrics)]
    parts.append(f"[The runs of its stages]({NESTED}): curves, pictures and sounds of each.")
    if changed := changed_parameters(root):
        cells = [[key, str(value), str(default)] for key, (value, default) in list(changed.items())[:SHOWN_CHANGES]]
        parts.append("### Changed from conf/\n\n" + markdown_table([["parameter", "here", "default"], *cells], SPACE))
        parts.append(f"and {len(changed) - SHOWN_CHANGES} more" if len(changed) > SHOWN_CHANGES else "")
    return "\n\n".join(filter(None, parts))


def _with_intervals(metrics: dict[str, Any]) -> str:
    (_, *head), *scored = rows({"": metrics})
    table = [[*head[:2], "95 % interval", *head[2:]]]
    for _, key, _, *baselines in scored:
        low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        interval = f"{low:.3g} … {high:.3g}" if isinstance(low, float) and isinstance(high, float) else ""
        unfit = " (not ranked)" if key in metrics.get("unranked", {}) else ""
        table.append([key, f"**{metrics[key]:.3g}**{unfit}", interval, *baselines])
    return markdown_table(table, SPACE) if scored else ""


def record(run: tracking.PipelineRun, root: Path, scores: dict[str, dict[str, Any]]) -> None:
    """Log the scores that the run is listed by, the models' scores, and the reports."""
    from soundmill import hashing, manifest

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
                run.log_file(path, "", f"{name}.html")  # at the top level: MLflow compares only files there
            else:
                run.log_file(path, f"report/{name}")


def _material(root: Path, family: str) -> str:
    """Whether the terms of its training material are known and none refuses its use; empty before the stage `attribution`."""
    from soundmill import attribution

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
    document = read_yaml(root / "params.yaml")
    stage = "scan" if (document.get("corpus") or {}).get("external") else "corpus"  # the other's file may be an earlier corpus's
    trained, corpus = (read_json(root / "data/metrics" / f"{name}.json") for name in (f"train/{family}", stage))
    if not trained:
        return ""
    facts = [f"{trained[what]:,} {what}" for what in ("steps", "parameters") if what in trained]
    losses = (("loss", "loss"), ("valid_loss", "held-out loss"))
    facts += [f"{name} {trained[key]:.3g}" for key, name in losses if isinstance(trained.get(key), float)]
    counts = [f"{trained[what]:,} {what}" for what in ("clips", "labels", "captions", "mixes") if trained.get(what)]
    source = f" ({corpus['recordings']:,} recordings)" if "recordings" in corpus else ""
    name = tracking.corpus_name(document)
    terms = f" Terms of the recordings: {words}." if (words := _material(root, family)) else ""
    return f"Trained on **{name}**{source}: {', '.join(counts)}; {', '.join(facts)}.{terms}"


def changed_parameters(root: Path) -> dict[str, tuple[Any, Any]]:
    """Parameters of params.yaml that differ from conf/ without overrides: (value, default) by key."""
    if not (root / "conf" / "config.yaml").exists():
        return {}
    try:
        default = tracking.flatten(params.compose(root / "conf", []))
    except UserError:
        return {}
    current = tracking.flatten(read_yaml(root / "params.yaml"))
    return {key: (value, default.get(key, "not set")) for key, value in current.items() if value != default.get(key, "not set")}
