"""Problems that can be guessed: the policy answers them rightly without thinking, so that they reward no thought.

Kimi k1.5 (arXiv 2501.12599, section 2.1) leaves out what is guessed within 8 tries.
"""

from dataclasses import replace

from farside.data.chat import END_THINK, THINK
from farside.data.order import fold
from farside.parallel import comm
from farside.rl.reward.combine import CombinedReward
from farside.rl.rollout.base import Rollout
from farside.rl.types import Mark, Task
from farside.train.runtime import Runtime, Stopped


def guessable(runtime: Runtime, rollout: Rollout, task: Task, reward: CombinedReward, tries: int) -> list[int]:
    """Of the problems of rl.curriculum.pool those that one of ``tries`` answers to without thinking gets right.
    Collective. Raises Stopped if asked to stop; nothing is lost by that."""
    config, world = runtime.config.rl, runtime.mesh.world
    rank, ranks = comm.rank(world), comm.size(world)
    found: set[int] = set()
    for first in range(0, config.curriculum.pool, config.prompts_per_step * ranks):
        runtime.pulse.beat("rollout")
        if runtime.stop.agreed(runtime.mesh, runtime.device):
            raise Stopped("asked to stop while looking for problems that can be guessed; they are looked for again")
        last = min(first + config.prompts_per_step * ranks, config.curriculum.pool)
        prompts = [task.prompt("train", index) for index in range(first + rank, last, ranks)]
        begun = [replace(prompt, begun=f"{THINK}{END_THINK}") for prompt in prompts]
        seed = fold(runtime.config.train.seed, "guess")
        answers = rollout.generate(begun, tries, config.max_new_tokens, config.temperature, seed) if begun else []
        verdicts = reward.verifier.verify([(answer.prompt, answer.text) for answer in answers])
        right = (verdict.mark is Mark.correct for verdict in verdicts)
        found |= {answer.prompt.index for answer, is_right in zip(answers, right) if is_right}
    return sorted({problem for part in comm.gather_objects(found, world) for problem in part})
