"""`python -m logagg` is the `logagg` command."""

from logagg.cli import main

main(prog_name="logagg")
