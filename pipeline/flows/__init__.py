"""Prefect: the pipeline as flows, on this machine or on workers."""
