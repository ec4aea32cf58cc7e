"""The command line: `jaxunlearn run`, `unlearn` and `evaluate`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxunlearn.cli.settings import Evaluate, Run, Unlearn, read_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what it was told, 2 with a sentence if it could not."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        settings = tyro.cli(
            Annotated[Run, tyro.conf.subcommand("run", default=_stored(arguments))]
            | Annotated[Unlearn, tyro.conf.subcommand("unlearn")]
            | Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
            prog="jaxunlearn",
            description="Make a trained image classifier forget classes.",
            args=arguments,
        )
        _start(settings)
    except (ValueError, TypeError, FloatingPointError, OSError) as error:
        print(f"jaxunlearn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxunlearn: interrupted.", file=sys.stderr)
        return 130
    return 0


def _stored(arguments) -> Run:
    """The defaults of `run`: those of a stored configuration where one is named."""
    for number, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--config":
            following = arguments[number + 1 : number + 2]
            return read_config(Path(value or "".join(following)))
    return Run()


def _start(settings: Run | Unlearn | Evaluate) -> None:
    # Imported here: `--help` and a mistyped flag answer at once.
    console = Console()
    if isinstance(settings, Run):
        from jaxunlearn.cli.run import run

        run(settings, console)
    elif isinstance(settings, Unlearn):
        from jaxunlearn.cli.saved import unlearn_saved

        unlearn_saved(settings, console)
    else:
        from jaxunlearn.cli.saved import evaluate_saved

        evaluate_saved(settings, console)
