"""Where the page comes from, and what was asked for."""

from jaxunlearn.report.contents import Contents
from jaxunlearn.report.elements import definitions, escaped, unfolded
from jaxunlearn.report.measures import Measures
from jaxunlearn.serialization import to_json


def facts(contents: Contents, measures: Measures) -> str:
    """Versions, device, samples; and the settings to run it again."""
    del measures
    text = definitions(contents.facts.items())
    if contents.settings:
        code = escaped(to_json(contents.settings))
        code = f'<pre tabindex="0" aria-label="settings">{code}</pre>'
        text += unfolded("The settings", code)
    return text
