"""Text from a model: prompts, decoding with a KV cache, the choice of each token, printing."""
