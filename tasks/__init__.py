"""Prefect tasks, one file for each stage of a shot's way: hosts, lanes, speech, visuals, checks, assembly, publish."""
