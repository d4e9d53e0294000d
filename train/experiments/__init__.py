"""Several runs as one experiment: what is run, how they are started, what their results say."""
