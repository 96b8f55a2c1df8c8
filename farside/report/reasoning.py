"""The sections of reinforcement learning: what it changed, the arm of the reward model alone, completions."""

from typing import Any

from farside.report import plots, prose
from farside.report.judge import watched
from farside.report.markup import Markup, image, join, pill, quiet, section, table, tag
from farside.report.numbers import NONE, change, is_number, number, percent
from farside.report.read import Row, Run, mean, numbers_of
from farside.report.story import held_out_change

ALONE = "rl_reward_alone"
_NOT_YET = quiet("Not run yet.")


def reinforcement(run: Run) -> Markup:
    title = "Reinforcement learning"
    if not run.ran("rl"):
        return section("rl", title, _NOT_YET)
    rows, summary = run.rows("rl"), run.summary("rl")
    before, after = held_out_change(run)
    parts: list[object] = [tag("p", prose.RL)]
    if after != NONE:
        parts.append(tag("p", "Held-out problems solved, greedy answers: ", tag("b", change(before, after)), "."))
    if rows:
        parts.append(
            image(
                plots.rl_curves(rows, summary),
                "reward, accuracy, response length and entropy over RL steps",
                prose.CURVES,
            )
        )
        parts.append(table(("", "first 5 steps", "last 5 steps", "highest"), _rl_rows(rows), numeric=(1, 2, 3)))
        parts += watched(rows, summary)
    return section("rl", title, *parts, *_reward_alone(run))


def _reward_alone(run: Run) -> list[object]:
    """The arm in which the reward model alone teaches; nothing where there is none."""
    if not run.ran(ALONE):
        return []
    rows, summary = run.rows(ALONE), run.summary(ALONE)
    before, after = (percent(summary.get(f"held_out_accuracy_{when}")) for when in ("before", "after"))
    parts: list[object] = [tag("h3", "The same start, judged by the reward model alone"), tag("p", prose.ALONE)]
    if after != NONE:
        steps = f" in {len(rows):,} steps" if rows else ""
        parts.append(
            tag("p", "Held-out problems solved, as the program counts: ", tag("b", change(before, after)), f"{steps}.")
        )
    if rows:
        parts.append(
            image(plots.alone(rows, summary), "reward model's score and verified accuracy, reward model alone")
        )
        parts += watched(rows, summary)
    return parts


def _rl_rows(rows: list[Row]) -> list[tuple[Any, ...]]:
    table_rows = []
    for key, name, form in (
        ("reward", "mean reward", number),
        ("accuracy", "verified correct, sampled", percent),
        ("reward_model", "reward model's score", number),
        ("length", "response length, tokens", number),
        ("replay_loss", "loss on replayed texts, nats", number),
        ("kl", "KL to the policy that sampled", number),
        ("clip_share", "tokens with a clipped ratio", percent),
        ("error_share", "answers the verifier failed on", percent),
    ):
        values = numbers_of(rows, key)
        if values:
            table_rows.append((name, form(mean(values[:5])), form(mean(values[-5:])), form(max(values))))
    return table_rows


def samples(run: Run) -> Markup:
    title = "Completions, exactly as the model wrote them"
    by_step: dict[Any, list[Row]] = {}
    for sample in run.samples:
        if is_number(sample.get("step")):
            by_step.setdefault(sample["step"], []).append(sample)
    parts = _before_and_after(run)
    if not by_step and not parts:
        return section("samples", title, _NOT_YET)
    if by_step:
        steps = sorted(by_step)
        parts += [tag("h3", "Sampled while training: early, middle, late"), quiet(prose.SAMPLED)]
        for step in dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]):
            parts.append(tag("h4", f"Step {number(step)}"))
            parts.append(tag("div", *(_sample(sample) for sample in by_step[step][:4]), class_="samples"))
    return section("samples", title, *parts)


def _before_and_after(run: Run) -> list[object]:
    """The same held-out questions, answered before the first step of RL and after the newest evaluation."""
    by_step: dict[Any, dict[str, Row]] = {}
    for answer in run.answers:
        if is_number(answer.get("step")):
            by_step.setdefault(answer["step"], {})[str(answer.get("question"))] = answer
    if len(by_step) < 2:
        return []
    first, last = min(by_step), max(by_step)
    rows = [
        (question, old.get("reference", NONE), _answer(old), _answer(by_step[last][question]))
        for question, old in by_step[first].items()
        if question in by_step[last]
    ]
    before = "before RL" if first == 0 else f"step {number(first)}"
    return [
        tag("h3", "The same held-out questions before and after RL"),
        quiet(prose.BEFORE_AFTER),
        table(("question", "expected", before, f"after {number(last)} steps of RL"), rows),
    ]


def _answer(answer: Row) -> Markup:
    return join([tag("code", answer.get("text", "")), " ", _verdict(answer)])


def _verdict(row: Row) -> Markup:
    verdict = str(row.get("verdict", NONE))
    # An error is no wrong answer: the reward could not be computed.
    return pill(verdict, "good" if verdict == "correct" else "warn" if verdict == "error" else "bad")


def _sample(sample: Row) -> Markup:
    facts = (
        f"expected {sample.get('reference', NONE)}",
        f"reward {number(sample.get('reward'))}",
        f"reward model {number(sample.get('reward_model'))}",
        f"{number(sample.get('length'))} tokens",
    )
    return tag(
        "div",
        tag("div", tag("b", sample.get("question", NONE)), " ", _verdict(sample)),
        tag("pre", sample.get("text", "")),
        tag("p", *(tag("span", fact) for fact in facts), class_="facts"),
        class_="sample",
    )
