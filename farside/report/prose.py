"""What the report says to someone who meets these ideas for the first time: one paragraph a section."""

SUMMARY = (
    "A language model is trained from nothing on short texts, its context is extended stage by stage, and "
    "it is then taught to reason: first from written examples, then by reinforcement learning (RL) on "
    "answers that a program verifies. Each phase starts from the checkpoint of the one before."
)
DATA = (
    "A byte-level tokenizer of {entries} entries is trained on the training text of all sources. "
    "Validation and haystack text is never trained on; haystacks are the texts that needles are hidden "
    "in."
)
PRETRAINING = (
    "The model first learns on short texts, where retrieval is quickest to learn; each later stage "
    "continues from the same weights on longer ones. Attention always covers the whole window. Where a "
    "stage begins, the loss may jump: its texts are new to the model in length and mixture."
)
SPEED = (
    "MFU is the share of the machine's peak arithmetic rate that the model's own arithmetic uses. In the "
    "table, loss is the mean of a stage's last 20 steps; speed and MFU are medians."
)
NEEDLES = (
    "Every cell stands for {needles} unseen texts of one length, each with a made-up fact, the needle, hidden at one "
    "depth and asked for at the end. A cell is green when every needle comes back exactly, red when none does. "
    "Columns right of a dashed line are longer than anything that model had been trained on."
)
WARM_START = (
    "The model imitates worked answers: a thought between think marks, then the answer. Some examples may show no "
    "work at all. Reinforcement learning, which only rewards right answers, has to find out what pays."
)
REWARD = (
    "The model answers problems several times; the reward model learns from pairs of a right and a wrong "
    "answer to score the right one higher. A reward model may cheat by looking at length and format only, "
    "so a classifier that sees nothing else is its yardstick."
)
RL = (
    "The model answers each problem several times. A program checks every answer; answers better than the "
    "others to the same problem are made more likely, worse ones less. No solution is ever shown."
)
ALONE = (
    "Where no program can check an answer, a reward model must judge it. This run shows how far it can be trusted: "
    "the reward was its score and nothing else. The program only counted, without a say, how many answers were "
    "right; if the score rises and that count does not, the model has learnt to please its judge."
)
BEFORE_AFTER = (
    "The first held-out problems, neither picked by outcome nor ever trained on; the model answers without chance."
)
PROCESS = (
    "This reward model judges steps: at the end of each it says how probably all is right so far. It learns from the "
    "policy's own answers, a step being as right as what the policy makes of it, or from worked answers with a planted "
    "mistake. Held-out answers with such a mistake measure it."
)
WATCH = (
    "The reward model's score and the verified accuracy of sampled answers, means of the last steps. A score that "
    "rises while accuracy falls means that the policy has found what the model overrates."
)
SAMPLED = "The first completions logged at these steps, right or wrong."
CURVES = (
    "Faint: every step. Strong: running mean. Held-out problems are never trained on. Reward adds the "
    "weighted score of the reward model to the verifier's 0 or 1."
)
MATH = (
    "Held-out problems, answered by one checkpoint. pass@k: at least one of k sampled answers is right; maj@k: the "
    "most frequent of k is. Under a thinking budget the greedy thought is cut and closed, so that it must answer."
)
