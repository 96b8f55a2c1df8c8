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

TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ '<|user|>' + message['content'] }}
{%- elif message['role'] == 'assistant' -%}{{ '<|assistant|>' + message['content'] + '<|end|>' }}
{%- else -%}{{ raise_exception('this model knows the roles user and assistant only') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""
"""The format as a Jinja template, for tools that read Hugging Face's folders."""
