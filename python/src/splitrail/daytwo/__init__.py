"""A cluster that runs: hosts out of service and back, and the ways back from every verb; docs/day-two.md."""
