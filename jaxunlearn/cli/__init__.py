"""The command line: `jaxunlearn run`, `train`, `invert`, `unlearn` and the others."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg, subcommand

from jaxunlearn.cli.compilation import keep_programs
from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.distributed import SENTENCES, Worker
from jaxunlearn.cli.invert import Invert
from jaxunlearn.cli.plan import Plan
from jaxunlearn.cli.settings import (
    Evaluate,
    Methods,
    Prepare,
    Run,
    Unlearn,
    check_flags,
    read_config,
)
from jaxunlearn.cli.sweep import Sweep
from jaxunlearn.cli.train import Train

Settings = Run | Sweep | Train | Invert | Unlearn | Evaluate | Plan | Prepare


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 0 if it did what it was told, 2 if a sentence says why not."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _start(_parse(arguments), arguments)
    except BrokenPipeError:
        # The reader, such as `head`, has had enough; Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SENTENCES as error:
        print(f"jaxunlearn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"jaxunlearn: {str(interruption) or 'interrupted.'}", file=sys.stderr)
        return 130
    return 0


def _parse(arguments) -> Settings:
    kinds = Annotated[
        Annotated[Run, subcommand("run", default=_stored(arguments))]
        | Annotated[Sweep, subcommand("sweep", default=_sweep(arguments))]
        | Annotated[Train, subcommand("train")]
        | Annotated[Invert, subcommand("invert")]
        | Annotated[Unlearn, subcommand("unlearn")]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Plan, subcommand("plan")]
        | Annotated[Prepare, subcommand("prepare")],
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
    if isinstance(settings, Methods):
        check_flags(arguments, settings)
    return settings


def _stored(arguments) -> Run:
    """The defaults of `run`: those of a stored configuration, then of a checkpoint."""
    run = Run()
    if arguments[:1] != ["run"]:
        return run
    config, checkpoint = (_path(arguments, f) for f in ("--config", "--checkpoint"))
    if config is not None:
        run = read_config(config)
    if checkpoint is not None:
        from jaxunlearn.cli.checkpoint import with_checkpoint

        run = with_checkpoint(run, checkpoint)
    return run


def _sweep(arguments) -> Sweep:
    """The defaults of `sweep`: those of a checkpoint."""
    checkpoint = _path(arguments, "--checkpoint")
    if arguments[:1] != ["sweep"] or checkpoint is None:
        return Sweep()
    return Sweep().of_checkpoint(checkpoint)


def _path(arguments, flag) -> Path | None:
    """What follows a flag, without the help of tyro."""
    for number, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == flag:
            return Path(value or "".join(arguments[number + 1 : number + 2]))
    return None


def _start(settings: Settings, arguments: Sequence[str]) -> None:
    # Imported here: `--help` and a mistyped flag answer at once.
    if isinstance(settings, Run) and settings.several and not Worker.here():
        from jaxunlearn.cli.processes import start

        settings.check()
        start(arguments, settings, settings.place)
        return
    if not isinstance(settings, Prepare):
        keep_programs(consoles()[1])
    if isinstance(settings, Run):
        from jaxunlearn.cli.run import run

        run(settings)
    elif isinstance(settings, Sweep):
        from jaxunlearn.cli.sweep import sweep_classes

        sweep_classes(settings)
    elif isinstance(settings, Train):
        from jaxunlearn.cli.train import train

        train(settings)
    elif isinstance(settings, Invert):
        from jaxunlearn.cli.invert import invert

        invert(settings)
    elif isinstance(settings, Unlearn):
        from jaxunlearn.cli.saved import unlearn_saved

        unlearn_saved(settings)
    elif isinstance(settings, Evaluate):
        from jaxunlearn.cli.saved import evaluate_saved

        evaluate_saved(settings)
    elif isinstance(settings, Plan):
        from jaxunlearn.cli.plan import print_plan

        print_plan(settings)
    else:
        from jaxunlearn.cli.prepare import prepare_data_set

        prepare_data_set(settings)
