"""Write each stage's code dependencies into dvc.yaml, from the stages' own imports: `python tests/write_deps.py`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ruamel.yaml import YAML

from tests.imports import ROOT, TRACKING, closure


def main() -> None:
    yaml = YAML()
    yaml.width = 132
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = ROOT / "dvc.yaml"
    document = yaml.load(path)
    for stage in document["stages"].values():
        stage = stage.get("do", stage)
        module = re.search(r"-m stages\.(\w+)", stage["cmd"]).group(1)
        code = {str(used.relative_to(ROOT)) for used in closure(ROOT / "stages" / f"{module}.py", TRACKING)}
        if module in ("train", "generate"):
            families = [family for family in (ROOT / "soundmill" / "models").iterdir() if (family / "__init__.py").exists()]
            for family in families:
                for source in family.rglob("*.py"):
                    names = {str(used.relative_to(ROOT)) for used in closure(source, TRACKING)}
                    code |= {name for name in names if not name.startswith(f"soundmill/models/{family.name}")}
            code.add("soundmill/models/${key}")
        data = [dep for dep in stage["deps"] if str(dep).startswith(("data/", "${"))]
        stage["deps"] = data + sorted(code)
    yaml.dump(document, path)


if __name__ == "__main__":
    main()
