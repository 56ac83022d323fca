"""Callsheet's core: plain Python that plans, checks and assembles, without Prefect and without a server."""
