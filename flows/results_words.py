"""What the rows of a sweep or a bake-off say, in words: how to read the table, its knee, its verdict."""

from collections.abc import Sequence

from flows.results_rows import OTHER_DATA, Difference, Row, distance, falling, flat, front, leading, metrics_of, most_seeds, ranks
from flows.results_scores import COPIES, METRICS, Estimate


def notes(rows: Sequence[Row], source: str | None) -> list[str]:
    """How to read the table."""
    seeds = most_seeds(rows)
    first = rows[0].name if rows else ""
    remarks = ["Fréchet distance, MMD and KL: lower is better; label accuracy: higher."]
    if any(metric.startswith(COPIES) for metric in metrics_of(rows)):
        remarks.append(f"{COPIES}…: share of near-copies of training clips; real: of held-out real sounds, which are none.")
    unranked = {metric: score.unranked for row in rows for metric, score in row.scores.items() if score.unranked}
    remarks += [f"† {metric} is not ranked: {reason}." for metric, reason in unranked.items()]
    if seeds > 1:
        remarks.append(
            f"Values are means of up to {seeds} seeds with Student's 95 % interval over seeds. Differences to “{first}” are paired "
            "by seed, with the same kind of interval. table.csv has each seed's value and bootstrap interval."
        )
    elif seeds:
        remarks.append("Intervals are bootstrap 95 % intervals over clips; they do not cover other seeds.")
    if len({row.clips for row in rows if row.clips is not None}) > 1:
        remarks.append("Rows have different numbers of clips: Fréchet distances of fewer clips are biased upward.")
    from_paper = [row for row in rows if row.paper]
    if from_paper and source:
        if all(row.comparable for row in from_paper):
            remarks.append(f"Paper: {source}, measured by the same protocol on the same files.")
        else:
            remarks.append(
                f"Paper: {source}. “{OTHER_DATA}”: another protocol or other files; compare the order of rows, not numbers."
            )
    return remarks


def knee(rows: Sequence[Row]) -> list[str]:
    """The cheapest row whose distance is as good as the best one's: its interval reaches down to that; rows in order of cost."""
    metric = next((name for name in metrics_of(rows) if name.startswith(("fad_", "mmd_"))), None)
    scored = [row for row in rows if metric in row.scores and not row.scores[metric].unranked]
    if len(scored) < 2:
        return []
    best = min(scored, key=lambda row: row.scores[metric].total.value)
    lowest = best.scores[metric].total.value
    first = next(row for row in scored if row is best or _reaches(row.scores[metric].total, lowest))
    last = " It is also the most costly: more may be better still." if first is scored[-1] else ""
    return [
        f"Knee: “{first.name}” is the cheapest whose {metric} cannot be told from the best, {lowest:.3g} of “{best.name}”.{last}"
    ]


def _reaches(estimate: Estimate, value: float) -> bool:
    return estimate.low is not None and estimate.low <= value


def verdict(rows: Sequence[Row], differences: Sequence[Difference]) -> str:
    """Which family is best for quality and for speed, and whether more training would likely help, in words."""
    metric = leading(rows)
    title = METRICS[metric].short_title
    scored = [row for row in rows if ranks(row, metric) and row.trainings]
    if not scored:
        return "No family has a ranked score." if any(row.scores for row in rows) else "No family has a score."
    best = min(scored, key=lambda row: distance(row, metric))
    better_than = {({one.a, one.b} - {best.name}).pop() for one in differences if one.metric == metric and one.better == best.name}
    others = [row.name for row in scored if row is not best]
    unsure = [name for name in others if name not in better_than]
    if not others:
        evidence = "the only one with a ranked score"
    elif not unsure:
        evidence = "significantly better than all others"
    else:
        evidence = f"not significantly better than {listed(unsure)}"
    words = [f"For quality choose {best.name}: {title} {distance(best, metric):.3g}, {evidence}."]
    if pareto := front(scored):
        fastest = pareto[0]
        if fastest is best:
            words.append("It is also the fastest.")
        else:
            words.append(
                f"For speed choose {fastest.name}: {fastest.seconds_per_second:.2g} s per second of sound, "
                f"{title} {distance(fastest, metric):.3g}."
            )
    if trainings := falling(best):
        lower = listed([f"{-one.slope.value:.0%} in {one.stage}" for one in trainings])
        words.append(f"More minutes would likely help {best.name}: twice as many should lower its held-out loss by {lower}.")
    elif flat(best):
        words.append(f"More minutes would hardly help {best.name}: its held-out loss no longer falls.")
    else:
        words.append(f"The held-out loss of {best.name} does not show whether more minutes would help.")
    helped = [row.name for row in scored if row is not best and falling(row)]
    if helped:
        words.append(f"They would likely help {listed(helped)} too.")
    return " ".join(words)


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def unranked(rows: Sequence[Row]) -> list[str]:
    """A note for each reason why scores are not ranked."""
    titles: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for metric, score in row.scores.items():
            if score.unranked:
                titles.setdefault(score.unranked, {}).setdefault(row.name, []).append(METRICS[metric].short_title)
    return [
        "† not ranked: " + "; ".join(f"{', '.join(of_row)} of {name}" for name, of_row in by_row.items()) + f": {reason}."
        for reason, by_row in titles.items()
    ]
