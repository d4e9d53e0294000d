"""Text generation: prompts, batched decoding with a KV cache, token sampling, printing."""
