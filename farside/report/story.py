"""What a run found, in sentences made from its own numbers; a finding whose numbers are missing is left out."""

from typing import Any

from farside.report.numbers import NONE, change, is_number, number, percent
from farside.report.read import Row, Run, mean, numbers_of
from farside.train.eval.heatmap import count_green

AFTER_RL = "after_rl"
"""Name of the needle grid that the policy of RL is put to."""


def green_of(result: dict[str, Any]) -> tuple[int, int]:
    """(green cells, all cells) of a needle grid over its languages."""
    counts = [count_green(grid) for grid in result["grids"].values()]
    return sum(green for green, _ in counts), sum(cells for _, cells in counts)


def held_out_change(run: Run) -> tuple[str, str]:
    """Held-out accuracy of greedy answers (before RL, after RL), as far as known."""
    rl = run.summary("rl")
    before = rl.get("held_out_accuracy_before", run.summary("sft").get("held_out_accuracy"))
    after = rl.get("held_out_accuracy_after")
    if not is_number(after):  # RL under way: the newest evaluation
        evaluations = numbers_of(run.rows("rl"), "held_out_accuracy")
        after = evaluations[-1] if evaluations else None
    return percent(before), percent(after)


def findings(run: Run) -> list[tuple[str, str]]:
    """(what it is about, what was found), in the order of the story."""
    found = [_retrieval(run.grids), _reasoning(run), _memory(run.grids), _judge(run), _judge_alone(run)]
    return [finding for finding in found if finding]


def _retrieval(grids: list[Row]) -> tuple[str, str] | None:
    trained = [result for result in grids if result["name"] != AFTER_RL]
    if not trained:
        return None
    parts = [
        f"trained on at most {number(result.get('trained_length'))} tokens, {_green(result)}" for result in trained
    ]
    longest = number(max(trained[-1]["lengths"]))
    text = f"Facts hidden in texts of up to {longest} tokens, green cells of the grid: {'; '.join(parts)}."
    return "Long texts.", text


def _green(result: Row) -> str:
    return "{:,} of {:,}".format(*green_of(result))


def _reasoning(run: Run) -> tuple[str, str] | None:
    before, after = held_out_change(run)
    if NONE in (before, after):
        return None
    text = f"Held-out problems solved, {before} before RL and {after} after it"
    prompts = run.summary("rl").get("held_out_prompts")
    share = run.summary("rl").get("held_out_accuracy_before")
    if is_number(prompts) and is_number(share) and prompts:
        noise = 200 * (share * (1 - share) / prompts) ** 0.5
        text += f" ({number(prompts)} problems: differences below {noise:.0f} points are noise)"
    lengths = numbers_of(run.rows("rl"), "length")
    if lengths:
        tokens = change(*(f"{mean(part):.0f}" for part in (lengths[:5], lengths[-5:])))
        text += f". Tokens it writes for an answer: {tokens}"
    return "Reasoning.", f"{text}."


def _memory(grids: list[Row]) -> tuple[str, str] | None:
    after = next((result for result in grids if result["name"] == AFTER_RL), None)
    if after is None:
        return None
    green = f"after RL, {_green(after)} cells are green"
    return "Memory.", f"Practising one task could make it forget how to search long texts; {green}."


def _judge(run: Run) -> tuple[str, str] | None:
    reward = run.summary("reward")
    model, looks = reward.get("held_out_accuracy"), reward.get("format_baseline_accuracy")
    if not is_number(model):
        return None
    text = f"Of two answers of one form, the reward model finds the right one in {percent(model)} of cases"
    beside = f"; going by looks, {percent(looks)}; guessing, 50%" if is_number(looks) else ""
    return "Judging.", f"{text}{beside}."


def _judge_alone(run: Run) -> tuple[str, str] | None:
    summary = run.summary("rl_reward_alone")
    before, after = (percent(summary.get(f"held_out_accuracy_{when}")) for when in ("before", "after"))
    if NONE in (before, after):
        return None
    return "Judge as teacher.", f"Rewarded by that model alone, it solved {after} instead of {before} of the problems."
