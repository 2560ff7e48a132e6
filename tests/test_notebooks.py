"""The notebooks run from top to bottom in a new checkout, with few recordings and steps."""

import nbclient
import nbformat
import pytest

SHORT = """
model=waveform_unet corpus.recordings=16 corpus.test_fraction=0.25 waveform_unet.train.steps=2 waveform_unet.generate.count=2
waveform_unet.generate.codec_count=1 waveform_unet.train.network.channels=[4,4,8,8,8] waveform_unet.train.network.groups=4
waveform_unet.train.sampling.num_steps=2 tagger.epochs=1 evaluate.ladder=[] evaluate.bootstrap=10
"""


@pytest.mark.slow(minutes=4)
def test_each_runs_in_a_new_checkout(checkout, monkeypatch):
    monkeypatch.setenv("SETTINGS", SHORT)
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("DATA", "workspaces/quickstart/data")
    for name in ("quickstart", "checkpoint", "mel_ddpm"):  # the others use what the first has made
        notebook = nbformat.read(checkout / f"notebooks/{name}.ipynb", as_version=4)
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(checkout)}}).execute()
        shown = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
        assert {"text/html", "image/png"} <= shown, name  # a player or a table, and a picture
