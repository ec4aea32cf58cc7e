"""The command line: `jaxunlearn run`, `train`, `invert`, `unlearn` and the others."""

import os
import signal
import sys
import textwrap
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from rich.console import Console

from jaxunlearn.cli.audit import Audit
from jaxunlearn.cli.compare import Compare
from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.convert import Convert
from jaxunlearn.cli.difficulty import DifficultyCommand
from jaxunlearn.cli.flags import Command, flags_of, parse, summary
from jaxunlearn.cli.interruptions import interruptions
from jaxunlearn.cli.invert import Invert
from jaxunlearn.cli.ledger import LedgerCommand
from jaxunlearn.cli.plan import Plan
from jaxunlearn.cli.prepare import Prepare
from jaxunlearn.cli.processes import sentence_of
from jaxunlearn.cli.report import Report
from jaxunlearn.cli.reproduce import Reproduce
from jaxunlearn.cli.run import Run
from jaxunlearn.cli.study import Study
from jaxunlearn.cli.suggestions import nearest
from jaxunlearn.cli.sweep import Sweep
from jaxunlearn.cli.train import Train
from jaxunlearn.cli.unlearn import Evaluate, Unlearn
from jaxunlearn.parallel import cache_compilations, process_index

_SWITCH = "JAXUNLEARN_COMPILATION_CACHE"

COMMANDS: dict[str, type[Command]] = {
    "run": Run,
    "sweep": Sweep,
    "train": Train,
    "invert": Invert,
    "unlearn": Unlearn,
    "evaluate": Evaluate,
    "ledger": LedgerCommand,
    "difficulty": DifficultyCommand,
    "audit": Audit,
    "compare": Compare,
    "report": Report,
    "reproduce": Reproduce,
    "study": Study,
    "convert": Convert,
    "plan": Plan,
    "prepare": Prepare,
}


_COMPLETION = """\
if [ -n "${{ZSH_VERSION-}}" ]; then
  autoload -Uz compinit bashcompinit && compinit && bashcompinit
fi
_jaxunlearn() {{
  local words=""
  case "${{COMP_WORDS[1]}}" in
{flags}
  esac
  [ "$COMP_CWORD" = 1 ] && words="{commands} --help --version"
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _jaxunlearn jaxunlearn"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 0 if it did what it was told, 2 if a sentence says why not."""
    if arguments is None:
        # Of a warning only what it says, without the place in the library.
        warnings.formatwarning = lambda said, *_, **__: f"jaxunlearn: {said}\n"
    try:
        with interruptions():
            _main(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:
        # The reader, such as `head`, has had enough; Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as interruption:
        print(f"jaxunlearn: {str(interruption) or 'interrupted.'}", file=sys.stderr)
        if arguments is None:
            # Programs that JAX still runs would crash amid Python's own end.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        return 130
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print(f"jaxunlearn: {sentence}", file=sys.stderr)
        return 2
    finally:
        if arguments is None:
            # From here on Ctrl-C has nothing to say.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    return 0


def _main(arguments: list[str]) -> None:
    name, *flags = arguments or ["--help"]
    if name == "--version":
        print(f"jaxunlearn {version('jaxunlearn')}")
        return
    if name in ("-h", "--help", "--help-all"):
        print(_help())
        return
    if name == "--completion":
        print(_completion())
        return
    if name not in COMMANDS:
        near = nearest(name, list(COMMANDS))
        msg = f"There is no command {name}{near} There are: {', '.join(COMMANDS)}."
        raise ValueError(msg)
    settings = parse(name, COMMANDS[name], flags)
    if settings.compiles:
        keep_programs(consoles()[1])
        if not getattr(settings, "distributed", False):
            process_index()  # refuses a platform that is not there
    settings.run()


def keep_programs(console: Console) -> None:
    """`cache_compilations`, unless `JAXUNLEARN_COMPILATION_CACHE=off`.

    Where the folder cannot be written to, the console says so and the command goes on.
    """
    switch = os.environ.get(_SWITCH, "on")
    if switch not in ("on", "off"):
        msg = f'{_SWITCH} must be "on" or "off"; it is {switch!r}.'
        raise ValueError(msg)
    if switch == "off":
        return
    try:
        cache_compilations()
    except OSError as error:
        console.print(str(error))


def _completion() -> str:
    """What bash and zsh complete: commands, their flags, and files."""
    words = {n: " ".join(f.name for f in flags_of(c)) for n, c in COMMANDS.items()}
    flags = "\n".join(
        f"    {name}) words='{names}' ;;" for name, names in words.items()
    )
    return _COMPLETION.format(commands=" ".join(COMMANDS), flags=flags)


def _help() -> str:
    rows = (
        textwrap.fill(
            summary(command),
            initial_indent=f"  {name:<12}",
            subsequent_indent=" " * 14,
            width=80,
        )
        for name, command in COMMANDS.items()
    )
    return "\n".join(
        (
            "usage: jaxunlearn COMMAND [FLAGS]\n",
            "Make a trained image classifier forget classes.\n",
            "examples:\n  jaxunlearn run\n  jaxunlearn run --help\n",
            "commands:",
            *rows,
            "\nflags:\n  --help        this text, or that of a command",
            "  --help-all    all flags of a command\n  --version     of jaxunlearn",
            "  --completion  a script by which bash and zsh complete flags",
        )
    )
