"""Numbers as the report prints them."""

import pytest

from farside.report import numbers


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.number(39012.3), "39,000"),
        (numbers.number(2048), "2,048"),
        (numbers.number(7.5678), "7.57"),
        (numbers.number(999.96), "1,000"),
        (numbers.number(0.000312), "0.000312"),
        (numbers.number(3.12e-7), "3.12e-7"),
        (numbers.number(-0.5), "-0.500"),
        (numbers.number(float("nan")), "–"),
        (numbers.number(True), "–"),
        (numbers.percent(0.4137), "41.4%"),
        (numbers.percent(1), "100%"),
        (numbers.percent(0.0), "0%"),
        (numbers.duration(59.999), "60.0 s"),
        (numbers.duration(812.3), "13 min 32 s"),
        (numbers.duration(7500), "2 h 05 min"),
        (numbers.size(8.2e9), "8.20 GB"),
        (numbers.count(1_966_080), "1.97 million"),
        (numbers.change("–", "3"), "3"),
    ],
)
def test_numbers_for_people(shown: str, expected: str) -> None:
    assert shown == expected
