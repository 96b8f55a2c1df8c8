"""All documents of a source at once: fine for tests, whose sources are small."""

from farside.configs.schema import SourceConfig
from farside.data.sources import SPLITS, Source


def read_source(name: str, config: SourceConfig) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, document in Source(name, config).documents():
        found[split].append(document)
    return found
