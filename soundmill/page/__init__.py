"""Self-contained HTML pages from Jinja2 templates, which escape every value, and texts in Markdown, which do not.

Pictures and sounds are data URIs. Scripts are files of this package; the page's content security policy lists their digests and
allows nothing else to run or load.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape


def render(package: str, template: str, **values: Any) -> str:
    """A text from one of the package's `templates`; they may use those of this package (`shell.html`, `parts.html`)."""
    return _environment(package).get_template(template).render(values)


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__name__)]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = lambda data, kind: f"data:{kind};base64,{base64.b64encode(data).decode()}"
    environment.filters["script"] = _script
    return environment


def _script(name: str) -> dict[str, str]:
    source = files(__name__).joinpath(f"{name}.js").read_text(encoding="utf-8")
    return {"source": source, "digest": base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}
