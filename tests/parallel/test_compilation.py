"""Compiled programs are kept where they can be, and it is said where not."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxunlearn as ju
from jaxunlearn.parallel import compilation

ROOT = Path(ju.__file__).parents[1]


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
    with pytest.raises(OSError, match=f"{tmp_path}/file: File exists"):
        ju.cache_compilations(tmp_path / "file")
    monkeypatch.setattr(compilation.os, "access", lambda path, mode: False)
    with pytest.raises(OSError, match="is read-only.*JAX_COMPILATION_CACHE_DIR"):
        ju.cache_compilations(tmp_path)
    assert not options
    assert os.path.isdir(tmp_path)


def test_who_has_no_home_is_told_so(options, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compilation.Path, "home", home)
    with pytest.raises(OSError, match="not kept .Could not determine home directory."):
        ju.cache_compilations()
    assert not options


def test_the_users_folder_is_private_and_nobody_elses(tmp_path, options, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "jaxunlearn"
    path.mkdir(mode=0o755)
    assert ju.cache_compilations() == path
    assert path.stat().st_mode & 0o777 == 0o700
    options.clear()
    monkeypatch.setattr(compilation.os, "getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(OSError, match="jaxunlearn belongs to another user"):
        ju.cache_compilations()
    assert not options


@pytest.mark.long
def test_a_damaged_entry_is_replaced(tmp_path):
    """By itself JAX warns of it for ever, and compiles."""
    script = """
import sys, jax, jaxunlearn
jaxunlearn.cache_compilations(sys.argv[1])
print(jax.jit(lambda x: x * 3 + 1)(2.0))
"""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def run():
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout == "7.0\n"
        return done.stderr

    run()
    entries = {path: path.read_bytes() for path in tmp_path.glob("*-cache")}
    assert entries
    for path, content in entries.items():
        path.write_bytes(content[: len(content) // 2])
    assert "Error reading persistent compilation cache entry" in run()
    for path, content in entries.items():
        assert len(path.read_bytes()) > len(content) // 2
    assert "Error" not in run()
