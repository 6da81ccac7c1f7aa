"""Stand-in of RIXL's bindings."""
