"""Measure what an endpoint sustains: open-loop traffic, a steady-state gate, a search under an SLA."""
