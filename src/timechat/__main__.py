"""`python -m timechat`."""

from timechat.cli.main import main

main()
