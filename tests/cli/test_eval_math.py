"""``farside eval math`` as a user calls it."""

import json
from pathlib import Path

import pytest

from tests.faults.driver import farside

FEW = ["eval.math.prompts=5", "eval.math.samples=2", "eval.math.budgets=[2,4]", "rl.max_new_tokens=8"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_checkpoint_is_evaluated_alike_on_one_rank_and_on_two(
    tmp_path: Path, words: list[str], finished: Path
) -> None:
    newest = max((finished / "checkpoints").glob("step_*"))
    answers = []
    for shards in (1, 2):
        layout = [f"parallel.dp_shard={shards}", f"run.dir=run{shards}"]
        done = farside(["eval", "math", *words, *FEW, *layout, f"eval.checkpoint={newest}"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert "math math: greedy 0.0%, pass@2 " in done.stdout
        folder = tmp_path / f"run{shards}" / "eval" / "math"
        result = json.loads((folder / "math.json").read_text())
        assert (result["checkpoint"]["step"], result["prompts"], result["greedy"]) == (4, 5, 0.0)
        assert [row["budget"] for row in result["budgets"]] == [2, 4]
        assert (folder / "math.png").stat().st_size > 10_000
        answers.append((folder / "math.jsonl").read_text())
    assert len(answers[0].splitlines()) == 5 * (1 + 2 + 2)
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_without_a_checkpoint_there_is_one_line(tmp_path: Path, words: list[str]) -> None:
    done = farside(["eval", "math", *words, "run.dir=nothing"], tmp_path)
    assert done.returncode == 2
    assert "no checkpoint to evaluate; name one with eval.checkpoint=PATH" in done.stderr
