"""splitrail: from bare GPU nodes to proven prefill-decode serving."""
