"""Benchmarks: each measures one thing by calling the project's real code.

Floor 4: may import everything below, and nothing imports it.
"""
