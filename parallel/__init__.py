"""Several processes as one job: start, end, devices, collectives, errors, stop requests.

May import storage. Only ranks.py reads torchrun's environment variables.
"""
