"""`docs/outputs.md` lists every setting and measure that files hold, and no other.

What commands write is compared where it is made: `outputs.check_keys` in their tests.
"""

import dataclasses

import outputs
import pytest

from jaxunlearn import methods
from jaxunlearn.cli.compare import Compare
from jaxunlearn.cli.run import Run
from jaxunlearn.cli.settings import UnlearningMethod
from jaxunlearn.cli.sweep import Sweep
from jaxunlearn.metrics.audits import AUDITS
from jaxunlearn.serialization import to_dict


def test_the_settings_of_a_run_with_every_method():
    config = Run(methods=tuple(methods.by_name)).to_dict()
    names = "config.json of a run", "settings"
    outputs.check_keys(config, *names, complete=names)


def test_the_settings_of_the_other_commands():
    compared = dataclasses.replace(Compare(), methods=UnlearningMethod.__args__)
    for heading, settings in (("sweep.json", Sweep()), ("comparison.json", compared)):
        record = {"settings": settings.to_dict()}
        outputs.check_keys(record, heading, complete=())
        documented = {
            key.split(".")[1]
            for key in outputs.tables()[heading]
            if key.startswith("settings.")
        }
        assert documented <= set(record["settings"])


def test_every_audit_has_its_unit():
    documented = {name.split("/")[0] for name in outputs.tables()["measures"]}
    assert set(AUDITS) <= documented
    assert outputs.measured(["probe-layers/Conv_1", "probe/Conv_1"]) == {"probe/Conv_1"}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"verdict": "", "rows": [{"nam": ""}]}, r"lacks \['rows\[\]\.nam'\]"),
        ({"verdict": {"a": 1}}, r"lacks \['verdict.a'\]"),
        ({"verdict": ""}, "never written: .*'forget_classes'"),
    ],
)
def test_what_differs_is_named(record, sentence):
    with pytest.raises(AssertionError, match=sentence):
        outputs.check_keys(record, "audit.json", complete=["audit.json"])


def test_the_records_of_audits_have_these_fields():
    from jaxunlearn.metrics import Audit, AuditRow

    row = AuditRow("probe", 1.0, 2.0, (1.0,), 0.0, 1.0, True, (False,) * 3, 0.1)
    record = to_dict(Audit((row,), "within the noise of retraining", (3,)))
    outputs.check_keys(record, "audit.json", complete=["audit.json"])
