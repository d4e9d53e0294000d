"""Estimates from the shape alone: parameters, FLOPs, memory and speed of a training step.

Nothing runs and no GPU is needed.
"""
