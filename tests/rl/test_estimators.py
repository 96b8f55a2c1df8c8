"""pass@k, maj@k, correlation and bins: golden values and slow twins."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farside.rl.estimators import accuracy_by_bin, bin_edges, maj_at_k, majority_right, pass_at_k, rank_correlation


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [(4, 2, 2, 5 / 6), (4, 0, 4, 0.0), (4, 4, 1, 1.0), (10, 3, 1, 0.3), (10, 3, 8, 1.0), (200, 7, 100, 0.9929911)],
)
def test_pass_at_k_golden(n: int, c: int, k: int, value: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(value, abs=1e-7)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    subsets = list(itertools.combinations(right, k))
    wanted = sum(map(any, subsets)) / len(subsets)
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 5, 2), (4, -1, 2), (4, 2, 0)])
def test_pass_at_k_refuses_what_means_nothing(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {c} right among {n}"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "right", "elected"),
    [
        (["85", "84", "85"], [True, False, True], True),
        (["84", "85", "84"], [False, True, False], False),
        (["84", "85"], [False, True], False),  # equals: the one given first
        (["85", "84"], [True, False], True),
        (["", "", "85"], [False, False, True], True),  # no answer, no vote
        (["", ""], [False, False], False),
    ],
)
def test_majority(answers: list[str], right: list[bool], elected: bool) -> None:
    assert majority_right(answers, right) is elected


def test_maj_at_k_is_the_mean_over_disjoint_runs() -> None:
    answers = ["1", "1", "2", "2", "2", "1", "1"]
    right = [answer == "1" for answer in answers]
    assert maj_at_k(answers, right, 3) == 0.5  # "1", then "2"; the seventh is left over
    assert maj_at_k(answers, right, 1) == pytest.approx(4 / 7)
    assert maj_at_k(answers, right, 7) == 1.0
    with pytest.raises(ValueError, match="maj@8 of 7 samples"):
        maj_at_k(answers, right, 8)


@pytest.mark.parametrize(
    ("x", "y", "value"),
    [
        ([1, 2, 3], [10, 20, 25], 1.0),
        ([1, 2, 3], [9, 4, 1], -1.0),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.9486832980505138),
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),
        ([1, 1, 1], [1, 2, 3], None),
    ],
)
def test_rank_correlation(x: Sequence[float], y: Sequence[float], value: float | None) -> None:
    found = rank_correlation(x, y)
    assert found == (value if value is None else pytest.approx(value, abs=1e-12))


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(1, 12))
def test_every_value_lies_in_one_bin(values: list[int], bins: int) -> None:
    edges = bin_edges(values, bins)
    assert edges[0] == 0
    assert len(edges) - 1 <= bins
    rows = accuracy_by_bin(values, [value % 2 == 0 for value in values], edges)
    for row in rows:
        inside = [value for value in values if row["from"] <= value < row["to"]]
        assert row["answers"] == len(inside)
        assert row["right"] == sum(value % 2 == 0 for value in inside)
    assert sum(row["answers"] for row in rows) == len(values)
