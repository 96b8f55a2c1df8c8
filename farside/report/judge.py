"""What a run shows of its reward model: how it chooses among answers, and whether RL exploited it."""

from farside.report import plots, prose
from farside.report.markup import image, quiet, table, tag
from farside.report.numbers import change, is_number, number, percent
from farside.report.read import Row, mapping, numbers_of

WAYS = {
    "one": "one answer",
    "majority": "what most answers say",
    "score": "the highest score",
    "min": "the best worst step",
    "product": "the highest product over steps",
    "vote_min": "votes weighted by the worst step",
    "vote_product": "votes weighted by the product",
    "any": "a right one if there is any (bound)",
}


def choosing(summary: Row) -> list[object]:
    """Best of n by the reward model beside the majority; nothing where it was not measured."""
    found = mapping(summary, "best_of")
    rows = [(told, percent(found[name])) for name, told in WAYS.items() if name in found]
    if not rows:
        return []
    title = f"Of {number(found.get('answers'))} answers to each of {number(found.get('problems'))} held-out problems"
    return [tag("p", f"{title}, how often the chosen one is right:"), table(("chosen", "right"), rows, numeric=(1,))]


def watched(rows: list[Row], summary: Row) -> list[object]:
    """The model's score beside verified accuracy, and the first alarm; nothing without a reward model in the loop."""
    if not numbers_of(rows, "proxy_window"):
        return []
    alarms = [row for row in rows if row.get("overoptimisation")]
    if alarms:
        first, ways = alarms[0], (("sampled", "truth_lost"), ("held out", "held_out_lost"))
        lost = ", ".join(f"{name} by {percent(first[key])}" for name, key in ways if is_number(first.get(key)))
        told = tag(
            "p",
            tag("b", f"Over-optimisation: alarm at step {number(first.get('step'))}. "),
            f"The score had risen while accuracy had fallen from its best: {lost}.",
        )
    else:
        told = quiet("No alarm: the score did not rise while verified accuracy fell.")
    drift = [
        f"{name} {change(form(values[0]), form(values[-1]))}"
        for name, key, form in (
            ("divergence from the start, nats an answer,", "kl_start", number),
            ("tokens an answer", "length", number),
            ("repeated 4-grams", "repetition", percent),
        )
        if (values := numbers_of(rows, key))
    ]
    figure = image(plots.overoptimisation(rows, summary), "reward model's score against verified accuracy", prose.WATCH)
    return [tag("h3", "Is the reward model still a measure?"), told, figure, quiet(f"Drift: {'; '.join(drift)}.")]
