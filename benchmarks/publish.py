"""Store what `jaxunlearn reproduce` holds new numbers beside.

    python benchmarks/publish.py NAME runs/FOLDER --minutes 13

reads the comparison in that folder, which must be of the settings in
`jaxunlearn/cli/comparisons/NAME.json`, and writes its intervals, versions and the hash
of what it forgot there.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import jaxunlearn
from jaxunlearn.cli.published import Published, hashes, intervals
from jaxunlearn.serialization import from_dict, read_json, write_json
from jaxunlearn.training.checkpoints import differences

FOLDER = Path(jaxunlearn.__file__).parent / "cli" / "comparisons"


def main() -> int:
    """Write the entry: 0, or 1 where the comparison is another one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--hardware", default="two x86 cores")
    parser.add_argument("--data-dir", type=Path)
    own = parser.parse_args()
    path = FOLDER / f"{own.name}.json"
    entry = from_dict(Published, json.loads(path.read_text()))
    settings = dataclasses.replace(entry.settings(), data_dir=own.data_dir)
    made = read_json(own.folder / "comparison.json")
    # A flag that has come since then is at its default.
    now = {n: v for n, v in settings.to_dict().items() if n in made["settings"]}
    if different := differences(made["settings"], now):
        print(f"{own.folder} is of other settings: {different}.", file=sys.stderr)
        return 1
    new = dataclasses.replace(
        entry,
        minutes=own.minutes,
        hardware=own.hardware,
        awaits="",
        forgets=hashes(settings, settings.load("train")),
        versions=made["versions"],
        intervals=intervals(made["tables"]),
    )
    write_json(path, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
