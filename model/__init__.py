"""The network, its loss, estimates of its cost, and models on disk in our and other formats.

It may import storage/.
"""
