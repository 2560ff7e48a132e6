"""The card of a published model: Markdown, with the front matter of the Hugging Face hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundmill import attribution, manifest
from soundmill.attribution import Credit

LICENCE_NAME, LICENCE_LINK = "terms-of-the-training-material", "LICENSE.md"  # the hub takes this file, LICENSE or an address
CUT = 100  # characters of a reason in LICENSE.md
CODEC, NET = "codec.ts", "net.ts"  # networks in TorchScript, and what the script beside them does
USES = {
    CODEC: "`python load.py INPUT.wav OUTPUT.wav` runs the codec in plain torch.",
    NET: "`python load.py OUTPUT.wav --seed 0` generates a sound in plain torch; `--help` lists the labels.",
}


@dataclass(frozen=True)
class Facts:
    name: str
    family: str
    title: str  # of the family
    checkpoint: str  # digest of what is published
    adapters: str | None  # digest of the adapters that were merged into it, which made its sounds and scores; None: it has none
    condition: str  # labels | caption | none
    parameters: int | None
    corpus: str
    found: Sequence[Credit]
    labels: Mapping[str, float]  # hours of training clips by label
    metrics: Mapping[str, Any]  # of its evaluation; empty if it has not been evaluated
    listening: Mapping[str, float] | None  # ratings of these weights, as listening.scoring.scores_of names them; None: unknown
    samples: Mapping[str, str]  # WAVs beside the card → what was asked for
    picture: str | None
    exported: str | None  # name of the file with its network in TorchScript
    commit: str | None


def text(facts: Facts) -> str:
    return f"---\n{front_matter(facts)}\n---\n\n" + "\n".join(_lines(facts))


def text_of_component(
    name: str, what: str, kind: str, digest: str, found: Sequence[Credit], exported: str | None, commit: str | None
) -> str:
    """The card of a codec or vocoder (`what`)."""
    use = (
        ("```sh", "soundmill pull DIR --output MODEL", "soundmill vocode RECORDING --checkpoint MODEL/checkpoint", "```")
        if what == "vocoder"
        else (
            "`soundmill pull DIR --output MODEL` copies it. To use it for another model of its family, set "
            "`FAMILY.autoencoder.weights.start_from=MODEL/checkpoint` and `FAMILY.autoencoder.weights.steps=0`; "
            "to train it further, more steps.",
        )
    )
    again = f", by the code of commit {commit}" if commit else ""
    lines = (
        *(f"# {plain(name)}", "", f"A {what} of kind `{kind}`. Made with Soundmill.", ""),
        *_terms(found),
        *("## How to use it", "", *use, ""),
        *([USES[exported], ""] if exported else []),
        *("## How to make it again", "", f"All parameters are in `checkpoint/config.json`{again}. Digest: `{digest}`.", ""),
    )
    return f"---\n{_front_matter(name, [what, kind], found)}\n---\n\n" + "\n".join(lines)


def _front_matter(name: str, tags: Sequence[str], found: Sequence[Credit], **more: Any) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license="other",
        license_name=LICENCE_NAME,
        license_link=LICENCE_LINK,
        library_name="soundmill",
        model_name=name,
        tags=["soundmill", "audio", *tags, *(f"training-material-{mark}" for mark in attribution.marks(found))],
        **more,
    )
    return data.to_yaml()


def front_matter(facts: Facts) -> str:
    """YAML that `huggingface_hub` reads. No licence is claimed: its link leads to the terms of the training material."""
    from huggingface_hub import EvalResult

    results = [
        EvalResult(
            task_type="audio-generation",
            dataset_type=_slug(facts.corpus),
            dataset_name=facts.corpus,
            dataset_split="test",
            metric_type=key,
            metric_value=value,
            metric_name=f"{key} (95 % interval {bounds})" if (bounds := _bounds(facts.metrics, key)) else key,
        )
        for key, value in _scores(facts.metrics).items()
    ]
    more: dict[str, Any] = {"datasets": [_slug(facts.corpus)], "metrics": list(_scores(facts.metrics)) or None}
    more |= {"pipeline_tag": "text-to-audio"} if facts.condition == "caption" else {}
    return _front_matter(facts.name, [facts.family], facts.found, eval_results=results or None, **more)


def _terms(found: Sequence[Credit]) -> Iterator[str]:
    """What the terms say, and hours by licence and terms for AI."""
    yield from ("## Terms of the training material", "", *statements(found))
    yield from ("## Trained on", "", *hours_table("licence", attribution.hours_by(found, "licence")))
    yield from hours_table("AI terms", attribution.hours_by(found, "ai_terms"))


def statements(found: Sequence[Credit], cut: int | None = None) -> Iterator[str]:
    """What the terms say, each with the reason, of which at most `cut` characters are kept."""
    said = [(fact, plain(why)) for fact, why in attribution.statements(list(found))]
    yield from (f"- {fact}: {why if cut is None or len(why) <= cut else f'{why[: cut - 1]}…'}" for fact, why in said)
    yield from (["- no condition is known"] if not said else [])
    yield from ("", f"These are facts about the recordings, not advice. `{manifest.ATTRIBUTION}` names each of them.", "")


def write_terms(found: Sequence[Credit], directory: Path) -> None:
    """Write the table of credits, and in `LICENSE.md` what follows from it.

    As terms of a corpus (corpora/terms.py), that text has an unclear licence: it is short and about generative AI.
    """
    attribution.write(found, directory / manifest.ATTRIBUTION)
    about = "No licence is chosen for these files. What the terms of their recordings say, also of generative AI, if known:"
    lines = ("# Terms of the recordings", "", about, "", *statements(found, CUT))
    (directory / LICENCE_LINK).write_text("\n".join(lines), encoding="utf-8")


def _lines(facts: Facts) -> Iterator[str]:
    yield from (f"# {plain(facts.name)}", "", f"{facts.title}. Made with Soundmill; family `{facts.family}`.", "")
    if facts.parameters:
        yield from (f"{facts.parameters:,} parameters.", "")
    yield from _terms(facts.found)
    yield from hours_table("label", facts.labels)
    yield from ("## Scores", "")
    if scores := _scores(facts.metrics):
        counts = facts.metrics["counts"]
        yield f"{counts['generated']} generated sounds against {counts['reference']} real ones; {facts.metrics['protocol']}."
        yield from ("", "| score | value | 95 % interval | real sounds, noise, … |", "|---|---|---|---|")
        for key, value in scores.items():
            others = ", ".join(f"{name} {number:.4g}" for name, number in facts.metrics["baselines"].get(key, {}).items())
            unranked = facts.metrics.get("unranked", {}).get(key)
            note = f" (not ranked: {plain(unranked)})" if unranked else ""
            yield f"| `{key}`{note} | {value:.4g} | {_bounds(facts.metrics, key)} | {others} |"
        yield ""
        copied = {key: value for key, value in facts.metrics.items() if key.startswith("memorised_") and isinstance(value, float)}
        yield from ("## Copies of training sounds", "")
        yield from (f"- `{key}`: {value:.1%} of the sounds" for key, value in sorted(copied.items()))
        yield from (["Not searched for."] if not copied else [])
        yield ""
    else:
        yield from ("Not evaluated.", "")
    yield from ("## Listening tests", "", *_ratings(facts.listening), "")
    yield from ("## Sounds", "")
    yield from (f"- [{plain(asked) or 'nothing asked for'}]({path})" for path, asked in facts.samples.items())
    yield from (["None are kept with this checkpoint."] if not facts.samples else [])
    yield from (["", f"![spectrograms]({facts.picture})"] if facts.picture else [])
    yield from ("", "## Limits", "")
    yield "- It makes sounds like those it was trained on; labels and captions that were rare there are followed badly."
    yield from ([] if facts.listening else ["- It has no ratings of listeners; scores of embedders are not their opinions."])
    yield from (f"- {plain(warning)}" for warning in facts.metrics.get("warnings", []))
    yield from (*(f"- Some of its training material is {mark}." for mark in attribution.marks(facts.found)), "")
    yield from (
        "## How to use it",
        "",
        "```sh",
        "soundmill pull DIR --output MODEL",
        "soundmill generate --checkpoint MODEL/checkpoint",
        "```",
        "",
    )
    yield from ([USES[facts.exported], ""] if facts.exported else [])
    again = f" at commit {facts.commit}" if facts.commit else ""
    yield from (
        "## How to make it again",
        "",
        f"`dvc repro train@{facts.family}`{again}, over the recordings in `ATTRIBUTION.csv`.",
    )
    yield from (f"All parameters are in `checkpoint/config.json`. Digest of the checkpoint: `{facts.checkpoint}`.", "")
    if facts.adapters:
        yield from (f"Merged from adapters (digest `{facts.adapters}`), which made the sounds above and were scored.", "")


def _ratings(listening: Mapping[str, float] | None) -> Iterator[str]:
    """Ratings of listeners, with intervals where a test has them."""
    if not listening:
        yield "Unknown: no store of runs answers here." if listening is None else "None of these weights is recorded."
        return
    yield from ("| question | value | 95 % interval |", "|---|---|---|")
    for key, value in sorted(listening.items()):
        if not key.endswith(("_low", "_high")):
            kind, _, question = key.partition("_")
            name = {"mos": "mean rating", "preference": "share of answers that prefer it"}.get(kind, kind)
            yield f"| {plain(question)}, {name} | {value:.4g} | {_bounds(listening, key)} |"


def hours_table(what: str, hours: Mapping[str, float]) -> Iterator[str]:
    if hours:
        yield from (f"| {what} | hours |", "|---|---|", *(f"| {plain(name)} | {value:.3f} |" for name, value in hours.items()), "")


def _scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The scores that have baselines, without their intervals."""
    return {key: metrics[key] for key in sorted(metrics.get("baselines", {})) if isinstance(metrics.get(key), int | float)}


def _bounds(metrics: Mapping[str, Any], key: str) -> str:
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    return f"{low:.4g} … {high:.4g}" if isinstance(low, float) and isinstance(high, float) else ""


def plain(words: str) -> str:
    """Text from outside in Markdown: no HTML, link, table cell or emphasis begins in it."""
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!])", r"\\\1", " ".join(words.split()))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "corpus"
