"""What a model costs, from its shape alone: parameters, FLOPs, memory and time."""
