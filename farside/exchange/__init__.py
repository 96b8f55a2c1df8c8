"""Models in and out: Hugging Face's folders of safetensors, configuration and tokenizer (docs/exchange.md)."""


def run(command: str, words: list[str]) -> int:
    """``farside export hf`` or ``farside import hf``; returns the exit code. Raises UserError for wrong input."""
    if command == "export hf":
        from farside.exchange.export import export

        return export(words)
    from farside.exchange.bring import bring

    return bring(words)
