"""Damaged ranks are refused."""

import pytest

from data_prep.tokenizer import gpt2_tokenizer
from storage.byte_pairs import BytePairs
from storage.vocabularies.folder import read_byte_pairs


def test_damaged_ranks_are_refused(tmp_path):
    gpt2_tokenizer().save(tmp_path)
    (tmp_path / "ranks.tiktoken").write_bytes(b"QQ== 0\n")
    with pytest.raises(ValueError, match="tokenizer's file must have"):
        read_byte_pairs(tmp_path)
    with pytest.raises(ValueError, match="no token for 255 of the 256 bytes"):
        BytePairs("x", ".", b"QQ== 0\n")
