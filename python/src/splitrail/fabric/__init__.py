"""The RoCE fabric: what is declared against what is there, and the proof that it carries RDMA."""
