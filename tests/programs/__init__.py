"""Programs that tests start as scripts.

They have a folder of their own: a script's folder comes first on Python's path, and tests/ has
sub-folders named like the packages.
"""
