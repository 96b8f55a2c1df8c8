"""The chat format's marks and the file of conversations. Imports nothing, so that a verifier's child can have it.

A conversation is ``<|user|>QUESTION<|assistant|><think>REASONING</think>ANSWER<|end|>``.
"""

END_OF_TEXT, USER, ASSISTANT, END, THINK, END_THINK = SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<think>",
    "</think>",
)

TRACES = "traces.jsonl"
"""In the warm start's run directory: a line is {"question": ..., "response": ...}."""
