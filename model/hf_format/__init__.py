"""Models in Hugging Face's format: configuration, weights, tokenizer and model card.

The names say which side a value belongs to: `hf_…` is Hugging Face's, `ratchet_…` is ours.
"""
