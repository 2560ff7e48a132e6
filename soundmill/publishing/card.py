"""Cards of published models and clips, from templates: Markdown, with the front matter of the Hugging Face hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, DatasetCardData, EvalResult, ModelCardData

from soundmill import attribution, manifest, page
from soundmill.attribution import Credit

LICENCE_LINK = "LICENSE.md"  # the hub takes this file, LICENSE or an address
CUT = 100  # characters of a reason there
CODEC, NET = "codec.ts", "net.ts"  # networks in TorchScript, and what the script beside them does
USES = {
    CODEC: "`python load.py INPUT.wav OUTPUT.wav` runs the codec in plain torch.",
    NET: "`python load.py OUTPUT.wav --seed 0` generates a sound in plain torch; `--help` lists the labels.",
}


def of_model(
    name: str,
    family: str,
    corpus: str,
    condition: str,
    found: Sequence[Credit],
    labels: Mapping[str, float],
    metrics: Mapping[str, Any],
    listening: Mapping[str, float] | None,
    exported: str | None,
    **shown: Any,
) -> str:
    """The card of a model. `labels`: hours of its training clips by label. `metrics`: of its evaluation; empty if there is none.

    `listening`: ratings of these weights, as listening.scoring.scores_of names them; None: unknown. `exported`: the file with its
    network in TorchScript. `shown`: what else is in model.md. `checkpoint` and `adapters` are digests: of what is published, and of
    the adapters merged into it; `samples` are WAVs beside the card → what was asked for.
    """
    # The scores that have baselines, without their intervals.
    scores = {key: metrics[key] for key in sorted(metrics.get("baselines", {})) if isinstance(metrics.get(key), int | float)}
    results = [
        EvalResult(
            task_type="audio-generation",
            dataset_type=_slug(corpus),
            dataset_name=corpus,
            dataset_split="test",
            metric_type=key,
            metric_value=value,
            metric_name=f"{key} (95 % interval {bounds})" if (bounds := _bounds(metrics, key)) else key,
        )
        for key, value in scores.items()
    ]
    front = {"datasets": [_slug(corpus)], "metrics": list(scores) or None, "eval_results": results or None}
    front |= {"pipeline_tag": "text-to-audio"} if condition == "caption" else {}
    return _render(
        "model.md",
        found,
        ModelCardData,
        front | _of_trained(name, [family], found),
        labels,
        name=name,
        family=family,
        metrics={"warnings": [], **metrics},
        scores=scores,
        unranked=metrics.get("unranked", {}),
        ratings=_ratings(listening),
        listening=listening,
        use=USES.get(exported),
        marks=attribution.marks(found),
        **shown,
    )


def of_component(name: str, what: str, kind: str, found: Sequence[Credit], exported: str | None, **shown: Any) -> str:
    """The card of a codec or vocoder (`what`); `shown`: what else is in component.md."""
    front = _of_trained(name, [what, kind], found)
    return _render("component.md", found, ModelCardData, front, name=name, what=what, kind=kind, use=USES.get(exported), **shown)


def of_clips(name: str, found: Sequence[Credit], **shown: Any) -> str:
    """The card of prepared clips; `shown`: what else is in clips.md."""
    front = {"pretty_name": name, "tags": ["soundmill", "audio", *(f"material-{mark}" for mark in attribution.marks(found))]}
    totals = {"recordings": len(found), "clips": sum(credit.clips for credit in found)}
    hours = sum(credit.seconds for credit in found) / 3600
    return _render("clips.md", found, DatasetCardData, front, name=name, **totals, hours=hours, **shown)


def _of_trained(name: str, tags: Sequence[str], found: Sequence[Credit]) -> dict[str, Any]:
    marks = [f"training-material-{mark}" for mark in attribution.marks(found)]
    return {"library_name": "soundmill", "model_name": name, "tags": ["soundmill", "audio", *tags, *marks]}


def _render(
    template: str,
    found: Sequence[Credit],
    data: type[CardData],
    front: Mapping[str, Any],
    labels: Mapping[str, float] | None = None,
    **shown: Any,
) -> str:
    """A card that the hub reads. No licence is claimed: its link leads to the terms of the training material."""
    of_hub = data(license="other", license_name="terms-of-the-training-material", license_link=LICENCE_LINK, **front)
    tables = {"licence": attribution.hours_by(found, "licence"), "AI terms": attribution.hours_by(found, "ai_terms")}
    return _with_terms(template, found, None, front_matter=of_hub.to_yaml(), tables=tables | {"label": labels}, **shown)


def _with_terms(template: str, found: Sequence[Credit], cut: int | None, **shown: Any) -> str:
    """What the terms say, each with the reason, of which at most `cut` characters are kept, and what else is `shown`."""
    said = attribution.statements(list(found))
    shown |= {"statements": said, "cut": cut, "attribution": manifest.ATTRIBUTION, "plain": plain, "bounds": _bounds}
    return page.render(__package__, template, **shown)


def write_terms(found: Sequence[Credit], directory: Path) -> None:
    """Write the table of credits, and in `LICENSE.md` what follows from it.

    As terms of a corpus (corpora/terms.py), that text has an unclear licence: it is short and about generative AI.
    """
    attribution.write(found, directory / manifest.ATTRIBUTION)
    (directory / LICENCE_LINK).write_text(_with_terms("licence.md", found, CUT), encoding="utf-8")


def _ratings(listening: Mapping[str, float] | None) -> Iterator[str]:
    if not listening:
        yield "Unknown: no store of runs answers here." if listening is None else "None of these weights is recorded."
        return
    yield from ("| question | value | 95 % interval |", "|---|---|---|")
    for key, value in sorted(listening.items()):
        if not key.endswith(("_low", "_high")):
            kind, _, question = key.partition("_")
            name = {"mos": "mean rating", "preference": "share of answers that prefer it"}.get(kind, kind)
            yield f"| {plain(question)}, {name} | {value:.4g} | {_bounds(listening, key)} |"


def _bounds(metrics: Mapping[str, Any], key: str) -> str:
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    return f"{low:.4g} … {high:.4g}" if isinstance(low, float) and isinstance(high, float) else ""


def plain(words: str) -> str:
    """Text from outside in Markdown: no HTML, link, table cell or emphasis begins in it."""
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!])", r"\\\1", " ".join(words.split()))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "corpus"
