"""Several processes as one job: start and end, device, collectives, shared errors, stop requests.

May import storage. Only ranks.py reads torchrun's environment variables.
"""
