"""Spellings of licences as SPDX ids."""

import pytest

from soundmill.corpora import statements

SPELLINGS = {
    "CC-BY-4.0": [
        "CC BY 4.0",
        "cc-by-4.0",
        "CC_BY_4.0",
        "Attribution 4.0",
        "https://creativecommons.org/licenses/by/4.0/",
        "http://www.creativecommons.org/licenses/by/4.0/deed.en",
        "Creative Commons Attribution 4.0 International (CC BY 4.0)",
        "Creative Commons Attribution 4.0 International Public License",
    ],
    "CC-BY": ["CC BY", "Attribution", "Creative Commons Attribution license"],
    "CC-BY-NC-3.0": ["http://creativecommons.org/licenses/by-nc/3.0/", "Attribution NonCommercial 3.0", "CC BY NC 3.0 Unported"],
    "CC-BY-NC-ND-1.0": ["http://creativecommons.org/licenses/by-nd-nc/1.0/"],
    "CC-BY-NC-SA-4.0": [
        "CC BY-NC-SA 4.0",
        "CC BY-SA-NC 4.0",
        "Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International License",
    ],
    "CC-BY-ND-2.5": ["cc by-nd 2.5", "Creative Commons Attribution No Derivative Works 2.5"],
    "CC-BY-SA-2.0": ["Attribution Share-Alike 2.0", "https://creativecommons.org/licenses/by-sa/2.0/legalcode"],
    "CC-BY-3.0-US": ["https://creativecommons.org/licenses/by/3.0/us/"],
    "CC0-1.0": [
        "CC0",
        "cc0 1.0",
        "CC0-1.0",
        "Creative Commons 0",
        "Creative Commons Zero",
        "http://creativecommons.org/publicdomain/zero/1.0/",
        "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication",
    ],
    "CC-PDM-1.0": ["Public Domain Mark 1.0", "https://creativecommons.org/publicdomain/mark/1.0/"],
    "PDDL-1.0": ["PDDL", "Open Data Commons Public Domain Dedication and License"],
    "Unlicense": ["The Unlicense"],
}
OTHERS = [
    "MIT",
    "not CC0",
    "CC BY 4.0, but not for AI",
    "CC-BY-4.0 OR MIT",
    "CC BY 4.0 and CC0",
    "Sampling+",
    "CC BY 5.0",
    "http://creativecommons.org/licenses/sampling+/1.0/",
    "public domain",
    "all rights reserved",
    "",
    "<b>CC0</b>",
]


@pytest.mark.parametrize(("name", "spelling"), [(name, one) for name, some in SPELLINGS.items() for one in some])
def test_common_spellings_become_ids(name, spelling):
    assert statements.spdx(spelling) == name
    assert statements.spdx(name) == name


@pytest.mark.parametrize("text", OTHERS)
def test_other_licences_stay_as_they_are(text):
    assert statements.spdx(text) == text


def test_a_text_names_its_licences():
    legal = (
        "Creative Commons Attribution-NonCommercial 4.0 International Public License\n\nBy exercising … text of the Creative "
        "Commons public\nlicenses is dedicated to the public domain under the [CC0\nPublic Domain Dedication](https://creativecommons.org/"
        "publicdomain/zero/1.0/legalcode). Creative Commons may be contacted at creativecommons.org."
    )
    assert statements.named_in(legal) == ["CC-BY-NC-4.0"]
    assert statements.named_in("Under CC BY, see https://creativecommons.org/licenses/by/4.0/.") == ["CC-BY-4.0"]
    assert statements.named_in("Sounds: CC BY-NC 3.0. Labels: CC0.") == ["CC-BY-NC-3.0", "CC0-1.0"]
    assert statements.named_in("This is free and unencumbered software released\ninto the public domain.") == ["Unlicense"]
    assert statements.named_in("Copyright: all rights reserved. It is not in the public domain.") == []


@pytest.mark.parametrize("piece", ["cc by ----", "creative commons attribution - ", "cc by-nc-", "public   domain", "\u00a0", "a"])
def test_long_repetitions_end(piece):
    assert len(statements.named_in(piece * ((1 << 16) // len(piece)))) <= 2
    assert statements.spdx(f"{piece * 1000}x") == f"{piece * 1000}x"
