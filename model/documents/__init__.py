"""Attention within documents (`--mask-documents`): a mask, or the blocks of flex attention."""
