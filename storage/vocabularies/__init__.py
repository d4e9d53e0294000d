"""Tokenizers on disk: in our folders, in Hugging Face's files and in tiktoken's.

It imports storage only.
"""
