"""One iteration of RL on every axis: the same samples as one process, and the same weights after the update."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from farside.configs.schema import Algorithm, Config, Dtype, ModelConfig, ParallelConfig
from farside.data.tokenizer import Tokenizer
from farside.parallel.mesh import ParallelDims
from farside.rl.learner import Learner
from farside.rl.replay import Replay
from farside.rl.rollout.native import NativeRollout
from farside.rl.types import Completion, Mark, Prompt, Score, Verdict
from farside.train.engine.native import NativeEngine
from farside.train.guard import Guard
from farside.train.liveness import Pulse
from tests.ranks import Rank, RankPool
from tests.train.models import small_config

PROMPTS = [Prompt(number, question, "") for number, question in enumerate(("3+4=?", "12+34=?", "5+5=?", "7=?"))]
SAMPLES, LENGTH = 3, 8
LAYOUTS = {
    "tp2": ParallelConfig(tp=2),
    "cp2": ParallelConfig(cp=2),
    "pp2": ParallelConfig(pp=2),
    "tp2·pp2": ParallelConfig(tp=2, pp=2),
    "dp2·cp2": ParallelConfig(dp_shard=2, cp=2),
}


@dataclass(frozen=True)
class Iteration:
    """completions: this rank's."""

    completions: list[Completion]
    weights: dict[str, Tensor]


def config_of(vocab_size: int, layout: ParallelConfig) -> Config:
    model = ModelConfig(vocab_size, 16, 24, 2, 4, 2, 4, initializer_range=0.4)
    config = replace(small_config(model, Dtype.float64), parallel=layout)
    config.rl.samples_per_prompt, config.rl.max_new_tokens, config.rl.micro_batch_size = SAMPLES, LENGTH, 3
    return config


def iterate(place: Rank, layout: ParallelConfig, folder: Path, algorithm: Algorithm = Algorithm.grpo) -> Iteration:
    """Sync, sample, score (longer answers and later first tokens are better), update; twice, so that the second samples
    come from the updated policy."""
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    config = config_of(tokenizer.vocab_size, layout)
    config.rl.algorithm, config.rl.gae_lambda = algorithm, 0.9
    mesh = ParallelDims.resolve(layout, place.world_size).build("cpu")
    engine = NativeEngine(config, mesh, torch.device("cpu"), entropy=True)
    critic = NativeEngine(config, mesh, torch.device("cpu"), "scalar") if algorithm is Algorithm.ppo else None
    rollout = NativeRollout(engine.replica(), tokenizer)
    learner = Learner(config, engine, Replay(None, 0.0), critic=critic)
    share = len(PROMPTS) // mesh.dp_size
    prompts, seen = PROMPTS[mesh.dp_rank * share :][:share], []
    for step in range(2):
        rollout.load_weights(engine.named_weights(), step)
        completions = rollout.generate(prompts, SAMPLES, LENGTH, 1.0, seed=5)
        scores = [
            Score(
                len(item.tokens) + item.tokens[0] / 100, True, Verdict(Mark.correct if item.truncated else Mark.wrong)
            )
            for item in completions
        ]
        pulse = Pulse(folder, place.rank, 60.0, 60.0)
        learner.update(completions, scores, step, 1e-2, Guard(config.train.guard), pulse)
        seen += completions
    weights = dict(engine.named_weights())
    if critic is not None:
        weights |= {f"critic.{name}": value for name, value in critic.named_weights()}
    return Iteration(seen, weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl")
    Tokenizer.train(["<think>7+8=15</think>15<|end|> 0123456789 a text"] * 3, 280).save(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iteration:
    return iterate(Rank(0, 1), ParallelConfig(), folder)


@pytest.mark.parametrize(
    "name", [name if name == "pp2" else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_an_iteration_equals_that_of_one_process(ranks: RankPool, folder: Path, alone: Iteration, name: str) -> None:
    assert_alike(ranks.run(iterate, LAYOUTS[name].ranks, LAYOUTS[name], folder), alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_with_a_critic(ranks: RankPool, folder: Path, name: str) -> None:
    alone = iterate(Rank(0, 1), ParallelConfig(), folder, Algorithm.ppo)
    assert "critic.score.weight" in alone.weights
    assert_alike(ranks.run(iterate, LAYOUTS[name].ranks, LAYOUTS[name], folder, Algorithm.ppo), alone)


def assert_alike(parts: list[Iteration], alone: Iteration) -> None:
    wanted = {(item.policy_step, item.prompt.index): [] for item in alone.completions}  # type: ignore[var-annotated]
    for item in alone.completions:
        wanted[item.policy_step, item.prompt.index].append(item)
    drawn = set()
    for found in parts:
        for number, item in enumerate(found.completions):
            key = item.policy_step, item.prompt.index
            true = wanted[key][number % SAMPLES]
            drawn.add(key)
            assert item.tokens == true.tokens
            assert item.logprobs == pytest.approx(true.logprobs, abs=1e-9)
        for weight, value in alone.weights.items():
            assert (found.weights[weight] - value).norm() <= 1e-9 * value.norm(), weight
    assert drawn == set(wanted)
