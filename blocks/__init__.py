"""Prefect blocks: typed settings and secrets of each outside system. ``client()`` gives the core's client.

A laptop needs none: with nothing saved, the same blocks are made in memory from the fleet file and the
environment, so there is one way to a client.
"""
