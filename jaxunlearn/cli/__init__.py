"""The command line: `jaxunlearn run`, `unlearn` and `evaluate`."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg, subcommand

from jaxunlearn.cli.settings import Evaluate, Run, Unlearn, check_flags, read_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 0 if it did what it was told, 2 if a sentence says why not."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _start(_parse(arguments))
    except BrokenPipeError:
        # The reader, such as `head`, has had enough; Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, FloatingPointError, OSError) as error:
        print(f"jaxunlearn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"jaxunlearn: {interruption or 'interrupted.'}", file=sys.stderr)
        return 130
    return 0


def _parse(arguments) -> Run | Unlearn | Evaluate:
    kinds = Annotated[
        Annotated[Run, subcommand("run", default=_stored(arguments))]
        | Annotated[Unlearn, subcommand("unlearn")]
        | Annotated[Evaluate, subcommand("evaluate")],
        arg(name=""),
    ]
    # Without a field around them, errors would name one of tyro's own making.
    command = dataclasses.make_dataclass("Command", [("settings", kinds)])
    settings = tyro.cli(
        command,
        prog="jaxunlearn",
        description="Make a trained image classifier forget classes.",
        args=arguments,
    ).settings
    if not isinstance(settings, Evaluate):
        check_flags(arguments, settings)
    return settings


def _stored(arguments) -> Run:
    """The defaults of `run`: those of a stored configuration where one is named."""
    if arguments[:1] == ["run"]:
        for number, argument in enumerate(arguments):
            name, _, value = argument.partition("=")
            if name == "--config":
                following = arguments[number + 1 : number + 2]
                return read_config(Path(value or "".join(following)))
    return Run()


def _start(settings: Run | Unlearn | Evaluate) -> None:
    # Imported here: `--help` and a mistyped flag answer at once.
    if isinstance(settings, Run):
        from jaxunlearn.cli.run import run

        run(settings)
    elif isinstance(settings, Unlearn):
        from jaxunlearn.cli.saved import unlearn_saved

        unlearn_saved(settings)
    else:
        from jaxunlearn.cli.saved import evaluate_saved

        evaluate_saved(settings)
