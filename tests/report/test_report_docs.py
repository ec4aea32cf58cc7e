"""What `docs/report.md` shows is what happens."""

import re
import shlex
from pathlib import Path

import pytest

from jaxunlearn.cli import COMMANDS
from jaxunlearn.cli.flags import parse
from jaxunlearn.report.sections import SECTIONS

TEXT = (Path(__file__).parents[2] / "docs" / "report.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_page_knows_every_section_in_its_order():
    rows = re.findall(r"^\| ([^|]+) \|", TEXT, flags=re.MULTILINE)
    assert rows[1:] == [section.title for section in SECTIONS.values()]


def test_its_command_lines_are_ones():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, name, *flags = shlex.split(line)
        assert program == "jaxunlearn"
        assert parse(name, COMMANDS[name], flags).folder


@pytest.mark.long
def test_models_from_elsewhere_have_a_page():
    (code,) = blocks("python")
    names = {"__name__": "__main__"}
    exec(compile(code, "report.md", "exec"), names)  # noqa: S102
    # Nothing was left out but what needs audits, projections or proxies.
    missing = re.findall(
        r'<section id="(\w+)"[^>]*><h2[^>]*>[^<]*</h2><p class="missing"', names["text"]
    )
    assert missing == ["verdict", "results", "gradient", "proxies"]
