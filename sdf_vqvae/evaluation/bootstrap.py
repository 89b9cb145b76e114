"""How sure a mean over objects is: intervals of 95 % from resampled objects, with a fixed seed.

Every call with the same number of objects resamples them alike, so that differences between rows of the same objects
are paired. Knows numbers; knows nothing of what they measure.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over objects, and where 95 % of the resampled means lie."""

    mean: float
    low: float
    high: float
    objects: int
    """How many have a value."""

    def rounded(self) -> dict[str, float]:
        """Return mean, low and high with the digits that are worth writing."""
        return {"mean": six_digits(self.mean), "low": six_digits(self.low), "high": six_digits(self.high)}


def six_digits(value: float) -> float:
    """Return a number with the six digits that are worth writing."""
    return float(f"{value:.6g}")


def draws(count: int) -> Array:
    """Return how often each of `count` objects is drawn in each resample. `[RESAMPLES, count]`"""
    return np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)


def mean_interval(
    values: Array, groups: Sequence[Hashable] | None = None, *, drawn: Array | None = None
) -> Interval | None:
    """Return the mean over objects and its interval; None where no object has a value.

    Args:
        values: one an object, NaN where there is none. `[objects]`
        groups: each object's group: the mean is then over the groups' means, so that large groups count no more
            than small ones (macro). A resample leaves out groups of which it drew no object.
        drawn: of `draws`, to save drawing it again. `[RESAMPLES, objects]`

    Raises:
        ValueError: the groups are not as many as the values.
    """
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(values)} values and {len(groups)} groups: give each object one")
    has_value = np.isfinite(values)
    if not has_value.any():
        return None
    weights = (draws(len(values)) if drawn is None else drawn)[:, has_value]
    column = values[has_value]
    members = _members(None if groups is None else [g for g, has in zip(groups, has_value, strict=True) if has])
    means = [_weighted_mean(column[own], weights[:, own]) for own in members]
    resampled = means[0] if groups is None else _mean_of_known(np.stack(means))
    low, high = np.percentile(resampled[np.isfinite(resampled)], [2.5, 97.5])
    mean = np.mean([column[own].mean() for own in members])
    return Interval(mean=float(mean), low=float(low), high=float(high), objects=int(has_value.sum()))


def _members(groups: Sequence[Hashable] | None) -> list[slice | list[int]]:
    if groups is None:
        return [slice(None)]
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    return list(members.values())


def _weighted_mean(column: Array, weights: Array) -> Array:
    """Return the mean in every resample, NaN where it drew none. `[RESAMPLES]`"""
    total = weights.sum(axis=1)
    return np.divide(weights @ column, total, out=np.full(len(total), np.nan), where=total > 0)


def _mean_of_known(means: Array) -> Array:
    """Return the mean over groups, those left out that were not drawn. `[groups, RESAMPLES] -> [RESAMPLES]`"""
    known = np.isfinite(means)
    count = known.sum(axis=0)
    return np.divide(np.where(known, means, 0).sum(axis=0), count, out=np.full(len(count), np.nan), where=count > 0)
