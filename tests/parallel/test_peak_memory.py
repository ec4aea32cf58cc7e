"""The most memory that was in use while something ran."""

import sys

import numpy as np
import pytest

from jaxunlearn import parallel


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_peak_is_that_of_the_body_alone():
    size = 2**28
    with parallel.peak_memory() as before:
        pass
    with parallel.peak_memory() as peak:
        np.ones(size, np.uint8).sum()
    with parallel.peak_memory() as after:
        pass
    assert peak["bytes"] > before["bytes"] + 0.9 * size
    assert after["bytes"] < peak["bytes"] - 0.9 * size
