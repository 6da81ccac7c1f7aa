"""`python -m splitrail.lab`: the lab without the rest of the command line."""

from splitrail.lab.cli import app

app()
