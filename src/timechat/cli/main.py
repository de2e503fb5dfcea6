"""The program: its group of commands, and the exit status of each way to end."""

from __future__ import annotations

import errno
import sys
from typing import Any

import click

from timechat.cli import signals
from timechat.cli.commands import (
    annotation,
    data,
    export,
    learning,
    machine,
    proof,
    runs,
    server,
    talking,
    training,
)
from timechat.errors import StoppedError, TimeChatError, nearest


class Commands(click.Group):
    """Unknown commands are answered with the nearest known one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}: {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="timechat")
def cli() -> None:
    """Turn an open language model into your own chatbot, and prove that it got better.

    \b
    timechat demo                      the whole story on the starter model
    timechat train recipe.yaml         your own data
    timechat chat runs/demo            talk to what was made
    """


for command in (
    training.demo, data.prepare, data.show, training.plan, training.train, training.resume,
    runs.runs, runs.rm, runs.pin, proof.compare, talking.chat, talking.serve, export.export,
    annotation.annotate, annotation.agreement, annotation.collect, learning.learn, server.jobs,
    server.keys, machine.doctor,
):  # fmt: skip
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """The entry point: exit 0, 2 for a user's error, 130 and 143 for signals, 1 otherwise."""
    signals.install()
    try:
        status = cli.main(arguments, prog_name="timechat", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped; `timechat resume RUN` goes on from the newest checkpoint", err=True)
        sys.exit(130)
    except StoppedError as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(stopped.exit_status)
    except TimeChatError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    except Exception as error:
        if (advice := _advise(error)) is None:
            raise
        click.echo(f"error: {error}: {advice}", err=True)
        sys.exit(2)


def _advise(error: Exception) -> str | None:
    """What to do about a fault of the machine; None where it is ours."""
    # safetensors reports a full disk as an error of its own, with the system's words in it.
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return "free some space, then run the same command again; nothing half-written is kept"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "name a folder that you may write to"
    return "see to it, then run the same command again" if isinstance(error, OSError) else None


if __name__ == "__main__":
    main()
