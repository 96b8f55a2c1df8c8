"""PPO's second model: what reward is to be expected before each token of an answer, and how it learns that.

It reads the micro-batches of the policy's update: a token's weight is 1 in both losses, and the value at the position
that predicts a token is the expectation before that token is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from farside.configs.errors import UserError
from farside.configs.schema import Config
from farside.data.batch import Batch
from farside.parallel import comm
from farside.parallel.box import Box, Piece, Stored
from farside.rl.algorithms.ppo import value_loss
from farside.train.engine.base import EngineState, Stateful
from farside.train.engine.native import NativeEngine
from farside.train.guard import read
from farside.train.liveness import Pulse
from farside.train.schedule import lr_factor

CRITIC = "critic."
"""Begins the names of the critic's tensors among the optimizer's of a checkpoint."""
UPDATES = "critic.updates"


class Critic:
    """engine: with a scalar head. total: sums floats over the ranks that hold other samples."""

    def __init__(self, config: Config, engine: NativeEngine, total: Callable[[list[float]], list[float]]) -> None:
        self.config, self.engine, self.total = config, engine, total
        self.loss_fn = value_loss(config.rl.critic.clip)

    def values(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Rows [B, S] of what is expected before each weighted token, on the CPU. Collective."""
        found = [outputs.values for outputs in self.engine.token_outputs(batches)]
        return [values.cpu() for values in found if values is not None]

    def update(self, batches: Sequence[Batch], total: float, step: int, pulse: Pulse) -> dict[str, float]:
        """One update of iteration ``step`` toward the batches' extras ``returns``. total: weight of all ranks' tokens.
        An update whose gradient is no number changes nothing. Collective."""
        pulse.beat("forward")
        outputs = self.engine.forward_backward(batches, pulse.around(self.loss_fn), total)
        pulse.beat("step")
        lr = self.config.rl.critic.lr * lr_factor(self.config.schedule, step, self.config.rl.steps)
        stats = self.engine.step(lr, lambda norm: ~norm.isfinite())
        told = {"value_loss": outputs.loss, "critic_grad_norm": stats.grad_norm, **outputs.metrics}
        return {**read(told), "explained_variance": self.explained_variance(batches)}

    def explained_variance(self, batches: Sequence[Batch]) -> float:
        """1 - Var(return - value) / Var(return) over all ranks' tokens, with the values from before the iteration's
        updates: 1 for a critic that knows, 0 for one that says the same of every token; 0 too if all returns are
        equal."""
        counted = [batch.weights != 0 for batch in batches]
        returns, values = (
            torch.cat([batch.extras[name][where].double() for batch, where in zip(batches, counted)])
            for name in ("returns", "old_values")
        )
        errors = returns - values
        count, of_returns, of_errors = self.total([float(len(returns)), returns.sum().item(), errors.sum().item()])
        count = max(count, 1.0)
        squares = [(returns - of_returns / count).square().sum(), (errors - of_errors / count).square().sum()]
        spread, left = self.total([square.item() for square in squares])
        return 1 - left / spread if spread else 0.0


def saved(policy: NativeEngine, critic: NativeEngine | None) -> Stateful:
    """What a checkpoint holds of both."""
    return policy if critic is None else WithCritic(policy, critic)


class WithCritic:
    """Policy and critic as one state for a checkpoint, that of a policy whose optimizer has more to remember: who goes
    on from it, exports or evaluates it need not know of a critic."""

    def __init__(self, policy: NativeEngine, critic: NativeEngine) -> None:
        self.policy, self.critic = policy, critic

    def state_dict(self) -> EngineState:
        state, critic = self.policy.state_dict(), self.critic.state_dict()
        pieces = {f"{CRITIC}{name}": piece for name, piece in {**critic.model, **critic.optimizer}.items()}
        if comm.rank(self.policy.mesh.world) == 0:
            one = torch.Size([1])
            pieces[UPDATES] = Piece(one, Box.whole(one), torch.tensor([critic.updates]))
        return replace(state, optimizer={**state.optimizer, **pieces})

    def check_replicas(self) -> None:
        self.policy.check_replicas()
        self.critic.check_replicas()

    def load_state_dict(self, model: Stored, optimizer: Stored, updates: int) -> None:
        """Raises UserError for a checkpoint of a run without a critic."""
        if UPDATES not in optimizer.shapes:
            raise UserError(
                "rl.algorithm=ppo: this run began without a critic; use the algorithm that it began with, or another "
                "run.dir"
            )
        self.policy.load_state_dict(model, optimizer, updates)
        critic = Behind(optimizer, CRITIC)
        self.critic.load_state_dict(critic, critic, int(optimizer.read(UPDATES, Box((0,), (1,)))))


class Behind:
    """Implements ``Stored``: of another the tensors whose names begin so, without that beginning."""

    def __init__(self, stored: Stored, beginning: str) -> None:
        self.stored, self.beginning = stored, beginning

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        own = {name: shape for name, shape in self.stored.shapes.items() if name.startswith(self.beginning)}
        return {name.removeprefix(self.beginning): shape for name, shape in own.items()}

    def read(self, name: str, box: Box) -> Tensor:
        return self.stored.read(f"{self.beginning}{name}", box)
