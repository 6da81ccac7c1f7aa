"""Stand-in of Triton."""
