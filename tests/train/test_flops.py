"""Operations by hand, the three conventions of MFU, and the table of peaks."""

import pytest
import torch

from farside.configs.schema import ModelConfig
from farside.train.model.flops import PEAK_TFLOPS, flops_per_token, known_peak, peak, utilisation
from tests.train.models import random_batch


def test_flops_per_token_by_hand() -> None:
    model = ModelConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=5,
    )
    projections = 8 * 20 + 8 * 10 + 8 * 10 + 20 * 8  # q, k, v, o
    mlp = 3 * 8 * 20
    matrices = 3 * (projections + mlp) + 100 * 8  # the head, tied or not
    # forward, causal: a query meets (S + 1) / 2 keys, 2 products of 2·5 operations each, in 4 heads of 3 layers
    attention = 3 * 4 * (64 + 1) / 2 * 2 * 2 * 5
    assert flops_per_token(model, 64) == 3 * (2 * matrices + attention)


def test_attention_share_of_an_8b_model_is_the_published_one() -> None:
    """research: 6N a token against 6·layers·length·width, 32k tokens: 34.9 %."""
    model = ModelConfig(
        vocab_size=1,
        hidden_size=4096,
        intermediate_size=1,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    attention = flops_per_token(model, 32768) - flops_per_token(model, 0)
    assert attention / (attention + 6 * 8e9) == pytest.approx(0.349, abs=0.001)


def test_three_conventions_differ_in_the_pairs_they_credit() -> None:
    """Two rows of 6 tokens, packed 6 and 4 + 2: 21 + 10 + 3 visible pairs."""
    model = ModelConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    matrices = 3 * (8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 6) + 10 * 8
    a_pair = 12 * 3 * 2 * 4  # layers, heads, head dim
    found = utilisation(model, seq_len=6, tokens=12, pairs=21 + 10 + 3, rate=1e6)
    assert found["mfu"] == pytest.approx((6 * matrices * 12 + a_pair * 12 * 3.5) / 1e6, rel=1e-15)
    assert found["mfu_palm"] == pytest.approx((6 * matrices + 12 * 3 * 8 * 6) * 12 / 1e6, rel=1e-15)  # 6N + 12 L d S
    assert found["mfu_document"] == pytest.approx((6 * matrices * 12 + a_pair * 34) / 1e6, rel=1e-15)


def test_conventions_agree_on_rows_of_one_document() -> None:
    pairs = 3 * 64 * 65 / 2
    found = utilisation(ModelConfig(), 64, 3 * 64, pairs, 1e9)
    assert found["mfu_document"] == pytest.approx(found["mfu"], rel=1e-15)
    assert found["mfu_palm"] > found["mfu"]


def test_visible_pairs_are_counted_from_the_documents() -> None:
    batch = random_batch(0, 5, 9)
    wanted = 0
    for row in batch.doc_ids:
        lengths = torch.unique_consecutive(row, return_counts=True)[1]
        wanted += sum(length * (length + 1) // 2 for length in lengths.tolist())
    assert batch.visible_pairs == wanted


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H20", 148.0),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, tera: float) -> None:
    assert known_peak(name) == tera * 1e12


def test_other_devices_are_measured() -> None:
    assert known_peak("NVIDIA GeForce GTX 1080") is None
    assert all(rate > 0 for rate in PEAK_TFLOPS.values())
    assert 1e8 < peak(torch.device("cpu"), torch.float32) < 1e14
