"""A whole ``farside rl`` whose verifier raises, sleeps, forks, eats memory, prints binary and is killed."""

import json
import os
import time
from pathlib import Path

import pytest

from tests.faults.driver import Job, environment, farside, status

FAMILY = '''
"""Stands in for reasoning-gym: one family, whose judge misbehaves for some of its problems."""
import os, signal, sys, time, types

class Hostile:
    def __init__(self, seed, size):
        self.size = size
    def __len__(self):
        return self.size
    def __getitem__(self, index):
        return {"question": f"Say one: {index}", "answer": "1", "metadata": {"fault": index % 12}}
    def score_answer(self, answer, entry):
        fault = entry["metadata"]["fault"]
        if fault == 0:
            raise ValueError("no such luck")
        if fault == 1:
            time.sleep(600)
        if fault == 2:
            os.fork()
        if fault == 3:
            hoard = [bytes(1 << 28) for _ in range(100)]
        if fault == 4:
            os.write(1, bytes(range(256)))
        if fault == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(answer == "1")

factory = types.ModuleType("reasoning_gym.factory")
factory.DATASETS = {"hostile": (Hostile, None)}
sys.modules["reasoning_gym.factory"] = factory

def create_dataset(name, **settings):
    return Hostile(**settings)
'''
TASK = "sft.task.name=reasoning_gym:hostile"
SFT = [
    *(TASK, "sft.traces=500", "sft.steps=60", "sft.seq_len=64", "sft.global_batch_size=16", "sft.micro_batch_size=16"),
    *("sft.lr=1e-2", "run.dir=warm"),
]
RL = [
    *(TASK, "rl.steps=4", "checkpoint.every=2", "rl.prompts_per_step=12", "rl.samples_per_prompt=2"),
    *(
        "rl.max_new_tokens=12",
        "rl.reward_model_weight=0",
        "rl.eval_every=4",
        "rl.eval_prompts=2",
        "rl.replay.samples=0",
    ),
    *("rl.verifier_timeout_seconds=1", "run.dir=run"),
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> tuple[str, Path]:
    """(PYTHONPATH with the family, checkpoint of a policy that ends its answers)."""
    root = tmp_path_factory.mktemp("hostile")
    package = root / "modules" / "reasoning_gym"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAMILY)
    path = os.pathsep.join([str(root / "modules"), environment()["PYTHONPATH"]])
    for command in (
        ["train", *words, "train.steps=4", "run.dir=start"],
        ["sft", *words, *SFT, "train.init_from=start/checkpoints/step_00000004"],
    ):
        done = farside(command, root, seconds=200, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
    return path, max((root / "warm" / "checkpoints").glob("step_*"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_on_over_every_fault_of_its_verifier(
    hostile: tuple[str, Path], words: list[str], tmp_path: Path
) -> None:
    path, policy = hostile
    words = ["rl", *words, *RL, f"train.init_from={policy}", "rl.max_error_share=0.9"]
    with Job(words, tmp_path, PYTHONPATH=path) as job:
        assert job.wait(300) == 0, job.said()
        assert job.gone(), "a judge outlived the run"
    assert status(tmp_path / "run")["status"] == "finished"
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    kinds = {
        kind: sum(record[f"errors_{kind}"] for record in records) for kind in ("raised", "timeout", "memory", "crash")
    }
    assert min(kinds.values()) > 0, kinds
    assert all(record["errors_malformed"] == 0 for record in records)
    for record in records:
        errors = sum(record[f"errors_{kind}"] for kind in kinds)
        assert record["error_share"] == pytest.approx(errors / 24)
        assert record["accuracy"] > 0.5, "the neighbours of a fault are judged, what forks and prints too"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_with_too_many_errors_stops_and_names_the_cause(
    hostile: tuple[str, Path], words: list[str], tmp_path: Path
) -> None:
    path, policy = hostile
    words = ["rl", *words, *RL, f"train.init_from={policy}"]
    started = time.monotonic()
    with Job(words, tmp_path, PYTHONPATH=path) as job:
        assert job.wait(200) != 0
        assert job.gone(), "a judge outlived the run"
        said = job.said()
    assert time.monotonic() - started < 200
    assert "of 24 verdicts of step 1 were errors, more than rl.max_error_share; one of them: " in said
    told = status(tmp_path / "run")
    assert told["status"] == "failed"
    assert "rl.max_error_share" in json.dumps(told)
