"""Files of a Hugging Face Hub data set: listing, download, streaming, and supply to the workers."""
