"""Small models and batches for the tests of train/ and parallel/."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from farside.configs.schema import Config, Dtype, ModelConfig
from farside.data.batch import Batch, Sample, document_sample
from farside.parallel.box import Box
from farside.parallel.context.attention import SingleRank
from farside.parallel.context.documents import Documents
from farside.parallel.plan import ShardTable
from farside.train.model.transformer import Attend, Transformer

SMALL = ModelConfig(
    vocab_size=37,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    initializer_range=0.3,
)


class InMemory:
    """Whole tensors as an engine loads them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors, self.shapes = tensors, {name: value.shape for name, value in tensors.items()}

    def read(self, name: str, box: Box) -> Tensor:
        return self.tensors[name][box.within(Box.whole(self.shapes[name]))]


def random_model(config: ModelConfig = SMALL, dtype: torch.dtype = torch.float64, seed: int = 0) -> Transformer:
    """Every parameter random, norm weights too, so that no term is hidden by a 1."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty(parameter.shape, dtype=torch.float64).normal_(0.0, 0.3, generator=generator)
            parameter.copy_(noise + 1.0 if parameter.ndim == 1 else noise)
    return model


def table_of(model: nn.Module) -> ShardTable:
    """Of a model that is whole on one rank."""
    return ShardTable({name: parameter.shape for name, parameter in model.named_parameters()})


def attend_within(doc_ids: torch.Tensor) -> Attend:
    context, docs = SingleRank(), Documents.of(doc_ids)
    return lambda layer, q, k, v: context.attend(q, k, v, docs)


def logits_of(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """[B, S, V] of rows that are one document each."""
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return model.logits(model.hidden(tokens, positions, attend_within(torch.zeros_like(tokens))))


def random_sample(generator: np.random.Generator, lengths: list[int], vocab_size: int, pad_to: int = 0) -> Sample:
    """A row of documents of the given lengths with random tokens and weights, padded without weight."""
    count = sum(lengths) + 1
    tokens = generator.integers(vocab_size, size=count)
    weights = generator.uniform(0.1, 2.0, size=count).astype(np.float32)
    starts = np.zeros(count, dtype=bool)
    starts[np.cumsum([0, *lengths])] = True  # the last start is the label-only token: never counted
    return document_sample(*padded(tokens, weights, starts, max(pad_to + 1, count)))


def padded(
    tokens: np.ndarray, weights: np.ndarray, starts: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    room = count - len(tokens)
    first = np.arange(room) == 0
    return np.append(tokens, np.zeros(room, int)), np.append(weights, np.zeros(room)), np.append(starts, first)


def random_batch(seed: int, rows: int, seq_len: int, vocab_size: int = SMALL.vocab_size) -> Batch:
    """Rows with different numbers of packed documents and of counted tokens."""
    generator = np.random.default_rng(seed)
    samples = []
    for row in range(rows):
        first = int(generator.integers(2, seq_len - 1))
        lengths = [seq_len] if row % 3 == 0 else [first, seq_len - first]
        samples.append(random_sample(generator, lengths, vocab_size))
    batch = Batch.of(samples)
    return replace(batch, weights=batch.weights.double() * torch.from_numpy(generator.random((rows, 1)) < 0.8))


def small_config(model: ModelConfig = SMALL, dtype: Dtype = Dtype.float64) -> Config:
    return Config(model=model, train=replace(Config().train, dtype=dtype))
