"""Models in Hugging Face's format, read and written: configuration, weights, tokenizer, card.

The names say which side a value belongs to: `hf_…` is Hugging Face's, `ratchet_…` is ours.
"""
