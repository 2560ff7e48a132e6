"""Credentials in addresses and texts, however they are written: found, and hidden in what is shown or recorded."""

import re
import unicodedata
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,30}):(/+)([^\s\"'<>`]*)")
_LOCAL = ("file", "sqlite")  # after three slashes, a path
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "azure")  # their hosts have no port
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\]]*)(?::\d*)?")
_SETTING = re.compile(r"([?&;#])([^=&;#?\s]+)=([^&;#\s]+)")
_SECRET_NAME = re.compile(
    r"sig|key|pass|pw|sas|auth|jwt|otp|hmac|bearer|j?session(id)?"
    r"|.*(signature|token|pass(word|wd|phrase)|pwd|secret|(api|access|account|shared|subscription)key|credential).*"
)
_KNOWN = re.compile(  # tokens that services name in their documentation
    r"(?<![A-Za-z0-9])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[opsur]_\w{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,}"
    r"|xox[abeoprs]-[\w-]{10,}|AIza[\w-]{35}|sk-[\w-]{32,}|pypi-AgE[\w-]{13,}|npm_[A-Za-z0-9]{36}|dop_v1_[0-9a-f]{64}"
    r"|(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*"
    r"|hooks\.(?:slack(?:-gov)?|zapier)\.com/\S+|(?:Account|SharedAccess)Key=[\w+/]{20,}=*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----(?:.|\n)*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)"
)
# Whoever knows these can post; other parts of paths are words without digits.
_HOOK = re.compile(r"(?i)/(?:\w*webhook\w*|hooks|key|bot(?=\d+:))[/\d]\S{0,99}?(?=[\w-]*\d)[\w-]{16}\S*")
_BARE = re.compile(r"(?://)?[^\s/@:]+:(?!/)[^\s@]+@[\w.-]+(:\d+)?(/.*)?")  # USER:PASSWORD@HOST without a scheme
_NAMED = (
    r"[\w.-]{0,40}(?:password|passwd|passphrase|secret|token|credentials?|authorization"
    r"|(?:login|auth[_-]?string)(?=[\"'\]]*\s*[:=]\s*[\"']?[^\s:\"'<{$]{1,99}:(?!//))|(?:api|access|account|private|secret)[_-]?key)"
)
_QUOTED = re.compile(rf"(?i){_NAMED}[\"']?\]?\s*[:=]\s*[\"'](?![{{$<])[^\"'\s]{{6,}}[\"']")
_BLOCK = r"[ \t]*(?:[|>][+-]?[ \t]*\n[ \t+-]*)?"  # before a value of YAML, which may begin in the next line
_CODE = r"(?!(?:(?:_*[A-Za-z]+[._]+)+[A-Za-z]*|[A-Z][A-Za-z]+)[^\S\n]*(?:\n|\Z|#))"  # `token: Tensor`, `token = page.token`
_PLAIN = re.compile(rf"(?m)^[ \t+-]*(?:export[ \t]+)?(?i:{_NAMED})\s*[:=]{_BLOCK}{_CODE}[^\s\"'`#(\[{{$<=]{{6,}}[^\S\n]*(?:#.*)?$")
_RANDOM = re.compile(
    rf"(?i){_NAMED}(?! *==)(?:[ \"'\]:=>-]|\n[ +-]*value|bearer|basic)+(?=\S{{0,60}}?\d)[^\s(\[`|]{{12,99}}+(?![(\[])"
)

_COMMAND = re.compile(  # a password after an option, a key that a call logs in with
    r"(?<!\S)(?:curl|wget|https?)\s[^\n|&;]{0,200}?(?<=\s)(?:-u|--user|-a|--auth)(?![-\w])[ =]?[\"']?"
    r"(?!\d+:\d+(?:\s|$))[^\s:\"'<{$]{1,99}:(?!//)[^\s\"'<{$]{4}"
    r"|(?<!\S)(?:mysql\w*|mariadb\S*|sshpass)\s[^\n|&;]{0,200}?(?<=\s)-p ?[\"']?[^\s\"'<{$-][^\s\"'<{$]{3}"
    r"|\blogin\([^)\n]{0,200}\bkey\s*=\s*[\"'][^\s\"'<{$]{6,}[\"']"
    rf"|(?<!\S)--(?i:{_NAMED})[ =](?=\S{{0,60}}?\d)(?=\S{{0,60}}?[A-Za-z])[^\s\"'<{{$-][^\s\"'<{{$]{{5}}"
)


def has_some(text: str) -> bool:
    """Whether a value has credentials in an address, however it is encoded, or is a token of a known service."""
    for reading in _readings(text):
        whole = re.sub(r"\s+", "", reading)  # a password may have a blank in it
        of_address = _URL.match(whole) and _hidden(whole) != whole
        if of_address or _hidden(reading) != reading or _BARE.fullmatch(reading.strip().rpartition("=")[2]):
            return True
    return False


def hide(text: str) -> str:
    """A text in which every credential is replaced, to show or to record; an address keeps the user of USER:PASSWORD@HOST."""
    return re.sub(
        r"\S+", lambda word: HIDDEN if ("%" in word[0] or not word[0].isascii()) and has_some(word[0]) else word[0], _hidden(text)
    )


def hide_in(value: Any) -> Any:
    """A value as JSON has them, in whose texts `hide` has replaced credentials."""
    if isinstance(value, dict):
        return {key: hide_in(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [hide_in(inner) for inner in value]
    return hide(value) if isinstance(value, str) else value


def in_file(content: bytes) -> bool:
    """Whether a file, or a diff, seems to have a credential in it: an address, a known token, or a word after such a name."""
    text = content.replace(b"\0", b"").decode("utf-8", "ignore")  # of UTF-16 too
    return _hidden(text) != text or any(pattern.search(text) for pattern in (_QUOTED, _PLAIN, _RANDOM, _COMMAND))


def _readings(text: str) -> list[str]:
    """A text without invisible characters, and what it says when percent-encoding is taken off, 30 times at most."""
    text = "".join(char for char in unicodedata.normalize("NFKC", text) if char.isspace() or unicodedata.category(char)[0] != "C")
    found = [re.sub(r"%(25)+(?=25)", "%", text)]  # many levels at once
    while len(found) < 30 and (decoded := unquote(found[-1])) != found[-1]:
        found.append(decoded)
    return found


def _hidden(text: str) -> str:
    return _KNOWN.sub(HIDDEN, _URL.sub(_without, text) if ":/" in text else text)


def _without(match: re.Match[str]) -> str:
    """An address without passwords, signatures and tokens; what could be part of one goes too."""
    scheme, slashes, rest = match.groups()
    authority = re.match(r"[^/?#]*", rest)[0]
    head, at, tail = rest.rpartition("@")
    host = _HOST.fullmatch(authority)
    if at and not (scheme.lower() in _LOCAL and len(slashes) != 2):
        user, colon, _ = head.partition(":")
        has_port = host and ":" in authority.rpartition("]")[2]
        # In `s3://KEY:12/34@bucket`, what looks like a port begins a key.
        odd_port = has_port and (scheme.lower() in _BUCKETS or ("." not in host[1] and not re.match(r"localhost$|\[|$", host[1])))
        only_user = "@" in authority and not colon and scheme.lower() not in ("http", "https", *_BUCKETS)  # ssh://user@host
        if not only_user and ("@" in authority or host is None or odd_port):
            rest = f"{user if colon else HIDDEN}@{tail}"
    rest = _HOOK.sub(f"/{HIDDEN}", rest) if scheme.lower().startswith("http") else rest
    return f"{scheme}:{slashes}{_SETTING.sub(_setting_without, rest)}"


def _setting_without(match: re.Match[str]) -> str:
    mark, name, value = match.groups()
    named = re.sub(r"[^a-z]", "", unquote(name).lower())
    is_secret = _SECRET_NAME.fullmatch(named) or (named == "code" and len(value) > 15)  # a shorter one is of a country
    return f"{mark}{name}={HIDDEN if is_secret else value}"
