"""Tokenizers of one's own: merges learned from text, and a size that fits its amount."""
