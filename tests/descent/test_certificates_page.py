"""What the page on certificates shows is what happens."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "certificates.md"


@pytest.mark.long
def test_the_page_runs_and_its_descent_ends_by_the_budget():
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__"})  # noqa: S102
    assert printed.getvalue().startswith("After ")
