"""Standard output and standard error of a script."""
