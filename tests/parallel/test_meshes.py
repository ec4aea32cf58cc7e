"""What is no mesh of one axis is said to be none."""

import jax
import numpy as np
import pytest

from jaxunlearn import parallel

DEVICES = np.array(jax.devices())


@pytest.mark.parametrize(
    "mesh",
    [
        *("cpu", 4, {"data": 1}, list(DEVICES), np.tile(DEVICES, 500)),
        jax.sharding.Mesh(DEVICES.reshape(2, -1), ("a", "b")),
        jax.sharding.AbstractMesh((1,), ("data",)),
        jax.sharding.SingleDeviceSharding(DEVICES[0]),
    ],
)
def test_what_is_no_mesh_of_one_axis_is_refused(mesh):
    with pytest.raises(ValueError, match=r"mesh must be .*make_mesh") as raised:
        parallel.axis_of(mesh)
    assert len(str(raised.value)) < 1000
