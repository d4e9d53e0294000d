"""The measurements on a GPU: everything that a short time on one has to answer, as one call.

It may import every lower layer and bench/, and nothing imports it.
"""
