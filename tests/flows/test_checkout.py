"""Going back to a recorded run, and a workspace for a person's own data, on a tiny project."""

import errno
import hashlib
import shutil
from pathlib import Path

import pytest

from flows import checkout, dvc
from soundmill import ledger, params, provenance, tracking
from soundmill.errors import UserError
from tests.checkouts import HARDEST_NAME, track
from tests.flows.tiny import CAT, DOG, dvc_command, forgotten_in, git, make_tiny, with_list
from tests.tracking.reading import client


def run_id_of(project: Path, name: str) -> str:
    assert tracking.sync(project) == (0, "")
    return next(run.info.run_id for run in client(project).search_runs(["1"]) if run.info.run_name.startswith(name))


@pytest.mark.parametrize("tiny", [HARDEST_NAME], indirect=True)
@pytest.mark.slow
def test_a_plain_repro_can_be_brought_back(tiny, tracked, tmp_path, set_param):
    set_param("first", number=7)
    (tiny / "first.py").write_text((tiny / "first.py").read_text() + "# an uncommitted change\n")
    (tiny / "notes.yaml").write_text("a: new file\n")
    assert dvc_command(tiny, "repro").returncode == 0
    run_id = run_id_of(tiny, "dvc repro")
    stage_id = run_id_of(tiny, "evaluate/tiny")

    git(tiny, "checkout", "--", "first.py")
    (tiny / "notes.yaml").unlink()
    set_param("first", number=8)
    with_eight = dvc_command(tiny, "repro", SOUNDMILL_TRACKING="off")
    assert with_eight.returncode == 0

    back = tmp_path / "back"
    missing, *others = checkout.reproduce(tiny, run_id, back)  # its dvc.lock is that of the moment when the last stage began
    assert missing.startswith("stage evaluate@tiny: dvc.lock and the cache do not have its results")
    assert not others
    assert (back / "data/first.txt").read_text() == "7 "
    again = dvc_command(back, "repro", "evaluate@tiny")
    assert "Stage 'evaluate@tiny' is cached - skipping run" in again.stdout
    assert "Running stage" not in again.stdout
    assert (back / "data/generated/tiny/a.wav").read_text() == "2 7 "
    assert (back / "first.py").read_text().endswith("# an uncommitted change\n")
    assert (back / "notes.yaml").read_text() == "a: new file\n"
    assert params.read_yaml(back / "params.yaml")["first"]["number"] == 7
    assert "up to date" in dvc_command(back, "status").stdout
    assert (tiny / "data/generated/tiny/a.wav").read_text() == "2 8 "  # the project itself is as it was

    with pytest.raises(UserError, match="is not empty"):
        checkout.reproduce(tiny, run_id, back)
    shutil.rmtree(tiny / ".dvc" / "cache")
    document = params.read_yaml(tiny / "params.yaml")
    missing = checkout.reproduce(tiny, stage_id, tmp_path / "again")  # a stage's run stands for its pipeline's
    assert [line for line in missing if line.startswith("stage first: dvc.lock and the cache do not have its results")]
    assert document["first"]["number"] == 8


@pytest.mark.slow(minutes=1)
def test_a_workspace_has_its_own_outputs_and_follows_the_code(tiny, tracked, capfd):
    (tiny / "first.py").write_text((tiny / "first.py").read_text() + "# an uncommitted change\n")
    document = params.read_yaml(tiny / "params.yaml")
    document["first"]["number"] = 5
    root = checkout.workspace(tiny, "my-sounds", document)
    assert root == tiny / "workspaces" / "my-sounds"
    assert (root / "first.py").read_text().endswith("# an uncommitted change\n")
    assert dvc_command(root, "repro").returncode == 0
    assert (root / "data/generated/tiny/a.wav").read_text() == "2 5 "
    assert not (tiny / "data/generated").exists()
    assert not (tiny / "dvc.lock").exists()
    assert run_id_of(tiny, "first")  # recorded in the project's store
    assert not (root / "mlflow.db").exists()

    git(tiny, "checkout", "--", "first.py")
    (tiny / "extra.py").write_text("")
    document["evaluate"]["number"] = 6
    assert checkout.workspace(tiny, "my-sounds", document) == root
    assert "an uncommitted change" not in (root / "first.py").read_text()
    assert (root / "extra.py").exists()
    assert (root / "data/generated/tiny/a.wav").read_text() == "2 5 "  # outputs stay until something runs
    (tiny / "extra.py").unlink()
    checkout.workspace(tiny, "my-sounds", document)
    assert not (root / "extra.py").exists()
    assert checkout.run_pipeline(root) == 0
    assert "workspaces/my-sounds/data/generated/tiny" in capfd.readouterr().out
    assert (root / "data/generated/tiny/a.wav").read_text() == "6 5 "
    assert "up to date" not in dvc_command(tiny, "status").stdout  # the project has still run nothing


@pytest.mark.slow
def test_a_workspace_whose_making_failed_is_completed(tiny, monkeypatch):
    """`git init` left half of its directory; later, the disk filled up after a file was copied that the project has no longer."""
    document = params.read_yaml(tiny / "params.yaml")
    (tiny / "workspaces/mine/.git").mkdir(parents=True)
    root = checkout.workspace(tiny, "mine", document)
    assert (root / "first.py").is_file()

    def full(source: Path, target: Path, **options: bool) -> None:
        target.write_bytes(source.read_bytes())
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    (tiny / "brief.py").write_text("")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(shutil, "copy2", full)
        checkout.workspace(tiny, "mine", document)
    assert (root / "brief.py").exists()
    (tiny / "brief.py").unlink()
    checkout.workspace(tiny, "mine", document)
    assert not (root / "brief.py").exists()
    assert "brief.py" not in (root / checkout.COPIED).read_text()


def test_a_shallow_clone_has_workspaces_with_its_tracked_links_to_directories(tiny, tmp_path):
    (tiny / "linked").symlink_to(".dvc")
    cloned = ["clone", "-q", "--depth=1", tiny.as_uri(), home := tmp_path / "shallow"]
    for words in (["add", "linked"], ["commit", "-qm", "a link"], cloned):
        git(tiny, *words)
    (home / "data").symlink_to(tmp_path)  # outputs on another disk
    root = checkout.workspace(home, "mine", params.read_yaml(home / "params.yaml"))
    assert [(root / name).is_symlink() for name in ("linked", "data")] == [True, False]
    (root / checkout.COPIED).write_text("linked/config")  # as if it had been a directory
    checkout._copy_code(home, root, ["linked"])
    assert (root / ".dvc/config").exists()


def test_a_file_that_became_a_directory_is_copied_and_the_reverse(tmp_path):
    every = ["notes", "notes/a/b", "notes/c"]
    (tmp_path / checkout.COPIED).parent.mkdir(parents=True)
    for number, names in enumerate((every[:1], every[1:], every[:1])):
        for name in names:
            (path := tmp_path / f"{number}" / name).parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        (tmp_path / checkout.COPIED).write_text("\0".join(every))  # as after a run that failed half-way
        checkout._copy_code(tmp_path / f"{number}", tmp_path, names)
        assert [name for name in every if (tmp_path / name).is_file()] == names


# A run whose record somebody else wrote


class Recorded:
    """A run in a project, whose recorded commit and files a test replaces by hostile ones, and a file they reach for."""

    def __init__(self, directory: Path):
        self.project = make_tiny(directory / "project")
        with pytest.MonkeyPatch.context() as monkeypatch:
            track(monkeypatch)
            with tracking.pipeline_run(self.project, "hostile"):
                pass
        self.run_id = run_id_of(self.project, "hostile")
        (state,) = (self.project / "mlartifacts").rglob("state")
        self.state = state
        self.kept = {path.name: path.read_bytes() for path in state.iterdir()}
        self.sha = git(self.project, "rev-parse", "HEAD")
        self.outside = directory / "outside"
        self.victim = self.outside / "victim"
        content = b"from the cache\n"
        self.digest = hashlib.md5(content).hexdigest()
        cached = self.project / ".dvc/cache/files/md5" / self.digest[:2] / self.digest[2:]
        cached.parent.mkdir(parents=True)
        cached.write_bytes(content)

    def renew(self) -> None:
        for name, content in self.kept.items():
            (self.state / name).write_bytes(content)
        self.commit(self.sha)
        git(self.project, "checkout", "--quiet", "--force", "main")
        git(self.project, "clean", "--quiet", "-d", "--force")
        shutil.rmtree(self.outside, ignore_errors=True)
        self.outside.mkdir()
        self.victim.write_text("the person's own\n")

    def commit(self, sha: str) -> None:
        client(self.project).set_tag(self.run_id, "git_sha", sha)

    def record_commit(self) -> None:
        """All that lies in the project becomes the recorded commit, on no branch."""
        git(self.project, "add", "--all", "--force", ":(exclude).dvc", ":(exclude)mlartifacts", ":(exclude)mlflow.db*")
        self.commit(git(self.project, "commit-tree", git(self.project, "write-tree"), "-m", "hostile", "-p", "main"))
        git(self.project, "reset", "--quiet", "--hard", "main")

    def write(self, **files: str) -> None:
        for name, content in files.items():
            (self.state / name.replace("_", ".")).write_text(content)

    def refusal(self, destination: Path) -> str:
        """What `reproduce` says; nothing outside has changed, and nothing is left of the checkout."""
        with pytest.raises(UserError) as caught:
            checkout.reproduce(self.project, self.run_id, destination)
        assert [path.name for path in self.outside.iterdir()] == ["victim"]
        assert self.victim.read_text() == "the person's own\n"
        assert not destination.exists()
        return str(caught.value)


@pytest.fixture(scope="module")
def one_recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def recorded(one_recorded: Recorded) -> Recorded:
    one_recorded.renew()
    return one_recorded


def new_file(name: str, content: str, mode: str = "100644") -> str:
    lines = content.splitlines()
    end = "" if content.endswith("\n") else "\n\\ No newline at end of file"
    body = "\n".join(f"+{line}" for line in lines)
    head = f"diff --git a/{name} b/{name}\nnew file mode {mode}\n--- /dev/null\n+++ b/{name}\n"
    return f"{head}@@ -0,0 +1,{len(lines)} @@\n{body}{end}\n"


@pytest.mark.parametrize("name", ["params.yaml", "dvc.lock", "data", ".dvc"])
@pytest.mark.parametrize("by", ["diff", "commit"])
def test_a_recorded_link_is_refused(recorded, tmp_path, name, by):
    recorded.write(dvc_lock="schema: '2.0'\nstages: {}\n")
    target = recorded.outside if name in ("data", ".dvc") else recorded.victim
    if by == "commit" and name == ".dvc":
        git(recorded.project, "rm", "--quiet", "-r", "--cached", ".dvc")
        blob = recorded.project / "blob"
        blob.write_text(str(target))
        link = git(recorded.project, "hash-object", "-w", "blob")
        git(recorded.project, "update-index", "--add", "--cacheinfo", f"120000,{link},.dvc")
        recorded.commit(git(recorded.project, "commit-tree", git(recorded.project, "write-tree"), "-m", "hostile"))
        git(recorded.project, "reset", "--quiet", "--hard", "main")
    elif by == "commit":
        path = recorded.project / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        recorded.record_commit()
    else:
        removed = ""
        if name == "params.yaml":
            (recorded.project / name).unlink()
            removed = git(recorded.project, "diff", "--binary", "HEAD") + "\n"
        elif name == ".dvc":
            git(recorded.project, "rm", "--quiet", "-r", "--cached", ".dvc")
            removed = git(recorded.project, "diff", "--cached", "--binary", "HEAD") + "\n"
            git(recorded.project, "reset", "--quiet")
        recorded.write(uncommitted_diff=removed + new_file(name, str(target), "120000"))
    said = recorded.refusal(tmp_path / "back")
    assert f"{name!r} is a link" in said
    assert "git worktree add DIR" in said


@pytest.mark.parametrize(
    ("diff", "says"),
    [
        (new_file("sub", "Subproject commit " + "1" * 40 + "\n", "160000"), "'sub' is a submodule"),
        (new_file("../outside/new", "x\n"), "invalid path '../outside/new'"),
        (new_file(".git/hooks/post-checkout", "#!/bin/sh\n", "100755"), "invalid path '.git/hooks/post-checkout'"),
        (new_file("link", "../outside", "120000") + new_file("link/new", "x\n"), "link"),
        (new_file(".dvc/config.local", "[core]\n    site_cache_dir = ../../outside\n"), "'.dvc/config.local' is one of DVC's own"),
        (new_file("part/.dvc/config", "[core]\n"), "'part/.dvc/config' is one of DVC's own"),
        (new_file("dvc.lock/x", "x\n"), "'dvc.lock/x' is in the place of a restored file"),
    ],
)
def test_a_diff_that_leaves_the_checkout_is_refused(recorded, tmp_path, diff, says):
    recorded.write(uncommitted_diff=diff)
    assert says in recorded.refusal(tmp_path / "back")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"dvc.yaml": "{outs: [../outside/victim]}"}, "dvc.yaml: output"),
        ({"dvc.yaml": "{outs: [%(outside)s/victim]}"}, "dvc.yaml: output"),
        ({"dvc.yaml": "{wdir: .., metrics: [outside/victim: {cache: false}]}"}, "dvc.yaml: output"),
        ({"dvc.yaml": "{outs: [.git/hooks/post-checkout]}"}, ".git/hooks/post-checkout' is ignored by"),
        ({"dvc.yaml": "{outs: ['data/${up}/outside/victim']}", "params.yaml": "up: ../..\n"}, "dvc.yaml: output"),
        ({"dvc.lock": "../outside/victim"}, "dvc.lock: output '../outside/victim' leaves the checkout"),
        ({"dvc.lock": "%(outside)s/victim"}, "victim' is absolute"),
        ({"x.dvc": "outs: [{path: ../outside/victim, hash: md5, md5: %(digest)s, size: 15}]"}, "dvc.yaml: output"),
        (
            {"x.dvc": "outs: [{path: data/x, hash: md5, files: [{relpath: ../../../outside/new, md5: %(digest)s, size: 15}]}]"},
            "x.dvc: relpath '../../../outside/new' leaves the checkout",
        ),
        ({"x.dvc": "deps: [{path: x, repo: {url: 'ext::sh'}}]\nouts: [{path: x}]"}, "x.dvc: imports from elsewhere"),
    ],
)
def test_outputs_that_leave_the_checkout_are_refused(recorded, tmp_path, files, says):
    locked = "schema: '2.0'\nstages: {bad: {cmd: 'true', outs: [{path: %s, hash: md5, md5: %s, size: 15}]}}\n"
    where = {"outside": recorded.outside, "digest": recorded.digest}
    for name, content in files.items():
        content = content % where
        if name == "dvc.yaml":
            (recorded.project / name).write_text(f"stages: {{bad: {{cmd: 'touch {recorded.outside}/ran', {content[1:-1]}}}}}\n")
        elif name == "dvc.lock":
            recorded.write(dvc_lock=locked % (content, recorded.digest))
        elif name == "params.yaml":
            recorded.write(params_yaml=content)
        else:
            (recorded.project / name).write_text(content)
    recorded.record_commit()
    assert says in recorded.refusal(tmp_path / "back")


def test_recorded_settings_and_commands_have_no_power(recorded, tmp_path):
    (recorded.project / ".dvc/config").write_text(
        f"[core]\n    site_cache_dir = {recorded.outside}/site\n[cache]\n    dir = {recorded.outside}/cache\n"
    )
    git(recorded.project, "add", ".dvc/config")
    (recorded.project / ".gitattributes").write_text("* filter=hostile\n")
    (recorded.project / "dvc.yaml").write_text(f"stages: {{bad: {{cmd: touch {recorded.outside}/ran, outs: [made]}}}}\n")
    recorded.record_commit()
    recorded.write(params_yaml="corpus: {path: [1]}\nevaluate: {embedders: [[1]]}\n")
    missing = checkout.reproduce(recorded.project, recorded.run_id, tmp_path / "back")
    assert [line for line in missing if line.startswith(".dvc/config: differed")]
    assert [line for line in missing if line.startswith("stage bad: dvc.lock and the cache do not have its results")]
    assert [path.name for path in recorded.outside.iterdir()] == ["victim"]
    assert (tmp_path / "back/.dvc/config").read_bytes() == (recorded.project / ".dvc/config").read_bytes()


def test_a_broken_lock_that_was_recorded_is_named(recorded, tmp_path):
    recorded.write(dvc_lock="schema: '2.0'\nstages: {bad: {cmd: x, outs: 5}}\n")
    missing = checkout.reproduce(recorded.project, recorded.run_id, tmp_path / "back")
    assert "dvc.lock: damaged when the run was recorded" in missing[-1]
    assert (tmp_path / "back/first.py").exists()


def test_a_commit_that_is_none_is_refused(recorded, tmp_path):
    for sha in ("--upload-pack=touch", "main", "0" * 40):
        recorded.commit(sha)
        assert "is not in" in recorded.refusal(tmp_path / "back")


def test_outputs_are_those_that_dvc_resolves(tiny):
    found = sorted(dvc.outputs(tiny))
    assert found == ["data/first.txt", "data/generated/tiny", "data/metrics/evaluate/tiny.json", "data/metrics/first.json"]
    (tiny / "x.dvc").write_text("outs: [{path: 'a\"b'}]\n")
    with pytest.raises(UserError, match="quote or a line break"):
        dvc.outputs(tiny)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b"])
def test_a_workspace_name_stays_inside(tiny, name):
    with pytest.raises(UserError, match="workspace name"):
        checkout.workspace(tiny, name, {})


def test_what_git_says_is_told(tiny, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "dubious ownership" in provenance.capture(tiny).left_out[0]
    with pytest.raises(UserError, match="dubious ownership"):
        checkout._code_files(tiny)


def test_what_lies_outside_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path / "none"))
    home, back = tmp_path / "home", tmp_path / "deep" / "back"
    home.mkdir()
    back.mkdir(parents=True)
    (tmp_path / "sounds").mkdir()
    (back / "params.yaml").write_text("corpus: {path: ../sounds}\nevaluate: {embedders: [tagger, yamnet]}\n")
    (back / "constraints.txt").write_text("numpy==1\n")
    corpus, weights, packages = checkout._outside(home, back)
    assert "corpus.path ../sounds: does not exist" in corpus
    assert "give its absolute path" in corpus
    assert "yamnet.tflite" in weights
    assert "constraints.txt" in packages


# What is forgotten stays so


@pytest.fixture
def listing(tiny: Path) -> Path:
    return with_list(tiny)


def test_a_workspace_keeps_its_own_list_and_is_bound_by_the_projects(listing):
    document = params.read_yaml(listing / "params.yaml")
    root = checkout.workspace(listing, "mine", document)
    assert forgotten_in(root) == []
    ledger.add(root, [DOG])
    checkout.workspace(listing, "mine", document)
    assert forgotten_in(root) == ["dog"]  # what was forgotten there stays so
    ledger.add(listing, [CAT])
    checkout.workspace(listing, "mine", document)
    assert forgotten_in(root) == ["dog", "cat"]
    assert forgotten_in(listing) == ["cat"]
    with pytest.raises(UserError, match="is a workspace, which has no workspaces of its own; run this in"):
        checkout.workspace(root, "inner", document)


def test_relative_paths_among_a_workspaces_parameters_are_of_the_project(tiny):
    document = params.read_yaml(tiny / "params.yaml") | {"corpus": {"path": "../sounds", "format": "..."}}
    root = checkout.workspace(tiny, "mine", document)
    assert params.read_yaml(root / "params.yaml")["corpus"] == {"path": str(tiny.parent / "sounds"), "format": "..."}


@pytest.mark.parametrize("tiny", ["plain"], indirect=True)  # `dvc exp run --temp` itself fails at other names
@pytest.mark.slow
def test_a_list_older_than_the_projects_is_refused_and_a_pipeline_updates_it(listing, capfd):
    """That of another branch, and one that an experiment in a copy takes from git and disk."""
    git(listing, "branch", "earlier")
    ledger.add(listing, [DOG])
    git(listing, "commit", "-qam", "Forget the dog")
    git(listing, "switch", "-q", "earlier")
    for command in (["repro"], ["exp", "run", "--temp"]):
        done = dvc_command(listing, *command, "first")
        assert done.returncode != 0
        assert "out of date: it lacks dog.wav" in done.stderr + done.stdout
    assert checkout.run_pipeline(listing) == 0
    assert "forgotten.yaml was out of date; added: dog.wav" in capfd.readouterr().out
    assert forgotten_in(listing) == ["dog"]
    assert dvc_command(listing, "exp", "run", "--temp", "first").returncode == 0


@pytest.mark.slow
def test_a_state_from_before_does_not_undo_forgetting(listing, tracked, tmp_path):
    assert dvc_command(listing, "repro").returncode == 0
    run_id = run_id_of(listing, "dvc repro")
    checkout.reproduce(listing, run_id, tmp_path / "before")
    assert (tmp_path / "before/data/first.txt").exists()
    ledger.add(listing, [DOG])
    missing = checkout.reproduce(listing, run_id, tmp_path / "after")
    assert [line for line in missing if line.startswith("outputs: not restored, as this was forgotten since: dog.wav;")]
    assert forgotten_in(tmp_path / "after") == ["dog"]
    assert not (tmp_path / "after/data/first.txt").exists()
