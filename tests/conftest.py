"""Process-wide settings: devices, strictness, and shape checks at run time."""

import os

# Eight simulated devices; set before jax is imported anywhere.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
from jaxtyping import install_import_hook

install_import_hook("jaxunlearn", "typecheck.typecheck")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")
