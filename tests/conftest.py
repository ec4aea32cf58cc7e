"""Process-wide settings: devices, strictness, and shape checks at run time."""

import os
import signal
from importlib.metadata import version

# Nearly all programs here run once and are tiny: compiled with little optimisation, the
# tests take less than half the time. XLA_FLAGS set by hand replaces these.
_QUICK = "--xla_backend_optimization_level=1 --xla_cpu_parallel_codegen_split_count=1"
if version("jax").startswith("0.10."):
    _QUICK += " --xla_cpu_use_fusion_emitters=false"  # unknown to later ones

# Eight simulated devices; set before jax is imported anywhere.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", _QUICK) + " --xla_force_host_platform_device_count=8"
)

# What tests compile is not for the cache of whoever runs them.
os.environ["JAXUNLEARN_COMPILATION_CACHE"] = "off"

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("jaxunlearn", "typecheck.typecheck")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")


# In the background Ctrl-C may be ignored, which children would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--all", action="store_true", help="run the tests that are marked long too"
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("all"):
        return
    long = [item for item in items if "long" in item.keywords]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if "long" not in item.keywords]
