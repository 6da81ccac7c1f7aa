"""What the Makefile's targets do: `python -m splitrail.make lab|check|test`."""
