"""Data sets of the Hugging Face Hub: list, download, stream and provide their files."""
