"""`python -m logagg` is the `logagg` command."""

from logagg.cli.main import main

main(prog_name="logagg")
