"""A run beside sound runs of the same recipe, data and length: inside their band or not."""
