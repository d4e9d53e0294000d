"""Benchmarks: each measures one thing by calling the project's real code.

Layer 4: it may import every lower layer, and no other folder imports it.
"""
