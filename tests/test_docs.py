"""Keeps the docs true: what they link to and name exists, and docs/architecture.md is what stands."""

import re
from contextlib import suppress
from fnmatch import fnmatch
from itertools import chain

from soundmill import params
from soundmill.errors import UserError
from tests import licences_page
from tests.architecture_page import PAGE, generated, spans
from tests.imports import EVERY_FAMILY, ROOT

DOCS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
DVC = params.read_yaml(ROOT / "dvc.yaml")["stages"]
# What a person puts there: FAMILY, <stage>, {a,b}, *, ${key}.
PLACEHOLDER = re.compile(r"\$\{[^}]*\}|<[^>]*>|\{[^}]*\}|\*+|(?<![A-Za-z])(?!README)[A-Z]{3,}(?![A-Za-z])")
OURS = re.compile(r"(?<![\w./-])(?:soundmill|stages|flows|bench|tests|conf|docs)/[\w./{},*<>-]+")
UNTRACKED = ("data/.work", "data/bench")  # scratch, and results of `make bench`


def code(text: str) -> list[str]:
    """The lines of fenced blocks, continued ones joined, and the spans in backticks."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [line for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()] + spans


def glob(path: str) -> str:
    return PLACEHOLDER.sub("*", path).rstrip("/.,")


def outputs(stage: dict) -> list[str]:
    """Paths of a stage's outs, metrics and plots."""
    listed = chain.from_iterable(stage.get("do", stage).get(kind, []) for kind in ("outs", "metrics", "plots"))
    return [path for entry in listed for path in ([entry] if isinstance(entry, str) else entry)]


def test_links_lead_somewhere():
    broken = []
    for doc in DOCS:
        for target in re.findall(r"\]\(([^)\s]+)\)", doc.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            if re.match(r"\w+:", target):
                continue
            there = (doc.parent / path) if path else doc
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M) if anchor and there.is_file() else []
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            if not there.exists() or (anchor and anchor not in slugs):
                broken.append(f"{doc.name}: {target}")
    assert not broken, "\n".join(broken)


def test_files_that_docs_name_exist():
    output = [PLACEHOLDER.sub("*", path) for stage in DVC.values() for path in outputs(stage)]

    def is_made(path: str) -> bool:
        parts = glob(path).split("/")
        return path.startswith(UNTRACKED) or any(
            all(fnmatch(a, b) or fnmatch(b, a) for a, b in zip(parts, other.split("/"), strict=False)) for other in output
        )

    missing = []
    for doc in DOCS:
        text = doc.read_text(encoding="utf-8")
        paths = set(OURS.findall(text))
        paths |= {span for span in code(text) if re.fullmatch(r"[\w/<>{},*-]+/[\w<>{},*-]+\.(py|sh|yaml|md)", span)}
        missing += [
            f"{doc.name}: {path}"
            for path in sorted(paths)
            if not path.startswith("data/") and not any(list(place.glob(glob(path))) for place in (ROOT, ROOT / "soundmill"))
        ]
        data = set(re.findall(r"(?<![\w./-])data/[\w./{},*<>-]+", "\n".join(code(text))))
        missing += [f"{doc.name}: {path} is no output of dvc.yaml" for path in sorted(data) if not is_made(path)]
    assert not missing, "\n".join(missing)


def test_tests_that_docs_name_exist():
    there = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
    }
    named = {span for doc in DOCS for span in code(doc.read_text(encoding="utf-8")) if re.fullmatch(r"test_\w+", span)}
    assert sorted(named - there) == []


def test_parameters_that_docs_name_exist():
    """`section.key` in backticks is a key of params.yaml."""
    choices = (
        [],
        ["corpus=auto"],
        ["waveform_unet=captions", "diffwave=captions", "rave=captions"],
        ["corpus=union", "scale=paper"],
        ["corpus=synthetic"],
        ["vocoder=istft_laptop"],
    )
    documents = [params.compose(ROOT / "conf", [EVERY_FAMILY, *choice]) for choice in choices]

    def is_key(name: str) -> bool:
        for document in documents:
            with suppress(UserError):
                params.section(document, name, "params.yaml")
                return True
        return False

    faults = []
    for doc in DOCS:
        for line in code(doc.read_text(encoding="utf-8")):
            key = line.partition(": ")[0]
            if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) and key.split(".")[0] in documents[0] and not is_key(key):
                faults.append(f"{doc.name}: {key} is no parameter")
    assert not faults, "\n".join(faults)


def test_readme_begins_with_two_commands_and_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = [line.split("#")[0].strip() for line in re.search(r"^```\n(.*?)^```", text, re.M | re.S)[1].splitlines()]
    assert first == ["make demo", "make test"]
    assert len(text.split()) <= 650
    assert re.search(r"\]\((docs/\w+\.md)", text)[1] == "docs/architecture.md"


def test_the_stages_that_run_on_a_cluster_are_those_that_docs_name():
    text = (ROOT / "docs" / "orchestration.md").read_text("utf-8")
    named = re.search(r"^dask worker .*^```\n\nThe stages (.*?);", text, re.M | re.S)[1]  # up to what is said of all others
    sources = {path.stem: path.read_text("utf-8") for path in (ROOT / "stages").glob("*.py")}
    mapping = {name for name, text in sources.items() if re.search(r"ctx\.(map|make)_shards", text)}
    assert set(spans(named)) == mapping


def test_generated_columns_of_architecture_are_current():
    page = PAGE.read_text(encoding="utf-8")
    assert page == generated(page), "run `make docs`"
    assert "TODO" not in page, "say what a stage does, and where a table is"


def test_licences_are_those_of_the_installed_packages():
    """Extras that are not installed here (`make bench`'s) are not in the table."""
    page = licences_page.PAGE.read_text(encoding="utf-8")
    assert page == licences_page.generated(page), "run `make docs`"
    words, _, _ = page.partition("| licence |")
    for package in licences_page.packages(["export", "test"]):
        if not licences_page.is_permissive(licences_page.licence(package)):
            assert any(fnmatch(package, name) for name in spans(words)), f"{package}: {licences_page.licence(package)}"


def test_which_licences_are_permissive():
    for expression in ("MIT", "BSD-3-Clause AND (Apache-2.0 OR MIT)", "Apache-2.0 OR GPL-2.0-or-later"):
        assert licences_page.is_permissive(expression), expression
    for expression in (
        "GPL-3.0-or-later",
        "MPL-2.0 AND (Apache-2.0 OR MIT)",
        "LGPL-2.1-or-later",
        "CC-BY-NC-4.0",
        "Other/Proprietary License",
    ):
        assert not licences_page.is_permissive(expression), expression
