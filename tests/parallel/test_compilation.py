"""Compiled programs are kept where they can be, and it is said where not."""

import os

import jax
import pytest

import jaxunlearn as ju
from jaxunlearn.parallel import compilation


@pytest.fixture
def options(monkeypatch):
    """What was set in JAX's configuration instead of being set."""
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    return changed


def test_a_folder_is_made_and_every_program_kept(tmp_path, options):
    assert ju.cache_compilations(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    assert options["jax_compilation_cache_dir"] == str(tmp_path / "a" / "b")
    assert options["jax_persistent_cache_min_compile_time_secs"] == 0


def test_the_users_threshold_and_folder_for_caches_count(
    tmp_path, options, monkeypatch
):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ju.cache_compilations() == tmp_path / "jaxunlearn"
    assert list(options) == ["jax_compilation_cache_dir"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, options, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=f"{tmp_path}/file cannot be written to"):
        ju.cache_compilations(tmp_path / "file")
    monkeypatch.setattr(compilation.os, "access", lambda path, mode: False)
    with pytest.raises(OSError, match="it is read-only.*JAX_COMPILATION_CACHE_DIR"):
        ju.cache_compilations(tmp_path)
    assert not options
    assert os.path.isdir(tmp_path)
