"""The table of docs/licences.md: the licence of every installed dependency; `make docs` writes it."""

import re
from collections import defaultdict
from collections.abc import Sequence
from importlib import metadata

from packaging.requirements import Requirement

from soundmill.shards.code import ROOT

PAGE = ROOT / "docs" / "licences.md"
SPDX = {  # as packages spell them in classifiers and in the free-text field
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Artistic License": "Artistic-1.0",
    "BSD": "BSD",
    "BSD License": "BSD",
    "Creative Commons Attribution-NonCommercial 4.0 International": "CC-BY-NC-4.0",
    "GNU General Public License (GPL)": "GPL-2.0-or-later",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GPLv2 with linking exception": "GPL-2.0 WITH linking exception",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
    "Other/Proprietary License": "LicenseRef-NVIDIA-Proprietary",
    "Python Software Foundation License": "PSF-2.0",
    "Zope Public License": "ZPL-2.1",
}
NOT_IN_METADATA = {
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "huey": "MIT",
    # Neither its wheel nor its source archive names one; LICENSE.md of github.com/mlcommons/croissant is named after MLCommons and
    # says that it "reproduces without alteration the terms of the Apache License", version 2.0.
    "mlcroissant": "Apache-2.0",
    "skops": "MIT",
}  # in their LICENSE
PERMISSIVE = re.compile(
    r"0BSD|Apache-2\.0( WITH LLVM-exception)?|BSD(-[23]-Clause)?|CC0-1\.0|CNRI-Python|ISC|MIT(-0|-CMU)?|PSF-2\.0|ZPL-2\.1|Zlib"
)


def packages(extras: Sequence[str] = ()) -> set[str]:
    """Names of all installed packages that Soundmill needs with these extras, directly or not."""
    wanted: dict[str, frozenset[str]] = {}
    todo = [("soundmill", frozenset(extras))]
    while todo:
        name, chosen = todo.pop()
        if name in wanted and chosen <= wanted[name]:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system
            continue
        wanted[name] = wanted.get(name, frozenset()) | chosen
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *wanted[name])):
                todo.append((re.sub(r"[-_.]+", "-", requirement.name).lower(), frozenset(requirement.extras)))
    return wanted.keys() - {"soundmill"}


def licence(package: str) -> str:
    """The SPDX expression of an installed package, or its licence as the package spells it."""
    facts = metadata.metadata(package)
    if expression := facts.get("License-Expression"):
        return expression
    if package in NOT_IN_METADATA:
        return NOT_IN_METADATA[package]
    classifiers = [entry.split(" :: ")[-1] for entry in facts.get_all("Classifier") or [] if entry.startswith("License :: ")]
    named = [name for name in classifiers if name != "OSI Approved"] or [facts["License"]]
    return " OR ".join(sorted({SPDX.get(name, name) for name in named}))


def is_permissive(expression: str) -> bool:
    """Whether an SPDX expression allows a choice of licences that are all permissive."""
    while "(" in expression:
        expression = re.sub(r"\(([^()]*)\)", lambda part: "MIT" if is_permissive(part[1]) else "other", expression)
    return any(all(map(PERMISSIVE.fullmatch, choice.split(" AND "))) for choice in expression.split(" OR "))


def generated(page: str) -> str:
    """The page with the table as the installed packages have it."""
    product = packages()
    rows: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for package in sorted(packages(["export", "test"])):
        rows[licence(package)][package not in product].append(f"`{package}`")
    lines = [f"| {name} | {' '.join(needed)} | {' '.join(others)} |" for name, (needed, others) in sorted(rows.items())]
    start, end = re.search(r"^\| licence \|.*\n\|[-|]+\|\n((?:^\|.*\n)*)", page, re.M).span(1)
    return page[:start] + "\n".join(lines) + "\n" + page[end:]


if __name__ == "__main__":
    PAGE.write_text(generated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
