"""Changing what is served while it is served: canaries, the way back, the ratio of prefill to decode."""
