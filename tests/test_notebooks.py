"""The notebooks run from top to bottom in a new checkout, with few recordings and steps."""

import nbclient
import nbformat
import pytest

from tests import graph

# Up to the training as in the graph, whose stages it takes from the cache.
SHORT = [one for one in graph.SHRUNK if one.startswith(("corpus.", "execution.", "tagger.", "evaluate."))]
SHORT += "model=waveform_unet waveform_unet.train.steps=2 waveform_unet.generate.count=2".split()
SHORT += "waveform_unet.train.network.channels=[4,4,8] waveform_unet.train.network.groups=4".split()
SHORT += "waveform_unet.generate.codec_count=1 waveform_unet.train.sampling.num_steps=2 evaluate.ladder=[]".split()


@pytest.mark.slow(minutes=2)
def test_each_runs_in_a_new_checkout(graph_copy, monkeypatch):
    monkeypatch.setenv("SETTINGS", " ".join(SHORT))
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("DATA", "workspaces/quickstart/data")
    (stale := graph_copy / "workspaces/quickstart/data/metrics/evaluate").mkdir(parents=True)
    (stale / "tango.json").write_text("{}")  # of an earlier run
    for name in ("quickstart", "checkpoint", "mel_ddpm"):  # the others use what the first has made
        notebook = nbformat.read(graph_copy / f"notebooks/{name}.ipynb", as_version=4)
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(graph_copy)}}).execute()
        shown = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
        assert {"text/html", "image/png"} <= shown, name  # a player or a table, and a picture
