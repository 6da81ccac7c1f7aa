"""`python -m splitrail`."""

from splitrail.cli import main

main()
