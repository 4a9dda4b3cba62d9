from __future__ import annotations

import pytest

from ssegate.edge.latency import BOUNDS, Latency


def test_an_observation_counts_in_the_first_bucket_that_holds_it() -> None:
    latency = Latency()
    for seconds in (0.0, BOUNDS[0], 0.0006, BOUNDS[-1], 60.0):
        latency.observe(seconds)
    assert (latency.counts[0], latency.counts[1], latency.counts[-2], latency.counts[-1]) == (2, 1, 1, 1)
    assert len(latency.counts) == len(latency.bounds) + 1
    assert sum(latency.counts) == 5
    assert latency.total == pytest.approx(65.0011)


def test_buckets_grow() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
