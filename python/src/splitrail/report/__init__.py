"""Measured and predicted curves on one page, and as pictures."""
