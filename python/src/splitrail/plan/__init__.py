"""Predict how a layout serves a workload, and choose one: a discrete-event simulator and a search over it."""
