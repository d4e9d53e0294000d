"""Options of a command line: the usual ones, their help, and a setting as words."""
