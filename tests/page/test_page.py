"""Templates of pages: values are escaped, missing values are errors, and only the page's own scripts may run."""

import base64
import hashlib
import re

import pytest
from jinja2 import UndefinedError

from soundmill import page

EVIL = "<script>alert(1)</script>"


def test_values_are_escaped_and_the_policy_allows_the_scripts_of_the_page():
    text = page.render(
        "soundmill.listening",
        "listen.html",
        title=EVIL,
        above="<h2>ours</h2>",
        columns=[],
        labels=[EVIL, "b"],
        scores={EVIL: [EVIL]},
        articles=[],
        num_requests=0,
        remarks=[EVIL],
    )
    assert EVIL not in text
    assert "<h2>ours</h2>" in text
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2
    assert re.findall(r"'sha256-([^']*)'", text) == digests


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        page.render(page.__name__, "shell.html", scripts=[])
