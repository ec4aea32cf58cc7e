"""The only file that names a device."""

import jax


def linear_algebra_device() -> jax.Device:
    """Where float64 `eigh` and `qr` run: the GPU where there is one, else the CPU.

    TPUs have no float64 decompositions, so their hosts' CPUs do this work.
    """
    if jax.default_backend() == "gpu":
        return jax.local_devices(backend="gpu")[0]
    return jax.local_devices(backend="cpu")[0]


def loops_are_slow() -> bool:
    """Whether convolution gradients should stay out of `scan`, as on XLA's CPU backend.

    Measured there: a gradient step of a half-width All-CNN at batch 64 takes 12.2 s in
    a scan of length one and 0.24 s outside.
    """
    return jax.default_backend() == "cpu"
