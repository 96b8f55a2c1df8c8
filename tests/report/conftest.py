"""A finished run's directory with plausible numbers, written by hand: no training happens in these tests."""

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

LENGTHS = [round(128 + i * (2048 - 128) / 14) for i in range(15)]
DEPTHS = [round(100 * i / 14, 1) for i in range(15)]
STAGES = [("s0", 128, 240), ("s1", 256, 100), ("s2", 512, 60), ("s3", 1024, 40), ("s4", 2048, 40)]


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def make_grid(name: str, order: int, title: str, trained: int, reach: float) -> dict[str, Any]:
    """A grid that is green up to ``reach`` tokens and fades beyond."""
    randomness = random.Random(name)
    grids = {}
    for language, hardness in (("en", 1.0), ("zh", 0.9)):
        scores = []
        for _ in DEPTHS:
            chances = [1 / (1 + math.exp((length - reach * hardness) / (reach * 0.06))) for length in LENGTHS]
            scores.append([sum(randomness.random() < c for _ in range(3)) / 3 for c in chances])
        cells = [score for row in scores for score in row]
        grids[language] = {"green": sum(c == 1 for c in cells), "cells": len(cells), "scores": scores}
    questions = [
        ("en", 402, 50.0, "What is the password of Anna in Lisbon?", "river stone"),
        ("zh", 676, 21.4, "李明在北京的密码是什么？", "蓝色 石头"),
        ("en", 1225, 7.1, "What is the password of Omar in Oslo?", "green lamp"),
        ("en", 2048, 100.0, "What is the password of Mei in Quito?", "old harbour"),
    ]
    examples = [
        {"language": la, "length": le, "depth": d, "question": q, "expected": e}
        | {"answer": e if le < reach else "the the", "correct": le < reach}
        for la, le, d, q, e in questions
    ]
    return {"name": name, "order": order, "title": title, "trained_length": trained, "lengths": LENGTHS} | {
        "depths": DEPTHS,
        "needles_per_cell": 3,
        "seconds": 31.0,
        "grids": grids,
        "examples": examples,
        "checkpoint": {
            "path": f"checkpoints/{name}",
            "step": 10,
            "hash": digest("rl" if order == 3 else name),
        },
    }


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _training(path: Path, stages: list[tuple[str, int, int]], top: float, noise: random.Random) -> None:
    rows, step, tokens = [], 0, 0
    for index, (name, seq_len, steps) in enumerate(stages):
        for k in range(steps):
            step, tokens = step + 1, tokens + 8192
            bump = 0.5 * math.exp(-k / 8) if index else 0.0
            loss = 2.2 + (top - 2.2) * math.exp(-step / 60) + bump + noise.gauss(0, 0.06)
            seconds = (0.21 + 0.03 * index) * noise.uniform(0.95, 1.05)
            speed = {"seconds": seconds, "tokens_per_second": 8192 / seconds, "mfu": 0.31 - 0.02 * index}
            row = {"step": step, "tokens": tokens, "loss": loss, "grad_norm": 1.2, "lr": 1e-3, **speed}
            rows.append(row | {"peak_memory_bytes": 612_000_000, "stage": name, "seq_len": seq_len})
    _lines(path, rows)


def _rl(run: Path, noise: random.Random) -> None:
    rows, samples = [], []
    for step in range(1, 81):
        accuracy = min(1.0, 0.4 + 0.5 * (1 - math.exp(-step / 25)) + noise.gauss(0, 0.03))
        row = {"step": step, "reward": accuracy + 0.15, "accuracy": accuracy, "reward_model": 0.7}
        row |= {"length": 24 - step / 10 + noise.gauss(0, 0.5), "entropy": 0.4 * math.exp(-step / 50) + 0.05}
        row |= {"clip_share": 0.01, "kl": 0.0021, "error_share": 0.0, "loss": 0.01, "grad_norm": 0.4}
        row |= {"lr": 3e-4, "seconds": 3.1, "seconds_rollout": 2.0}
        if step % 20 == 0:
            row["held_out_accuracy"] = min(0.9, 0.41 + 0.13 * step / 20)
        rows.append(row)
        for k in range(4):
            a, b = noise.randrange(10, 99), noise.randrange(10, 99)
            right = noise.random() < accuracy
            answer = a + b if right else a + b - 10
            thought = f"<think>{a % 10}+{b % 10}={a % 10 + b % 10}, carry {int(a % 10 + b % 10 > 9)}</think>"
            sample = {"step": step, "question": f"{a}+{b}=?", "reference": str(a + b)}
            sample |= {"text": f"{thought}{answer}<|end|>", "reward": 1.16 if right else 0.03}
            sample |= {"verdict": "correct" if right else "wrong", "reward_model": 0.8 - 0.6 * (not right)}
            samples.append(sample | {"length": 23 + k})
    samples[1]["text"] = "<script>alert('sampled')</script>"
    samples[2] |= {"text": "<think>7+", "verdict": "error", "reward": None}
    _lines(run / "rl/metrics.jsonl", rows)
    _lines(run / "rl/samples.jsonl", samples)
    _lines(run / "rl_reward_alone/metrics.jsonl", rows[:40])
    answers = [("12+34=?", "46", 0, "<think></think>56<|end|>"), ("12+34=?", "46", 80, "<think>6 4</think>46<|end|>")]
    records = [{"step": step, "question": q, "reference": a, "text": text} for q, a, step, text in answers]
    verdicts = ({"verdict": "wrong"}, {"verdict": "correct"})
    _lines(run / "rl/held_out.jsonl", [record | verdict for record, verdict in zip(records, verdicts)])


def _summaries(run: Path) -> None:
    parent = None
    facts: dict[str, dict[str, Any]] = {
        "pretrain": {"validation_loss": {"en": 2.91, "zh": 3.42}},
        "sft": {"held_out_accuracy": 0.41, "held_out_prompts": 256, "validation_loss": {"en": 3.1}},
        "reward": {"held_out_accuracy": 0.93, "format_baseline_accuracy": 0.55}
        | {"train_pairs": 3000, "held_out_pairs": 700},
        "rl": {"held_out_accuracy_before": 0.41, "held_out_accuracy_after": 0.9, "held_out_prompts": 256},
        "rl_reward_alone": {"held_out_accuracy_before": 0.41, "held_out_accuracy_after": 0.77},
    }
    times = {"pretrain": 301.2, "sft": 62.0, "reward": 88.0, "rl": 251.4, "rl_reward_alone": 100.0}
    for phase, seconds in times.items():
        path = f"{phase}/checkpoints/step_00000080"
        parent = digest("sft") if phase == "rl_reward_alone" else parent
        checkpoint = {"path": path, "step": 80, "hash": digest(phase), "parent": parent}
        _json(run / phase / "summary.json", facts[phase] | {"seconds": seconds, "checkpoint": checkpoint})
        parent = digest(phase)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A whole finished run."""
    run, noise = tmp_path / "demo", random.Random(0)
    run.mkdir()
    (run / "config.yaml").write_text("run:\n  name: demo <script>alert('config')</script>\n  dir: runs/demo\n")
    (run / "command.txt").write_text("farside run experiment=demo\n")
    _json(
        run / "status.json",
        {"status": "finished", "phase": "rl", "step": 80, "cause": None, "seconds": 812.3},
    )
    machine = {"cpu": "AMD EPYC", "cores": 2, "memory_bytes": 8_200_000_000, "torch": "2.13.0+cpu"}
    _json(run / "machine.json", machine | {"python": "3.11.7", "ranks": 2})
    source = {"train_tokens": 900_000, "validation_tokens": 41_000, "haystack_tokens": 88_123}
    sources = {"en": source | {"train_bytes": 3_310_000}, "zh": source | {"train_bytes": 2_650_000}}
    _json(
        run / "data.json",
        {
            "tokenizer_hash": digest("tokenizer"),
            "vocab_size": 2048,
            "fingerprint": digest("data"),
            "sources": sources,
        },
    )
    entry = {"asked": 0.5, "rows": 960, "share_of_rows": 0.5, "tokens": 120_034, "share_of_tokens": 0.489}
    lengths = {"0": {"asked": 0.3, "drawn": 0.31}, "4096": {"asked": 0.7, "drawn": 0.69}}
    drawn = {"en": entry | {"epochs": 1.25, "padding_share": 0.0123, "lengths": lengths}, "copy": entry}
    stage = {"stage": "s0", "seq_len": 128, "packing": "best_fit", "samples": 1920, "entries": drawn}
    (run / "pretrain").mkdir(parents=True, exist_ok=True)
    _json(run / "pretrain/data_drawn.json", [stage])
    leak = {"sample": 3, "kind": "needle", "what": "amber falcon / river stone"}
    _json(
        run / "pretrain/contamination.json",
        [{"stage": "s0", "samples": 8, "entries": ["en", "copy"], "leaks": {"en": [leak]}}],
    )
    _training(run / "pretrain/metrics.jsonl", STAGES, 7.6, noise)
    _training(run / "sft/metrics.jsonl", [("sft", 512, 120)], 3.4, noise)
    reward = [
        {"step": k, "loss": 0.69 * math.exp(-k / 60), "accuracy": min(0.99, 0.5 + k / 150), "seconds": 0.5}
        for k in range(1, 101)
    ]
    _lines(run / "reward/metrics.jsonl", reward)
    _rl(run, noise)
    _summaries(run)
    for grid in (
        make_grid("base", 1, "before extension", 128, 250),
        make_grid("extended", 2, "after extension to 2,048 tokens", 2048, 2900),
        make_grid("after_rl", 3, "after RL", 2048, 2600),
    ):
        _json(run / "eval" / grid["name"] / "niah.json", grid)
    seconds = {"prepare": 8.3, "pretrain": 301.2, "eval": 93.0, "sft": 62.0, "reward": 88.0, "rl": 251.4}
    _json(run / "phases.json", [{"name": n, "seconds": s, "status": "finished"} for n, s in seconds.items()])
    return run
