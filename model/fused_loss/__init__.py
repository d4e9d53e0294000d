"""Head and loss as one operator, and its kernel for CUDA."""
