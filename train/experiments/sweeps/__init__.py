"""A sweep: runs over a grid of settings and seeds, their table, picture and best."""
