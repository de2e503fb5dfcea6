"""Write the commands' help into docs/commands.md, or check that it is what they print.

python docs/help.py           write
python docs/help.py --check   exit 1 when the file differs
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from timechat.cli.main import cli

PAGE = Path(__file__).with_name("commands.md")
OPENING = """# Commands

Made by `make docs` from the commands themselves; `make docs-check` fails when they differ.
"""


def render() -> str:
    parts = [OPENING]
    for name in sorted(cli.commands):
        command = cli.commands[name]
        context = click.Context(command, info_name=f"timechat {name}", max_content_width=90)
        parts.append(f"## timechat {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def main() -> int:
    text = render()
    if "--check" in sys.argv[1:]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print("docs/commands.md is not what the commands print: run `make docs`", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
