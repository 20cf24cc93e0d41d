"""The exact upper confidence bound of a rate, after Clopper and Pearson (Biometrika 26, 1934)."""

import math
from typing import Final

from lrai.errors import InvalidInputError

_MAX_TERMS: Final = 1_000_000
_MAX_HALVINGS: Final = 200
_TINY: Final = 1e-300


def upper_bound(violations: int, n: int, alpha: float) -> float:
    """The rate p above which `violations` or fewer of n independent cases have probability < alpha.

    If the true rate is r, the bound is below r in at most a share alpha of all experiments. It is
    rounded upward: alpha is lowered by more than the error of the logarithms of large factorials.
    Raises `InvalidInputError` unless 0 <= violations <= n, 1 <= n and 0 < alpha < 1.
    """
    if not (0 <= violations <= n and n >= 1 and 0 < alpha < 1):
        raise InvalidInputError(
            f"{violations} violations of {n} cases at alpha {alpha} have no bound",
            "0 <= violations <= n, n >= 1, 0 < alpha < 1",
        )
    if violations == n:
        return 1.0
    if violations == 0:
        return min(1.0, -math.expm1(math.log(alpha) / n) * (1 + 1e-12))
    target = alpha * (1 - 1e-12 - 1e-13 * n)
    low, high = violations / n, 1.0
    for _ in range(_MAX_HALVINGS):
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        if tail(violations, n, middle) > target:
            low = middle
        else:
            high = middle
    return high


def tail(violations: int, n: int, rate: float) -> float:
    """The probability of at most `violations` in n cases, 0 <= violations < n, 0 < rate <= 1.

    It is the regularised incomplete beta function I(1 - rate; n - violations, violations + 1)
    (DLMF 8.17.5), by its continued fraction (DLMF 8.17.22).
    """
    if rate >= 1:
        return 0.0
    a, b = n - violations, violations + 1
    scale = math.lgamma(n + 1) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(scale + a * math.log1p(-rate) + b * math.log(rate))
    if (1 - rate) * (n + 3) < a + 1:
        return front * _fraction(a, b, 1 - rate) / a
    return 1 - front * _fraction(b, a, rate) / b


def _fraction(a: int, b: int, x: float) -> float:
    """The continued fraction of I(x; a, b), by the method of Lentz."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + numerator * d)
            c = _away_from_zero(1 + numerator / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
