"""What the engines export, read into windows of time, shown, and judged."""
