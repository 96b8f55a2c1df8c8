"""Training the outcome model: pairs from the policy's samples, Bradley-Terry, and its accuracy on held-out pairs."""

from functools import partial
from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.data.prepare import Prepared
from farside.parallel import comm
from farside.rl.batches import row_size
from farside.rl.origin import difference, note
from farside.rl.reward.calibration import pair_calibration
from farside.rl.reward.format_baseline import pairwise_accuracy
from farside.rl.reward.model import RewardModel, bradley_terry_loss, normalisation
from farside.rl.reward.pairs import Pair, PairFeed, load_pairs, make_pairs, save_pairs
from farside.rl.reward.sampling import Sampler, sampled_with
from farside.rl.types import Completion
from farside.train.model.transformer import Transformer
from farside.train.runtime import Runtime

PAIRS = "pairs.jsonl"


class OutcomeTraining:
    """Pairs of both splits, alike on every rank; kept in pairs.jsonl. Construction is collective."""

    def __init__(self, runtime: Runtime, data: Prepared, policy: Path) -> None:
        self.runtime, self.settings = runtime, runtime.config.reward
        path = runtime.dir / PAIRS
        made_with = sampled_with(runtime.config, policy)
        there, changed = comm.broadcast_object((path.is_file(), difference(path, made_with)), runtime.mesh.world)
        if changed:
            raise UserError(changed)
        if there:
            self.pairs = load_pairs(path)
        else:
            self.pairs = self._sample(data, policy)
            if runtime.main:
                note(path, made_with)
                save_pairs(path, self.pairs)
        if min(map(len, self.pairs.values())) < 2:
            raise UserError(
                "reward: fewer than 2 pairs of a right and a wrong answer of one format; the policy is always right "
                "or always wrong: change sft.steps, or raise reward.prompts"
            )
        self.found = f"{len(self.pairs['train']):,} pairs to train on, {len(self.pairs['held_out']):,} held out"
        self.longest = max(row_size([pair.chosen, pair.rejected]) for pair in self.pairs["train"])
        self.loss_fn = partial(bradley_terry_loss, margin=self.settings.margin)

    def _sample(self, data: Prepared, policy: Path) -> dict[str, list[Pair]]:
        settings, world = self.settings, self.runtime.mesh.world
        pairs: dict[str, list[Pair]] = {}
        with Sampler(self.runtime, data, policy) as sampler:
            for split, count in (("train", settings.prompts), ("held_out", settings.held_out_prompts)):
                found: tuple[list[Pair], list[Pair]] = ([], [])
                for answers, verdicts in sampler.answers(split, count, settings.samples):
                    for kept, new in zip(found, make_pairs(answers, verdicts, bare=settings.bare_pairs)):
                        kept += new
                gathered = comm.gather_objects(found, world)
                alike, mixed = ([pair for part in gathered for pair in part[kind]] for kind in (0, 1))
                pairs[split] = alike + (mixed[: int(settings.mixed_share * len(alike))] if split == "train" else [])
        return pairs

    def feed(self) -> PairFeed:
        settings, mesh = self.settings, self.runtime.mesh
        sizes = settings.pairs_per_batch, settings.micro_pairs
        return PairFeed(self.pairs["train"], *sizes, self.runtime.config.data.seed, mesh.dp_rank, mesh.dp_size)

    def judge(self, model: Transformer) -> tuple[RewardModel, dict[str, Any], str]:
        """The trained model, what it does on held-out pairs beside a classifier that sees only length and format, and
        that as a line."""
        judge, held_out = RewardModel(model), self.pairs["held_out"]
        scores = judge.raw_scores([item for pair in held_out for item in (pair.chosen, pair.rejected)]).double()
        margins = scores[0::2] - scores[1::2]
        judge.center, judge.scale = normalisation(scores.numpy())
        accuracy = float((margins > 0).double().mean())
        baseline = pairwise_accuracy(*([_texts(pair) for pair in self.pairs[split]] for split in ("train", "held_out")))
        calibrated = pair_calibration(margins.tolist())
        facts = {
            "held_out_accuracy": accuracy,
            "format_baseline_accuracy": baseline,
            "train_pairs": len(self.pairs["train"]),
            "held_out_pairs": len(held_out),
            "calibration": calibrated,
        }
        line = (
            f"{accuracy:.1%} of held-out pairs in order; by length and format alone {baseline:.1%}; "
            f"expected calibration error {calibrated['error']:.1%}"
        )
        return judge, facts, line


def _texts(pair: Pair) -> tuple[Completion, Completion]:
    return pair.chosen, pair.rejected
