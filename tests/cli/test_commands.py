"""Help, versions, status, stop, report, doctor, Hydra's own options, multirun."""

import json
import time
from pathlib import Path

import pytest

from farside.configs import compose
from farside.configs.schema import Config, ParallelConfig
from farside.launch.commands import verify_types
from farside.parallel.plan import ShardTable
from tests.faults.driver import farside, last_step, sequence, status


@pytest.mark.timeout(30)
def test_help_answers_at_once(tmp_path: Path) -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = farside(["--help"], tmp_path)
        times.append(time.perf_counter() - started)
        assert done.returncode == 0
        assert "farside train -m" in done.stdout
    assert min(times) < 0.5


@pytest.mark.timeout(30)
def test_hydra_prints_every_key(tmp_path: Path) -> None:
    done = farside(["train", "experiment=tiny", "--cfg", "job"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "global_batch_size: 16" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(30)
def test_status_and_report(finished: Path) -> None:
    said = farside(["status", str(finished)], finished)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split()[:2] == ["status", "finished"]
    report = farside(["report", str(finished)], finished)
    assert report.returncode == 0, report.stderr
    assert Path(report.stdout.strip()) == finished / "report.html"
    assert "<html" in (finished / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_doctor(tmp_path: Path) -> None:
    done = farside(["doctor"], tmp_path)
    assert done.returncode == 0, done.stdout
    assert "two gloo ranks  ok" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_multirun(tmp_path: Path, words: list[str]) -> None:
    overrides = [word for word in words if not word.startswith("train.steps")]
    done = farside(["train", "-m", *overrides, "optim.lr=1e-3,3e-3", "train.steps=2", "run.dir=sweep"], tmp_path)
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parent for path in (tmp_path / "sweep").rglob("metrics.jsonl"))
    assert len(runs) == 2
    assert [compose.load(run / "config.yaml").optim.lr for run in runs] == [1e-3, 3e-3]
    assert [run.name for run in runs] == ["optim.lr=0.001", "optim.lr=0.003"]
    assert [last_step(run) for run in runs] == [2, 2]
    assert sequence(runs[0])[1]["lr"] != sequence(runs[1])[1]["lr"]


@pytest.mark.timeout(60)
def test_run_directory_of_a_finished_run(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "status.json", "metrics.jsonl", "checkpoints", "logs", "summary.json"} <= names
    assert status(finished)["status"] == "finished"
    record = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    assert {"step", "tokens", "loss", "grad_norm", "lr", "seconds", "tokens_per_second", "mfu"} <= record.keys()
    assert [path.name for path in sorted((finished / "logs").iterdir())] == [
        "heartbeat_rank_0",
        "launcher.log",
        "rank_0.log",
    ]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_types_of_a_layout_are_checked_without_its_ranks(tmp_path: Path) -> None:
    words = ["verify", "--types", "experiment=tiny", "parallel.tp=2", "parallel.cp=16", "parallel.dp_shard=32"]
    done = farside(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["loss: dp V, cp I, tp I", "types fit on 1,024 ranks"]
    assert list(tmp_path.iterdir()) == []


def test_types_that_do_not_fit_end_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    right = ShardTable.is_summed
    monkeypatch.setattr(ShardTable, "is_summed", lambda self, name: "norm" not in name and right(self, name))
    assert verify_types(Config(parallel=ParallelConfig(tp=2))).code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: types do not fit: stage 1 of 1")
    assert "axis tp" in line


@pytest.mark.slow
def test_a_warm_start_keeps_the_policys_rope(finished: Path, words: list[str], tmp_path: Path) -> None:
    """A configuration that forgets how the policy was trained is refused, and nothing is trained."""
    command = ["sft", *words, "model.rope_theta=1e6", f"train.init_from={finished}", "run.dir=sft", "sft.traces=4"]
    said = farside(command, tmp_path)
    assert said.returncode == 2
    assert "was trained with Rope(theta=10000.0" in said.stderr
    assert "the configuration says Rope(theta=1000000.0" in said.stderr
    assert not (tmp_path / "sft" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_warm_start_goes_on_with_the_conversations_it_began_with(
    finished: Path, words: list[str], tmp_path: Path
) -> None:
    line = '{"question": "1+1=?", "response": "<think></think>2<|end|>"}\n'
    (tmp_path / "mine.jsonl").write_text(line)
    command = ["sft", *words, f"train.init_from={finished}/checkpoints/step_00000004", "run.dir=run"]
    command += ["sft.conversations=mine.jsonl", "sft.seq_len=64", "sft.global_batch_size=2", "sft.micro_batch_size=2"]
    done = farside([*command, "sft.steps=2"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "traces.jsonl").exists()
    (tmp_path / "mine.jsonl").write_text(2 * line)
    refused = farside([*command, "sft.steps=4"], tmp_path)
    assert refused.returncode == 2
    assert "this run began otherwise (sft.conversations: " in refused.stderr
    (tmp_path / "mine.jsonl").rename(tmp_path / "other.jsonl")  # where it lies is free
    (tmp_path / "other.jsonl").write_text(line)
    command = [word.replace("mine.jsonl", "other.jsonl") for word in command]
    done = farside([*command, "sft.steps=4"], tmp_path)
    assert done.returncode == 0, done.stderr
