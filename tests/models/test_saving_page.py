"""What `docs/saving.md` shows is what happens."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxunlearn.models.files import read_card

PAGE = Path(__file__).parents[2] / "docs" / "saving.md"


@pytest.fixture
def cache():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.long
def test_the_page_keeps_classifiers(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), names)  # noqa: S102
    for one, other in (
        ("classifier", "again"),
        ("known", "loaded"),
        ("classifier", "thawed"),
        ("frozen", "back"),
    ):
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.tree.leaves(names[one]),
            jax.tree.leaves(names[other]),
        )
        assert names[one].preprocess == names[other].preprocess
    card, _ = read_card(tmp_path / "small.safetensors")
    assert card.class_names[3] == "digit 3"
    assert names["card"].num_classes == 10
    assert jax.config.jax_compilation_cache_dir == "programs"
