"""Every configuration key of farside with its default and meaning. Imports neither torch nor hydra.

A default lives here and nowhere else; YAML files hold differences only. ``None`` in a stage means: as in
the section the comment names.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Dtype(Enum):
    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Recompute(Enum):
    none = "none"
    selective = "selective"
    full = "full"


class RopeKind(Enum):
    none = "none"
    pi = "pi"
    ntk = "ntk"
    yarn = "yarn"


class ScheduleKind(Enum):
    cosine = "cosine"
    wsd = "wsd"


class SourceKind(Enum):
    text = "text"
    jsonl = "jsonl"
    parquet = "parquet"
    datasets = "datasets"
    repositories = "repositories"
    python_stdlib = "python_stdlib"


class Packing(Enum):
    concatenate = "concatenate"
    best_fit = "best_fit"
    length_bucketed = "length_bucketed"


class MixtureUnit(Enum):
    sample = "sample"
    token = "token"


class OptimKind(Enum):
    adamw = "adamw"
    muon = "muon"


class WandbMode(Enum):
    off = "off"
    offline = "offline"
    online = "online"


@dataclass
class RunConfig:
    name: str = "run"
    """Names the run in its folder, the report and W&B."""
    dir: str = "runs/${run.name}"
    """Run directory. The same directory again resumes the run."""


@dataclass
class RopeScalingConfig:
    """Stretches RoPE beyond the length a model was trained for; a base change (rope_theta) needs none of it."""

    kind: RopeKind | None = None
    """pi: positions divided by factor. ntk: a larger base instead. yarn: by parts, with an attention temperature. None:
    as the comment of the section says; none: off."""
    factor: float = 1.0
    """New length over the old."""
    original_length: int = 0
    """yarn: the old length in tokens."""


@dataclass
class ModelConfig:
    """A Llama/Qwen3-family decoder. Names follow Hugging Face's."""

    vocab_size: int = 3072
    """Rows of the embedding; at least the tokenizer's vocabulary."""
    hidden_size: int = 128
    intermediate_size: int = 352
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    """Must divide num_attention_heads."""
    head_dim: int = 32
    """Free: need not be hidden_size / num_attention_heads."""
    qk_norm: bool = False
    """RMSNorm over head_dim on queries and keys before RoPE, as Qwen3 has it."""
    tie_word_embeddings: bool = True
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    """RoPE base of a stage that names none."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """Of a stage that names no kind; no kind: none."""
    initializer_range: float = 0.02
    """Standard deviation of every matrix; those that write to the residual stream get it over sqrt(2 layers)."""


class ContextKind(Enum):
    ring = "ring"
    allgather = "allgather"
    ulysses = "ulysses"
    hybrid = "hybrid"


class ContextLayout(Enum):
    contiguous = "contiguous"
    zigzag = "zigzag"
    balanced = "balanced"


@dataclass
class ContextConfig:
    """How cp ranks share attention over one sequence; exact for every choice."""

    kind: ContextKind = ContextKind.ring
    """ring: keys and values travel. allgather: every rank gathers them. ulysses: heads are exchanged for tokens.
    hybrid: ulysses within rings."""
    layout: ContextLayout = ContextLayout.zigzag
    """Which tokens a rank holds. zigzag: even for one document a row. balanced: even under document masks."""
    ulysses_degree: int = 2
    """hybrid: ranks of cp that divide the heads; the other factor of cp is the ring."""


PipelineSchedule = Enum("PipelineSchedule", {"1f1b": "1f1b", "interleaved": "interleaved", "zbv": "zbv"})


@dataclass
class PipelineConfig:
    schedule: PipelineSchedule = PipelineSchedule["1f1b"]
    """1f1b: a stage a rank. interleaved: two stages a rank, smaller bubble. zbv: two, zero-bubble in V shape."""


@dataclass
class ParallelConfig:
    """Degrees of parallelism; their product is the number of ranks."""

    dp_replicate: int = 1
    """Replicas of the whole (possibly sharded) model."""
    dp_shard: int = 1
    """Ranks that parameters, gradients and optimizer state are sharded over (FSDP2)."""
    cp: int = 1
    """Ranks that share each sequence: context parallelism."""
    tp: int = 1
    """Ranks that share each matrix and, between blocks, the sequence: tensor and sequence parallelism."""
    pp: int = 1
    """Pipeline stages."""
    context: ContextConfig = field(default_factory=ContextConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)

    @property
    def ranks(self) -> int:
        return self.dp_replicate * self.dp_shard * self.cp * self.tp * self.pp

    @property
    def ulysses(self) -> int:
        """Ranks of cp that divide the heads."""
        if self.context.kind is ContextKind.ulysses:
            return self.cp
        return self.context.ulysses_degree if self.context.kind is ContextKind.hybrid and self.cp > 1 else 1

    @property
    def pieces(self) -> int:
        """What a sequence's length must be a multiple of: layouts cut it for cp, tensor parallelism for tp."""
        zigzag = self.cp > 1 and self.context.layout is ContextLayout.zigzag
        return self.cp * self.tp * (2 if zigzag else 1)


@dataclass
class SourceConfig:
    """Text of one kind, in three splits that share no document: train, validation, and haystack (for needle grids)."""

    kind: SourceKind = SourceKind.text
    """text: files of documents parted by a form feed line. jsonl, parquet: one field of every line or row. datasets:
    Hugging Face. repositories: one long document a code repository. python_stdlib: the interpreter's own library."""
    path: str = ""
    """text: a folder with train.txt, validation.txt and haystack.txt. Otherwise all documents together, dealt out by
    shares: a file or glob of files (text, jsonl, parquet), a folder of save_to_disk or a name on the hub (datasets), a
    folder of repositories or one (repositories). Relative to the working directory, then to the installed farside."""
    splits: dict[str, str] = field(default_factory=dict)
    """Instead of path: train, validation and haystack, each with its own files as above; datasets: beside path, the
    name of the data set's own split that each of them takes."""
    shares: dict[str, float] = field(default_factory=lambda: {"train": 0.85, "validation": 0.05, "haystack": 0.1})
    """Share of the documents per split, where all come together; a hash of its text decides a document's split."""
    field: str = "text"
    """jsonl, parquet, datasets: the field that holds the text."""
    subset: str = ""
    """datasets on the hub: the configuration's name."""
    language: str = "en"
    """Picks sentence boundaries and needle wording: en, zh or code."""
    max_bytes: int = 2_000_000
    """python_stdlib: how much source code to take. repositories: of one repository, in whole files."""
    max_file_bytes: int = 500_000
    """repositories: larger files are left out, as binary and vendored ones are."""
    max_epochs: float | None = None
    """Readings of this source's text as plain text at most, over all stages of a phase; its share then goes to the
    others. None: no end."""


@dataclass
class TokenizerConfig:
    vocab_size: int = 3072
    """Size of the byte-level BPE trained on the training split of all sources."""
    needle_texts: int = 20_000
    """Training needles per language added to that text, so that their words are single tokens."""
    path: str = ""
    """A tokenizer.json, or a folder with one (Hugging Face), to take instead of training one; special tokens of the
    chat format that it lacks are added."""


@dataclass
class NeedleConfig:
    """Needle documents for training: real text, needles at sentence boundaries, questions with answers at the end."""

    needles: int = 20
    """Needles (and questions) in one document at most; half of the documents hold as many, the others fewer."""
    tokens_per_needle: int = 18
    """A document holds at most seq_len / this many needles."""
    answer_share: float = 0.9
    """Share of a document's loss weight on its answers; a document weighs as much as a window of plain text."""
    text_share: float = 0.25
    """Share of its other tokens, drawn at random, that carry the rest; the others cost no logits."""


@dataclass
class KeyValueConfig:
    entries: int = 60
    """Entries of the list."""
    questions: int = 8


@dataclass
class TrackingConfig:
    chains: int = 3
    """Values; each starts a chain of names. More chains distract more."""
    hops: int = 4
    """Assignments of a chain from name to name."""


@dataclass
class CountConfig:
    words: int = 6
    """Different words that are noted."""
    most: int = 6
    """Times that the most frequent one is noted; the others are noted less often."""


@dataclass
class DocumentsConfig:
    documents: int = 20
    """Numbered documents, each with one fact; two each tell of names that begin alike."""
    questions: int = 6


@dataclass
class SummaryConfig:
    sections: int = 12
    """Headlines to repeat."""


@dataclass
class ManyShotConfig:
    classes: int = 6
    """Labels of the mapping."""
    examples: int = 80
    questions: int = 8


@dataclass
class SyntheticConfig:
    """Tasks with known answers over real text (docs/synthetic.md). Numbers are the most that a sample holds: half of
    the samples hold as many as fit, the others fewer."""

    haystack_share: float = 0.4
    """Share of a sample that is the source's own text, at least."""
    answer_share: float = 0.9
    """Share of a sample's loss weight on its answers, as data.needle.answer_share."""
    text_share: float = 0.25
    """Share of the other tokens that carry the rest, as data.needle.text_share."""
    keyvalue: KeyValueConfig = field(default_factory=KeyValueConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    count: CountConfig = field(default_factory=CountConfig)
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    summary: SummaryConfig = field(default_factory=SummaryConfig)
    manyshot: ManyShotConfig = field(default_factory=ManyShotConfig)


@dataclass
class DataConfig:
    dir: str = "runs/prepared"
    """Where prepared token files go, in a folder named by their fingerprint; shared by runs."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Name -> source."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    workers: int = 0
    """Processes that tokenize while preparing; 0: one a core. The result does not depend on it."""
    shard_bytes: int = 8_000_000
    """Preparing: text that a worker tokenizes in one piece, which is what a kill costs at most a worker. The result
    does not depend on it; memory grows with it."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Share per entry: a source's name (language modelling), needle_<source> (retrieval in that source's text), another
    task of docs/synthetic.md such as tracking_<source>, copy (repeated spans) or trace (traces of sft.task)."""
    mixture_unit: MixtureUnit = MixtureUnit.sample
    """What shares count. sample: rows. token: predicted tokens, so that padding does not cost an entry its share."""
    mixture_temperature: float | None = None
    """With it the plain-text entries of a mixture divide their shares' sum anew, by n^(1/temperature) of a source's n
    tokens: 1 as much as there is, more is more even. None: as the mixture says."""
    packing: Packing = Packing.concatenate
    """How rows are made of documents. concatenate: one after the other, cut where a row ends. best_fit: whole documents
    (only those longer than a row are cut), few enough rows to leave hardly any padding. length_bucketed: whole
    documents of similar length, at the price of padding."""
    lengths: dict[int, float] = field(default_factory=dict)
    """Share of tokens from documents of at least so many tokens, up to the next key: {0: 0.3, 4096: 0.7} reads long
    documents more often. Within every source, which keeps its share of the mixture. Empty: as the text has them."""
    contamination_samples: int = 8
    """Samples of each entry of a stage that are searched, before a pretraining with needle grids, for what those grids
    ask and hide it in; 0: none. What is found is printed, written and shown in the report: it stops nothing."""
    needle: NeedleConfig = field(default_factory=NeedleConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    seed: int = 0
    """Sample i is a function of this seed and i."""
    seq_len: int = 256
    """Tokens a sample; stages may name their own."""
    global_batch_size: int = 16
    """Samples a step over all ranks."""
    micro_batch_size: int = 16
    """Samples a rank computes at once, at most."""


@dataclass
class OptimConfig:
    kind: OptimKind = OptimKind.adamw
    """muon: Muon for the matrices inside the blocks, AdamW for the rest, at the same learning rate."""
    lr: float = 1e-3
    """Peak learning rate of a stage that names none."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""


@dataclass
class ScheduleConfig:
    """Shape of the learning rate over the steps of one stage."""

    kind: ScheduleKind = ScheduleKind.cosine
    """cosine: warm-up, then half a cosine to min_ratio. wsd: warm-up, constant, then linear decay to min_ratio."""
    warmup_steps: int = 10
    decay_share: float = 0.2
    """wsd: the last share of the steps that decays."""
    min_ratio: float = 0.1
    """Final learning rate over peak."""


@dataclass
class StageConfig:
    """One stage of training; a boundary keeps weights, optimizer state and data cursors of the run."""

    name: str = MISSING
    steps: int = MISSING
    seq_len: int | None = None
    """None: data.seq_len."""
    rope_theta: float | None = None
    """None: model.rope_theta."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """No kind: model.rope_scaling."""
    lr: float | None = None
    """None: optim.lr."""
    global_batch_size: int | None = None
    """None: data.global_batch_size."""
    micro_batch_size: int | None = None
    """None: data.micro_batch_size."""
    mixture: dict[str, float] | None = None
    """None: data.mixture."""
    packing: Packing | None = None
    """None: data.packing."""
    lengths: dict[int, float] | None = None
    """None: data.lengths."""
    eval: bool = False
    """Run the full needle grid when the stage ends; the grid is named after the stage."""


@dataclass
class GuardConfig:
    """Steps that must not reach the weights. A loss or gradient that is no finite number is always skipped."""

    sigmas: float = 0.0
    """Skip also a loss or gradient norm above the mean of the last good steps by this many standard deviations (OLMo
    uses 6); 0: do not."""
    window: int = 128
    """Good steps behind that mean; before there are as many, nothing counts as too high."""
    patience: int = 10
    """Bad steps in a row after which the run returns to its newest checkpoint and leaves the batches out; 0: never."""
    rewinds: int = 3
    """Times it may do so before it ends as failed."""
    compare_replicas: int = 100
    """Steps between comparisons of the weights' bits on ranks that hold the same, which end the run if they differ; so
    does every save. 0: never (for replicas on different kinds of device, whose rounding differs)."""


@dataclass
class TrainConfig:
    steps: int = 100
    """Steps when no stages are listed; a list of stages brings its own."""
    seed: int = 0
    """Initial weights are a function of this seed and the parameter's name."""
    dtype: Dtype = Dtype.float32
    """Precision of the computation. bfloat16: weights, moments, sums of gradients, and checkpoints stay float32."""
    activation_checkpointing: Recompute = Recompute.none
    """What the backward pass computes again instead of keeping: full: whole blocks; selective: all of a block but its
    matrix products and attention."""
    compile: bool = False
    """torch.compile for the blocks; on the CPU it needs a C++ compiler."""
    deterministic: bool = False
    """On CUDA: deterministic kernels only. The CPU is deterministic anyway."""
    loss_chunk: int = 8192
    """Tokens whose logits exist at once; more are computed chunk by chunk and again in the backward pass."""
    offload_activations: bool = False
    """With activation_checkpointing=full: the inputs of blocks wait for the backward pass in host memory."""
    mlp_chunk: int = 0
    """Tokens of a rank that go through an MLP at once; more go chunk by chunk, and again in the backward pass. 0: all
    at once."""
    init_from: str | None = None
    """Checkpoint, or run directory whose newest is meant, to start from when run.dir holds none."""
    timeout_seconds: int = 300
    """A rank that stands still for longer within a step (data, forward, backward, update) ends the run, named."""
    slow_timeout_seconds: int = 1800
    """The same for start-up, the first step of a stage, evaluations, saving, and sampling in RL."""
    guard: GuardConfig = field(default_factory=GuardConfig)


class Best(Enum):
    lowest = "lowest"
    highest = "highest"


@dataclass
class CheckpointConfig:
    every: int = 50
    """Steps between checkpoints; the last step always saves."""
    keep: int = 2
    """Newest checkpoints to keep."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of this stay for good; 0: none."""
    keep_best: str | None = None
    """Field of metrics.jsonl, such as loss; the checkpoint with the best value stays too."""
    best: Best = Best.lowest
    """Which value of keep_best is the best."""
    asynchronous: bool = True
    """Write a private copy (in memory beside the weights) while training goes on; false: training waits."""
    force: list[str] = field(default_factory=list)
    """Keys that may differ from those of the checkpoint to resume from, such as [data.global_batch_size]."""


@dataclass
class NiahConfig:
    """Needle-in-a-haystack grid: lengths x depths x languages."""

    min_length: int = 128
    max_length: int = 2048
    """Tokens of the longest prompt; lengths are spaced evenly from min_length."""
    lengths: int = 15
    depths: int = 15
    needles: int = 3
    """Random needles a cell; it is green when all come back exactly."""
    sources: list[str] = field(default_factory=lambda: ["en", "zh"])
    """Sources whose haystack files are used, one grid each."""
    seed: int = 1234


@dataclass
class MathConfig:
    """farside eval math: held-out problems of sft.task, answered by a checkpoint. Answers are as long as
    rl.max_new_tokens allows, rl.micro_batch_size of them at once."""

    name: str = "math"
    """Name of the result: eval/<name>/math.json."""
    prompts: int = 256
    """Problems."""
    samples: int = 16
    """Sampled answers a problem, beside the greedy one; 0: none."""
    temperature: float = 1.0
    k: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    """pass@k and maj@k; those above ``samples`` are left out."""
    budgets: list[int] = field(default_factory=lambda: [0, 4, 8, 16, 32, 64])
    """Thinking tokens after which a greedy answer's thought is cut and closed, so that the model must answer: accuracy
    under each."""
    answer_tokens: int = 32
    """Tokens of such an answer at most."""
    seed: int = 1234


@dataclass
class EvalConfig:
    every: int = 0
    """Steps between needle grids while training (coarse: training_points lengths and depths, one needle); 0: none."""
    training_points: int = 4
    niah: NiahConfig = field(default_factory=NiahConfig)
    math: MathConfig = field(default_factory=MathConfig)
    rope_theta: float | None = None
    """farside eval: RoPE base; None: the checkpoint's."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """farside eval: as model.rope_scaling, to try one without training; no kind: the checkpoint's."""
    checkpoint: str | None = None
    """farside eval: checkpoint directory; None: the newest of the run."""
    name: str = "grid"
    """farside eval: name of the result."""


@dataclass
class TaskConfig:
    name: str = "addition"
    """addition, countdown, reasoning_gym:<family> with the reasoning-gym package installed, jsonl:<path> or another
    format of docs/tasks.md."""
    held_out: str = ""
    """Files of problems: a second file whose problems are held out, and left out of training. Empty: a tenth is, by a
    hash of the text."""
    digits: int = 2
    """addition: digits of a summand."""
    min_digits: int | None = None
    """addition: problems of this many digits to ``digits``, evenly mixed. None: all have ``digits``."""
    numbers: int = 3
    """countdown: numbers of a problem."""
    min_numbers: int | None = None
    """countdown: problems of this many numbers to ``numbers``, evenly mixed. None: all have ``numbers``."""
    largest: int = 9
    """countdown: numbers lie in 1 to this."""
    largest_target: int = 99
    """countdown: targets lie in 1 to this."""
    operations: str = "+-*"
    """countdown: what problems are made of; an answer may use + - * whatever this says."""
    tries: int = 3
    """countdown: a worked answer that searches shows 0 to this many wrong tries before the right one."""
    systematic: bool = False
    """countdown: a search tries every calculation in a fixed order until one is right; where that takes more than
    ``tries`` wrong ones, the answer is computed without a search."""
    full_share: float = 0.4
    """Share of worked answers that spell out every column (addition) or search (countdown)."""
    compact_share: float = 0.3
    """Share of those that write down the columns' sums only (addition) or compute the answer without a search
    (countdown); the rest show no work."""
    code_seconds: float = 2.0
    """code: wall clock of a program over all tests of its problem; past it the answer is wrong."""
    code_memory_mb: int = 512
    """code: address space of a program."""
    code_isolated: bool = True
    """code: programs see no network, no other process and no files. False: limits alone, for kernels that do not allow
    it; docs/tasks.md says what that leaves open."""
    options: dict[str, Any] = field(default_factory=dict)
    """reasoning_gym: settings of the family, e.g. {max_terms: 3, max_digits: 2}."""
    levels: list[dict[str, Any]] = field(default_factory=list)
    """reasoning_gym: levels of difficulty, evenly mixed, each the options in which it differs; none: one level."""
    seed: int = 0


@dataclass
class SftConfig:
    """Supervised warm start on generated reasoning traces, mixed with replay so that retrieval survives."""

    task: TaskConfig = field(default_factory=TaskConfig)
    """The task of warm start, reward model and RL."""
    traces: int = 20_000
    """Worked answers to generate."""
    conversations: str | None = None
    """A file of conversations in their place: JSONL, {"question": ..., "response": ...} a line."""
    steps: int = 100
    lr: float = 1e-3
    seq_len: int = 512
    global_batch_size: int = 16
    micro_batch_size: int = 16
    mixture: dict[str, float] = field(default_factory=lambda: {"trace": 1.0})
    """As data.mixture; trace is the task's traces."""


class RewardKind(Enum):
    outcome = "outcome"
    process = "process"


class StepLabels(Enum):
    hard = "hard"
    soft = "soft"


@dataclass
class RewardConfig:
    """Reward model on the policy's own samples: of whole answers or of their steps."""

    kind: RewardKind = RewardKind.outcome
    """outcome: Bradley-Terry, from pairs of a right and a wrong answer. process: whether an answer is still right, at
    the end of every step of it."""
    prompts: int = 512
    """Training problems to sample from."""
    samples: int = 8
    """Samples a problem."""
    held_out_prompts: int = 128
    """Further problems, whose pairs (all of one form) or steps only measure accuracy."""
    bare_pairs: bool = True
    """Pair answers without work among themselves too. They give the model nothing to check but the sum itself."""
    mixed_share: float = 0.15
    """Training pairs of different form for each of one form, at most: they teach how far a form can be trusted."""
    margin: float = 0.0
    """outcome: by how much a pair's right answer must score higher before its loss is small."""
    continuations: int = 8
    """process: the policy's continuations of every prefix that ends a step; what they come to is the step's label.
    0: no labels from samples."""
    labels: StepLabels = StepLabels.hard
    """process: hard: 1 if any continuation is right; soft: the share that are."""
    corrupted: int = 0
    """process: worked answers with one wrong step to learn from beside the samples."""
    temperature: float = 1.0
    steps: int = 100
    lr: float = 1e-3
    pairs_per_batch: int = 64
    """process: twice as many answers."""
    micro_pairs: int = 64
    best_of: int = 8
    """Answers to a held-out problem among which the trained model chooses, beside their majority."""
    best_of_prompts: int = 128
    """Held-out problems it chooses for; 0: no such comparison."""


@dataclass
class ReplayConfig:
    """Samples of other kinds in every RL step, with the next-token loss, so that what RL does not train survives
    (Kimi K2, arXiv 2507.20534, section 3.2.3)."""

    samples: int = 0
    """Samples a step over all ranks; 0: none."""
    mixture: dict[str, float] = field(default_factory=dict)
    """As data.mixture."""
    seq_len: int | None = None
    """None: data.seq_len."""
    micro_batch_size: int | None = None
    """None: data.micro_batch_size."""
    weight: float = 0.5
    """Loss weight of all replayed tokens together, that of the step's completions being 1."""


class Algorithm(Enum):
    grpo = "grpo"
    ppo = "ppo"
    dr_grpo = "dr_grpo"
    rloo = "rloo"
    reinforce_pp = "reinforce_pp"
    reinforce_pp_baseline = "reinforce_pp_baseline"
    dapo = "dapo"
    gspo = "gspo"
    k15 = "k15"
    k2 = "k2"


class MirrorBaseline(Enum):
    mean = "mean"
    log_partition = "log_partition"


class KlEstimator(Enum):
    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class KlPlace(Enum):
    loss = "loss"
    reward = "reward"


class Correction(Enum):
    none = "none"
    tis = "tis"
    icepop = "icepop"


@dataclass
class KlConfig:
    """Distance from the policy that RL started from."""

    weight: float = 0.0
    """0: none; no reference model is kept then."""
    estimator: KlEstimator = KlEstimator.k3
    """k1: unbiased. k2: its gradient is the divergence's. k3: unbiased, never negative."""
    place: KlPlace = KlPlace.loss
    """loss: added to every token's loss. reward: taken from the reward, token by token where the algorithm can."""


@dataclass
class CorrectionConfig:
    """For a sampler whose log-probabilities differ from the trainer's."""

    kind: Correction = Correction.none
    """none: the sampler's are taken for the trainer's. tis: a token's loss times the ratio of both, at most ``high``.
    icepop: the same within [low, high], else 0. Both compute the trainer's before the first update."""
    low: float = 0.5
    """icepop only."""
    high: float = 2.0


class ProcessCredit(Enum):
    to_go = "to_go"
    progress = "progress"


class ScoreNorm(Enum):
    held_out = "held_out"
    batch = "batch"
    running = "running"


@dataclass
class OveroptimisationConfig:
    """Watches whether the reward model's score still means anything: an alarm when it rises while verified accuracy
    falls. Both are means over the last steps' samples, compared with the best such window so far, and of the greedy
    answers to held-out problems, compared with the best evaluation so far."""

    window: int = 5
    """Steps whose samples are taken together."""
    warn: float | None = 0.02
    """Lost accuracy that is told, once it is above its noise too. None: never."""
    stop: float | None = None
    """Lost accuracy that ends the run, its last policy saved. None: never."""
    kl: bool = True
    """Measure the divergence from the policy at the start with every evaluation; that policy is then held in memory."""


@dataclass
class LengthConfig:
    """Kimi k1.5's length reward: of a problem's right answers the shortest gains, the longest loses."""

    weight: float = 0.0
    """The shortest right answer gets half of it, the longest answer loses half of it. 0: off."""
    warmup_steps: int = 0
    """The first iterations go without: it slows learning down at first (k1.5, section 2.3.3)."""


@dataclass
class RepetitionConfig:
    """Answers that end in a loop of tokens are cut off there, while they are decoded, and count as truncated."""

    longest_period: int = 0
    """Tokens of the longest stretch whose repetition is looked for; 0: off."""
    repeats: int = 4
    """A loop is a stretch that often over ..."""
    least_tokens: int = 16
    """... and this many tokens at least: 0000 may be a number."""
    penalty: float = 0.0
    """Taken from the reward of an answer that ends in a loop, beside rl.truncation_penalty."""


@dataclass
class CurriculumConfig:
    """Which problems an iteration gets."""

    pool: int = 0
    """Problems are drawn from the task's first so many, anew every iteration. 0: no pool, each problem comes once, and
    the other keys do nothing."""
    prioritised: bool = False
    """Draw a problem in proportion to 1 - its success rate, not all alike."""
    floor: float = 0.05
    """prioritised: no problem is drawn in a smaller proportion, so that what is solved is looked at now and then."""
    unlock_at: float | None = None
    """Begin with the lowest level of difficulty, and add the next one whenever the success rate at the highest so far
    reaches this, on at least prompts_per_step samples. None: all levels from the start."""
    memory: float = 0.5
    """How much earlier samples of a problem, or of a level, count each time there are new ones."""
    guess_tries: int = 0
    """Before the first step, problems that one of so many answers without thinking gets right are left out. 0: none."""


@dataclass
class CriticConfig:
    """rl.algorithm=ppo: a second model of the policy's shape, which says what reward is to be expected."""

    init_from: str | None = None
    """Checkpoint that it begins with, such as the reward model's; None: the policy's. Its head is then a new one."""
    lr: float = 1e-3
    warmup_steps: int = 0
    """The first iterations train the critic alone: the policy's learning rate is 0."""
    clip: float = 0.2
    """A value that moves further than this from the iteration's first one, toward the return, gains nothing more."""


@dataclass
class RlConfig:
    """Reinforcement learning: groups of samples, a reward for each, one of the algorithms."""

    algorithm: Algorithm = Algorithm.grpo
    """docs/rl.md tells them apart."""
    steps: int = 100
    """Iterations: sample, score, update."""
    prompts_per_step: int = 32
    samples_per_prompt: int = 8
    updates_per_step: int = 1
    """Optimizer updates on an iteration's samples, each on all of them."""
    max_new_tokens: int = 48
    """An answer that is longer is cut off there."""
    rollout_batch: int | None = None
    """Answers that a rank decodes at once; one that ends leaves its place to the next. None: all. Results do not depend
    on it."""
    partial_tokens: int = 0
    """An answer gets at most this many tokens an iteration; unfinished ones go on in the next, with its policy. An
    iteration learns from the first prompts_per_step groups that are finished. 0: every answer is finished at once."""
    max_staleness: int = 4
    """Iterations after the one that began it, within which a group is learnt from; what would be late is finished."""
    learn_old_segments: bool = True
    """Whether the tokens that older policies drew carry loss too."""
    temperature: float = 1.0
    temperature_end: float | None = None
    """The temperature moves to this one in equal steps (Kimi K2: high first, to explore). None: it stays."""
    lr: float = 3e-4
    clip_low: float | None = None
    """Ratios are clipped to 1 - clip_low .. 1 + clip_high. None: the algorithm's own, 0.2 or what docs/rl.md says."""
    clip_high: float | None = None
    clip_dual: float | None = None
    """Bound on the loss of a token of negative advantage, in multiples of the advantage. None: unbounded."""
    tau: float = 0.1
    """k15, k2: weight of the divergence from the iteration's first policy; more keeps the policy closer to it."""
    mirror_baseline: MirrorBaseline = MirrorBaseline.mean
    """k15, k2: what is taken from the reward: the group's mean, or log_partition: tau log mean exp(reward / tau)."""
    gamma: float = 1.0
    """ppo: what a reward one token later is worth."""
    gae_lambda: float = 1.0
    """ppo: at 1 an answer counts for its outcome less the critic's value, at 0 for the value's change a token later."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    entropy_weight: float = 0.0
    """What a nat of a token's entropy takes from its loss: a bonus that keeps a policy exploring. Negative sharpens."""
    kl: KlConfig = field(default_factory=KlConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    truncation_penalty: float = 0.0
    """Taken from the reward of an answer that was cut off at max_new_tokens (Kimi K2's token budget)."""
    overlong_cache: int = 0
    """DAPO's overlong shaping: the reward falls over the last this many of max_new_tokens tokens. 0: no shaping."""
    overlong_weight: float = 1.0
    """What is taken from the reward of an answer of full length, or of one cut off."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)
    sampling_rounds: int = 1
    """DAPO's dynamic sampling: groups of answers all right or all wrong teach nothing and are replaced by further
    problems, in at most this many rounds of prompts_per_step. 1: every group is kept."""
    micro_batch_size: int = 256
    """Sequences a rank computes at once, at most."""
    reward_model: str | None = None
    """Checkpoint of the reward model; farside run fills it in."""
    reward_model_weight: float = 0.2
    """Weight of the reward model's score, which lies in 0..1."""
    reward_model_norm: ScoreNorm = ScoreNorm.held_out
    """Mean and spread by which scores are standardised before the sigmoid: of held-out answers when the model was
    trained, of the iteration's samples, or of all samples so far."""
    reward_model_clip: float | None = None
    """Standardised scores are clipped to this many spreads either side. None: not at all."""
    process_weight: float = 0.0
    """Weight of the advantages from rewards of steps, beside those from whole answers; needs a process model."""
    process_credit: ProcessCredit = ProcessCredit.to_go
    """What a token is credited with. to_go: the steps from its own on; progress: by how much its own step changes how
    probably all is right."""
    overoptimisation: OveroptimisationConfig = field(default_factory=OveroptimisationConfig)
    verifier_weight: float = 1.0
    """Weight of the verifier's 0 or 1. At 0 the reward model alone teaches; the verifier still measures, and an
    answer that it fails on is masked all the same."""
    reward_alone_steps: int = 0
    """farside run: steps of one more run from the same start, taught by the reward model alone and without replay; its
    verified accuracy tells how far that model can be trusted. 0: no such run."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    verifier_timeout_seconds: float = 5.0
    max_error_share: float = 0.1
    """More verifier errors than this share of a step's samples stop the run."""
    eval_every: int = 20
    """Steps; 0: only before the first and after the last."""
    eval_prompts: int = 256
    """Held-out problems, answered greedily."""
    log_samples: int = 4
    """Completions a step written to samples.jsonl."""


@dataclass
class LoggingConfig:
    wandb: WandbMode = WandbMode.off
    project: str = "farside"
    every: int = 1
    """Steps between printed lines; metrics.jsonl always has every step."""
    compare_ranks: int = 50
    """Steps between comparisons of the ranks' own time, which name a slow one; 0: none."""


@dataclass
class ProfileConfig:
    """Traces of a few steps of pretraining, warm start or the reward model, in the run directory's profile/."""

    steps: str = ""
    """First and last step, such as 10..12, to trace (torch.profiler: a Chrome trace and a table); empty: none."""
    memory: bool = False
    """Of those steps also a memory snapshot (CUDA), or peak memory and allocations by operator (CPU)."""


@dataclass
class LaunchConfig:
    threads_per_rank: int = 1
    """OMP_NUM_THREADS of a rank."""


@dataclass
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stages: list[StageConfig] = field(default_factory=list)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


@dataclass
class ChatConfig:
    """``farside chat``: keys of its own, since it changes no run."""

    temperature: float = 0.0
    """0 decodes greedily; above, tokens are sampled."""
    max_new_tokens: int = 256
    """Tokens of an answer at most."""
    seed: int = 0
    """Of sampled answers."""
    plain: bool = False
    """Continue the text even where the checkpoint knows the chat format; --plain says the same."""


@dataclass
class ExportConfig:
    """``farside export hf``: keys of its own, since it changes no run."""

    max_shard_bytes: int = 5_000_000_000
    """Bytes of a file of weights at most; a tensor that is larger gets a file of its own."""
    dtype: Dtype | None = None
    """Weights are rounded to this type; None: as the checkpoint has them."""


@dataclass
class ImportConfig:
    """``farside import hf``: keys of its own, since it changes no run."""

    extend_vocab: bool = False
    """Add rows to the vocabulary for the special tokens of farside's formats where the model has no spare ones."""
