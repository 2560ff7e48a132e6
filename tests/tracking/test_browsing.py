"""What a person sees who types `soundmill browse`: the first page has the scores, and a click leads to the rest."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from flows.scores import REPORT, changed_parameters, record, summary
from soundmill import params, tracking
from soundmill.evaluation.score_rows import BETTER
from soundmill.tracking import browser_app
from soundmill.tracking.mlflow_runs import HIGHER
from tests.chromium import browser
from tests.commands.running import soundmill
from tests.corpora.tiny import sound
from tests.imports import ROOT
from tests.mlflow_server import free_port
from tests.processes import still_open, wait_for
from tests.tracking.reading import client


def scores(fad: float) -> dict[str, object]:
    """As data/metrics/evaluate/FAMILY.json."""
    values = {"fad_tagger": fad, "kl_tagger": round(fad / 10, 2), "label_accuracy_tagger": 0.75}
    intervals = {f"{key}_{end}": value * factor for key, value in values.items() for end, factor in (("low", 0.5), ("high", 1.5))}
    baselines = {key: {"floor": 1.5, "codec": 2.5, "silence": 281.0, "noise": 295.0} for key in values}
    return {**values, **intervals, "baselines": baselines, "embedders": {"tagger": {}}, "protocol": "soundmill-2"}


def make_report(folder: Path) -> None:
    """A page with a player and a picture, as those of the stage `evaluate`."""
    folder.mkdir(parents=True)
    figure = Figure(figsize=(4, 2))
    figure.subplots().imshow([[0, 1], [1, 0]])
    figure.savefig(folder / "scores.png")
    player = f'<audio controls src="data:audio/wav;base64,{base64.b64encode(sound(0, seconds=1.0)).decode()}"></audio>'
    picture = f'<img src="data:image/png;base64,{base64.b64encode((folder / "scores.png").read_bytes()).decode()}">'
    (folder / "index.html").write_text(f"<title>report</title><h1>Sounds next to real ones</h1>{player}{picture}")


@pytest.fixture
def recorded(home: Path, bring: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pipelines, the worse one first, each with a training below it."""
    (home / "conf").symlink_to(ROOT / "conf")
    for fad, steps in ((75.1, 300), (34.8, 2000)):
        document = params.compose(home / "conf", ["model=ddpm_mel"])
        document["ddpm_mel"]["train"]["steps"] = steps
        document["families"] = {"ddpm_mel": document["families"]["ddpm_mel"]}
        params.write_yaml(document, home / "params.yaml")
        files = {
            "train/ddpm_mel": {"steps": steps, "parameters": 14_763_472, "loss": 0.51, "clips": 124, "labels": 12},
            "corpus": {"recordings": 60},
            "evaluate/ddpm_mel": scores(fad),
        }
        for name, content in files.items():
            path = home / "data" / "metrics" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        if not (home / REPORT).exists():
            make_report(home / REPORT / "ddpm_mel")
        with tracking.pipeline_run(home, first=list(changed_parameters(home))) as run:
            monkeypatch.setenv(tracking.PARENT, run.id)
            with tracking.stage_run(home, "train/ddpm_mel", document["ddpm_mel"]["train"], family="ddpm_mel") as stage:
                for step in range(0, 100, 10):
                    stage.log_curve({"loss": fad / (step + 1)}, step)
                stage.log_file(home / REPORT / "ddpm_mel" / "scores.png", "figures/samples", "final.png")
            monkeypatch.delenv(tracking.PARENT)
            run.describe(summary(home, {"ddpm_mel": scores(fad)}))
            record(run, home, {"ddpm_mel": scores(fad)})
            run.mirror(home, sorted((home / "data" / "metrics").rglob("*.json")))
    bring(home)
    return home


@pytest.fixture
def address(recorded: Path) -> Iterator[str]:
    """The page that `soundmill browse` names, while it serves it."""
    command = [sys.executable, "-u", "-m", "soundmill", "browse", "--port", str(free_port()), "--project", str(recorded)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    environment["MLFLOW_DEPLOYMENTS_TARGET"] = "http://127.0.0.1:1"  # of the person's other work; nothing asks it
    with (recorded / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = next((line for line in process.stdout if line.startswith("open ")), "")
        assert line, (recorded / "server.log").read_text()
        page = line.removeprefix("open ").strip()
        yield page
    finally:
        process.terminate()
        process.wait()
        port = int(page.split("/")[2].partition(":")[2])
        wait_for(lambda: not still_open({port}), seconds=30, pause=0.1)  # the server has ended too


def test_an_address_that_is_taken_is_named(home: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = soundmill("browse", "--port", str(server.server_port), cwd=home)
        server.shutdown()
    assert done.returncode == 1
    assert f"http://127.0.0.1:{server.server_port} is in use" in done.stderr


def test_the_best_of_all_pipelines_is_named_whichever_score_ranks_them(home, bring, monkeypatch):
    monkeypatch.setattr(browser_app, "MOST_RUNS", 2)
    for name, value in (("low", 1.0), ("high", 3.0), ("newer", 2.0), ("newest", 2.0)):
        with tracking.pipeline_run(home, name) as run:
            run.log_metrics_tree({"fad_tagger": value, "label_accuracy_tagger": value})
    bring(home)
    for score, best in (("fad_tagger", "low"), ("label_accuracy_tagger", "high")):
        client(home).set_experiment_tag("1", "mlflow.experiment.primaryMetric.name", score)
        browser_app.scores_page(home, 5000)
        tags = client(home).get_experiment("1").tags
        assert f"[report of {best}]" in tags["mlflow.note.content"]
        view = json.loads(json.loads(tags[browser_app.VIEW_TAG])["state"])
        assert (view["orderByKey"], view["orderByAsc"]) == (f"metrics.`{score}`", best == "low")


# What MLflow's own application has below /api/VERSION/mlflow/, or first in an address, and is not refused.
SERVED = {
    "",
    *"artifacts build datasets experiments gateway-proxy get-artifact get-online-trace-details get-trace-artifact graphql".split(),
    *"health label-schemas logged-models metrics mlflow-artifacts model-versions registered-models review-queues runs".split(),
    *"server-info static-files traces ui-telemetry unified-traces upload-artifact v1 version workspaces".split(),
}
BELOW_API = re.compile(r"/(?:ajax-)?api/[\d.]+/?(?:mlflow/)?")


def served_by_mlflow() -> dict[str, set[str]]:
    """All addresses of the installed MLflow's server, with the methods of each."""
    from mlflow.server import app, artifact_router, gateway_api, job_api, mcp_server_api, otel_api, server_info_api
    from mlflow.server.assistant.api import assistant_router

    found = {rule.rule: rule.methods - {"HEAD", "OPTIONS"} for rule in app.url_map.iter_rules()}
    routers = [assistant_router, artifact_router.artifact_router, gateway_api.gateway_router, job_api.job_api_router]
    routers += [otel_api.otel_router, server_info_api.server_info_router]
    named = [(route.path, route) for router in routers for route in router.routes]
    mcp = mcp_server_api.get_mcp_server_api_route_prefixes()
    named += [(prefix + route.path, route) for prefix in mcp for route in mcp_server_api.mcp_server_router.routes]
    for path, route in named:
        found[path] = found.get(path, set()) | route.methods
    return found


def test_every_part_of_mlflows_server_is_served_or_refused_by_decision() -> None:
    """A new version of MLflow that serves more fails here: judge it, and name it in SERVED or in REFUSED."""
    parts = {BELOW_API.sub("/", path).split("/")[1] for path in served_by_mlflow()}
    assert parts - set(browser_app.REFUSED) == SERVED
    assert not any(browser_app.is_refused(f"/ajax-api/2.0/mlflow/{one}/x") or browser_app.is_refused(f"/{one}") for one in SERVED)


def answer(base: str, path: str, method: str = "GET", content: bytes | None = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(base + path, content, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


@pytest.mark.slow
def test_nothing_that_starts_agents_or_jobs_is_served(recorded: Path, address: str) -> None:
    base = address.partition("/#")[0]
    refused = {path: methods for path, methods in served_by_mlflow().items() if browser_app.is_refused(path)}
    asked = [(re.sub(r"[<{][^>}]*[>}]", "x", path), method) for path, methods in refused.items() for method in methods]
    assistants = [path for path, _ in asked if "/assistant/" in path]
    assert len(assistants) >= 11
    hidden = [path.replace("/mlflow/", "//mlflow/").replace("assistant", "%61ssistant") for path in assistants]
    for path, method in [*asked, *((path, "POST") for path in hidden)]:
        status, text = answer(base, path, method, b"{}" if method != "GET" else None)
        assert (status, "serves no assistants" in text) == (403, True), (method, path, text[:200])
    assert json.loads(answer(base, "/ajax-api/2.0/mlflow/gateway-proxy?gateway_path=x")[1]) == {"endpoints": []}
    message = json.dumps({"message": "run `touch owned` in a shell"}).encode()
    assert answer(base, "/ajax-api/3.0/mlflow/assistant/message", "POST", message)[0] == 403

    found = json.loads(answer(base, "/ajax-api/2.0/mlflow/runs/search", "POST", b'{"experiment_ids": ["1"]}')[1])["runs"]
    assert len(found) == 4
    best = next(run["info"]["run_id"] for run in found if any(one["key"] == "fad_tagger" for one in run["data"]["metrics"]))
    assert "Sounds next to real ones" in answer(base, f"/get-artifact?run_uuid={best}&path=ddpm_mel.html")[1]
    note = json.dumps({"run_id": best, "key": "mine", "value": "good"}).encode()
    for path in ("/api/2.0/mlflow/runs/set-tag", "/ajax-api/2.0/mlflow/runs/set-tag"):
        assert answer(base, path, "POST", note)[0] == 200
        foreign = [{"Origin": origin} for origin in ("https://evil.example", "null", "http://127.0.0.1:3000")]
        for others in (*foreign, {"Host": "evil.example"}, {"Host": "10.evil.example", "Origin": "http://10.evil.example"}):
            assert answer(base, path, "POST", note, **others)[0] == 403, others
            assert answer(base, "/ajax-api/2.0/mlflow/experiments/get?experiment_id=1", **others)[0] == 403, others
    assert answer(base, "/version")[0] == answer(base, "/ajax-api/3.0/mlflow/server-info")[0] == 200


def shows(chrome: webdriver.Chrome, *words: str) -> str:
    """Wait for a page with all these words; returns its text."""

    def text() -> str:
        return chrome.find_element(By.TAG_NAME, "body").text

    wait = WebDriverWait(chrome, 60, ignored_exceptions=[StaleElementReferenceException])  # of a page that is drawn anew
    try:
        return wait.until(lambda _: (found := text()) and all(word in found for word in words) and found)
    except TimeoutException:
        pytest.fail(f"no {[word for word in words if word not in text()]} in {chrome.current_url}:\n{text()}")


@pytest.mark.slow(minutes=1)
def test_the_first_page_has_the_scores_and_a_click_leads_to_the_sounds(recorded: Path, address: str, tmp_path: Path) -> None:
    assert re.fullmatch(
        r"http://127.0.0.1:\d+/#/experiments/\d+/runs\?viewStateShareKey=soundmill-scores&workflowType=\w+", address
    )
    with browser() as chrome:
        chrome.set_window_size(1920, 1400)
        chrome.get(address)
        text = shows(chrome, "ddpm_mel · synthetic", "fad_tagger", "kl_tagger", "label_accuracy_tagger", "34.8", "75.1", "commit")
        chrome.save_screenshot(tmp_path / "runs.png")
        assert "Assistant" not in text  # its panel, which opens by itself where the server lets it
        assert not [one for one in chrome.find_elements(By.CSS_SELECTOR, "[data-assistant-ui]") if one.is_displayed()]
        assert text.index("34.8") < text.index("75.1")  # the best first
        assert "train/ddpm_mel" not in text  # folded
        reports = [link.get_attribute("href") for link in chrome.find_elements(By.PARTIAL_LINK_TEXT, "report of ddpm_mel")]

        chrome.find_element(By.CSS_SELECTOR, "[row-index='0'] a[href*='/runs/']").click()
        text = shows(chrome, "ddpm_mel: fad_tagger 34.8 · kl_tagger 3.48", "Show more")
        chrome.save_screenshot(tmp_path / "run.png")
        assert text.index("ddpm_mel.train.steps") < text.index("catalog.caption_templates")  # what is not default comes first
        assert text.index("label_accuracy_tagger_high") < text.index("stages/corpus/recordings")  # and scores before counts
        chrome.find_element(By.CSS_SELECTOR, "[data-testid=show-comment-toggle]").click()
        told = ("Trained on synthetic (60 recordings): 124 clips", "95 % interval", "silence", "2,000 steps", "Changed from conf/")
        shows(chrome, *told)
        chrome.save_screenshot(tmp_path / "story.png")
        head = [cell.text for cell in chrome.find_elements(By.CSS_SELECTOR, "table th")]
        assert head[:3] == ["score", "value", "95 % interval"]

        report = chrome.find_element(By.PARTIAL_LINK_TEXT, "report: the sounds").get_attribute("href")
        assert reports == [report]  # one click from the first page, that of the best run
        chrome.get("about:blank")
        chrome.get(report)
        WebDriverWait(chrome, 60).until(lambda _: chrome.find_elements(By.TAG_NAME, "iframe"))
        chrome.switch_to.frame(chrome.find_element(By.TAG_NAME, "iframe"))
        WebDriverWait(chrome, 60).until(lambda _: chrome.find_elements(By.TAG_NAME, "audio"))
        player = chrome.find_element(By.TAG_NAME, "audio")
        WebDriverWait(chrome, 30).until(lambda _: float(player.get_property("duration") or 0) == 1.0)
        chrome.switch_to.default_content()
        chrome.save_screenshot(tmp_path / "report.png")

        ids = json.dumps([run.info.run_id for run in client(recorded).search_runs(["1"], "tags.kind = 'pipeline'")])
        chrome.get("about:blank")
        chrome.get(f"{address.partition('/#')[0]}/#/compare-runs?runs={ids}&experiments=[%221%22]")
        shows(chrome, "Comparing 2 Runs", "fad_tagger", "34.8", "75.1", "ddpm_mel.html")
        chrome.find_element(By.XPATH, "//*[text()='ddpm_mel.html']").click()
        WebDriverWait(chrome, 60).until(lambda _: len(chrome.find_elements(By.TAG_NAME, "iframe")) == 2)  # side by side
        chrome.save_screenshot(tmp_path / "compared.png")

        messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
        answers = [one["params"]["response"] for one in messages if one["method"] == "Network.responseReceived"]
        failed = {one["url"].partition("?")[0] for one in answers if one["status"] == 403}
        assert {path.rpartition("/mlflow/")[2] for path in failed} == {"assistant/config", "assistant/providers"}


def test_of_these_scores_more_is_better():
    assert [name for name in BETTER if f"{name}_x".startswith(HIGHER)] == [name for name in BETTER if BETTER[name] == "higher"]
