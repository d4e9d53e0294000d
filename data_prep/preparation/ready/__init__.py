"""Tokens that other programs have made: their files, and the way into shards."""
