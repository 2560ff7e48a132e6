"""Credentials are found in addresses however they are written, refused by key, and never repeated."""

import json
import os
import subprocess

import pytest

from soundmill import credentials, params, tracking
from soundmill.errors import UserError
from soundmill.tracking import journal
from tests.commands.running import soundmill
from tests.imports import ROOT

KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # the example in AWS's documentation
SECRET = (
    f"s3://AKIAIOSFODNN7EXAMPLE:{KEY}@bucket/x",
    f" s3://id:{KEY}@bucket",
    f"\u200bs3\u200b://id:{KEY}@bucket",
    "S3://id:12/hush@bucket",
    "gs://hush@bucket",
    "az://me:hush@c/p",
    "s3://bucket/x?a=1&X-Amz-Signature=hush",
    "s3://bucket/x?X-Amz-Credential=hush",
    "https://me.blob.core.windows.net/c?sv=1&sig=hush",
    "gs://bucket/x#access_token=hush",
    *(f"https://hooks.slack.com/{rest}hush" for rest in ("services/T0/B0/", "?subscription-key=", ";JSESSIONID=", "?AccountKey=")),
    *(f"https://h/{at}hush-12345678901" for at in ("webhooks/1/", "hooks/", "webhookb2/a/b/", "with/key/", "bot12:", "f?code=")),
    "s3%3A%2F%2Fid%3Ahush%40bucket",
    "s3%253A%252F%252Fid%253Ahush%2540bucket",
    "s3://id%3Ahush%40bucket",
    "http://me:hu[sh@host/x",
    "http://me:hu#sh@host",
    "http://me:hu?sh@host",
    "http://me:12/hush@mlflow/",
    "https:/me:hush@host",
    "https://ghp_hush@github.com/x",
    "postgresql://me:hush@host/db",
    "postgresql://me@host/db?password=hush",
    "hf_hushhushhushhushhushhushhushhushhu",
    "npm_hushhushhushhushhushhushhushhushhush",
)
OPEN = (
    "s3://bucket/mail@home/c",
    "http://localhost:5000/#/experiments/1",
    "http://[::1]:5000/a@b",
    "https://mlflow.example.org:5000/a@b",
    "abfss://container@account.dfs.core.windows.net/x",
    "https://zenodo.org/records/3987831/files/Cnn14_16k_mAP%3D0.438.pth?download=1",
    "https://github.com/x/hooks/blob/main/hooks/install.py?mode=code",
    "https://docs.github.com/en/webhooks/using-webhooks-and-more?code=de",
    "s3://samples/hooks/melodic-hooks-120bpm",
    "file:///mnt/loops/key/C_minor_120bpm_pack",
    "sqlite:////home/a@b/mlflow.db",
    "file:///a@b/c",
    "tcp://host:8786",
    "facebook/encodec_24khz",
    "a dog: barks @ night",
    "at 12:00:other.wav",
)


SECRET_LINES = (
    "+    password: swordfish", "+PASSWORD=hunter2hunter", "+  token: |\n+    abcdefgh12345678", '+auth_string = "me:hunter2"',
    "+login: me:secretpass", "Authorization: Bearer abcdefghijklmnop1234", "dvc remote modify r password hunter2hunter2",
    "curl -s -u me:swordfish https://h/x", "mysql -u me -pswordfish db", "tool --password hunter22", 'wandb.login(key="swordfish")',
)  # fmt: skip
OPEN_LINES = (
    "+    token: Tensor", "+  token = page.token", "+  eos_token = tokenizer.eos_token  # end", "+if token == other_token_2024:",
    "see the token `docs/decisions-2024.md`", "+| token | 1234567890123 |", "login: https://github.com/x", "+  num_tokens: 1024",
    "+    token:\n+      description", "+    token: str = field", "+    credentials: Credentials",
    "curl -u me:$PASSWORD https://h", "mkdir -p data/models", "mysql -p", "`--password` since 2024", "login(key=key)",
    "--password for others", "curl -u me:<password> h", "page.login(sort_key='name')",
    "train --max-token 100000", "curl x | docker run -u me:users img", "https://h docker run -u me:users", "curl -u 1000:1000 x",
    "wget --user-agent=foo:barbaz https://h",
)  # fmt: skip


def test_credentials_of_a_diff_are_told_from_code():
    assert [line for line in SECRET_LINES if not credentials.in_file(line.encode())] == []
    assert [line for line in OPEN_LINES if credentials.in_file(line.encode())] == []


@pytest.mark.parametrize("url", SECRET)
def test_credentials_are_refused_and_hidden(url):
    document = {"corpus": {"parts": {"mine": {"path": url}}}}
    for refused, key in (
        (lambda: params.check_urls(document, "params"), r"^params\.corpus\.parts\.mine\.path: "),
        (lambda: params.compose(ROOT / "conf", ["corpus=folder", f"corpus.pth='{url}'"]), r"corpus\.pth: "),
        (lambda: params.parse(params.ExecutionParams, {"dask": url}, "params"), r"params\.dask: "),
    ):
        with pytest.raises(UserError, match=f"{key}the URL has credentials in it; remove them") as error:
            refused()
        assert not {"hush", "hu", "sh", KEY} & set(str(error.value).replace("@", " ").split())
    said = credentials.hide(f"see {url} there")
    assert "hush" not in said
    assert KEY not in said
    assert "sh@" not in said


@pytest.mark.parametrize("url", OPEN)
def test_addresses_without_credentials_stay(url):
    params.check_urls({"corpus": {"path": url}}, "params")
    assert credentials.hide(url) == url


def test_no_command_repeats_credentials(tmp_path):
    url = f"s3://id:{KEY}@bucket/x"
    for words in (("run", url), ("corpus", "check", url), ("params", f"corpus.path={url}"), ("pull", url, "x"), ("bakeoff", url)):
        done = soundmill(*words, cwd=tmp_path)
        assert done.returncode == 1, words
        assert "has credentials in it" in done.stderr
        assert KEY not in done.stdout + done.stderr


@pytest.mark.parametrize("uri", [" http://me:hu/sh@127.0.0.1:1", "http://127.0.0.1:1/?password=hu-sh"])
def test_the_password_of_a_tracking_server_is_not_shown(tmp_path, monkeypatch, uri):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text("{}\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    writer = journal.Writer(tracking.store(tmp_path).journals, {"name": f"a run at {uri}"})
    writer.close()
    said = [soundmill(*words, cwd=tmp_path) for words in (("sync",), ("browse",), ("lineage", "x"), ("reproduce", "0123"))]
    assert all(done.returncode for done in said)
    assert not any("sh" in word for done in said for word in (done.stdout + done.stderr).split() if "127.0.0.1" in word)
    assert "hu" not in json.dumps([path.read_text() for path in tmp_path.rglob("*.jsonl")])
    assert "hu" not in " ".join(tracking.browser_command(5000))


def test_a_remote_with_credentials_is_refused(tmp_path):
    from flows import dvc

    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    for words in (("init", "--no-scm", "-q"), ("remote", "add", "-d", "mine", f"s3://id:{KEY}@bucket/x")):
        subprocess.run([dvc.executable(), *words], cwd=tmp_path, env=environment, check=True, capture_output=True)
    with pytest.raises(UserError, match=r"\.dvc\.remote\.mine\.url: the URL has credentials") as error:
        dvc.remote(tmp_path)
    assert KEY not in str(error.value)
