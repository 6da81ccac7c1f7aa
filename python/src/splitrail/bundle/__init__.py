"""The air gap: all that a release names in one folder, proven whole, and served without a network."""
