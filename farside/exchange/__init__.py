"""Models in and out: Hugging Face's folders of safetensors, configuration and tokenizer (docs/exchange.md)."""


def run(command: str, words: list[str]) -> int:
    """``farside export hf``; returns the exit code. Raises UserError for wrong input."""
    from farside.exchange.export import export

    return export(words)
