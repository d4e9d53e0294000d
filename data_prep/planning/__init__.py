"""The plan of a preparation: sizes from a sample of real tokens, and the units to make."""
