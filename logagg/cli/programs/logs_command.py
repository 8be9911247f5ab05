"""`logagg logs`: the log of programs by name."""

from __future__ import annotations

import msgspec

from logagg.cli.command import say
from logagg.cli.configuration import config
from logagg.cli.programs.background import log_of
from logagg.cli.programs.program_tables import find_project
from logagg.cli.viewing.named_words import is_condition, named_programs
from logagg.cli.viewing.view_commands import show_log, view_command
from logagg.cli.viewing.view_options import TailOptions
from logagg.errors import ConfigError, LogaggError
from logagg.ipc.runs import named_runs

__all__ = ["logs"]


@view_command(TailOptions)
def logs(options: TailOptions, matches: tuple[str, ...]) -> None:
    """Show the log of programs as it comes: logagg tail, by name.

    \b
    logagg logs                 of the project here, or of the only one
    logagg logs web jobs        of these programs
    logagg logs web -l error    with all options and conditions of `logagg tail`
    When the project is not running: the file that `logagg up -d` has written.
    """
    wanted = [word for word in matches if not is_condition(word)]
    try:
        for name in wanted:
            named_runs.find(name)
        socket = "" if wanted else named_runs.find().found.socket
    except LogaggError as error:
        path = _file_here()
        if not path:
            raise
        if isinstance(error, ConfigError):
            _check_names(wanted)
        say(f"logagg: not running; its log is {path}", err=True)
        options = msgspec.structs.replace(options, files=(path,), follow=False)
        terms = [word for word in matches if is_condition(word)]
        show_log(options, [*terms, *(f"app={name}" for name in wanted)])
        return
    if socket:
        options = msgspec.structs.replace(options, socket=options.socket or socket)
    show_log(*named_programs(options, matches))


def _file_here() -> str:
    """The log of the project in this directory that ran in the background, or ""."""
    try:
        return log_of(str(find_project("", config.load()).path), present=True)
    except LogaggError:
        return ""


def _check_names(names: list[str]) -> None:
    """Refuse names that no program of the project here has.

    Raises:
        ConfigError: One is none.
    """
    from logagg.cli.programs.program_tables import read_project  # only in this case
    from logagg.supervisor.programs.program_spec import select  # the same

    loaded = config.load()
    select(read_project(find_project("", loaded), loaded, None), names)
