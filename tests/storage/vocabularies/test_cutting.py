"""A tokenizer with fewer ids: the kept ones are unchanged, and end-of-text is the last."""

import pytest

from data_prep.preparation.encoder import fast_encoder
from data_prep.tokenizer import gpt2_tokenizer, named_tokenizer, tokenizer_of
from data_prep.train_tokenizer import TokenizerOptions, train_tokenizer
from storage.byte_pairs import BytePairs
from storage.vocabularies.any_tokenizer import read_any_tokenizer
from storage.vocabularies.cutting import cut_byte_pairs
from tests.tokenizer_families import FAMILIES, NAUGHTY, family


@pytest.mark.parametrize("kind", FAMILIES)
def test_kept_ids_mean_the_same_and_no_other_is_given(kind, tmp_path):
    pairs = read_any_tokenizer(family(kind, tmp_path))
    whole, cut = tokenizer_of(pairs), tokenizer_of(cut_byte_pairs(pairs, 400, "cut"))
    assert cut.n_vocab == 400
    assert cut.end_of_text == (0 if kind == "smollm" else 399)
    kept = [token for token in range(399) if token != cut.end_of_text]
    assert [cut.to_bytes([t]) for t in kept] == [whole.to_bytes([t]) for t in kept]
    fast = fast_encoder(cut)
    for text in NAUGHTY:
        ids = cut.encode(text)
        read = whole.normalised(text.encode())
        assert cut.to_bytes(ids) == read
        assert max(ids, default=0) < 400
        assert cut.end_of_text not in ids
        if fast is not None and not fast.may_differ(read) and "\0" not in text:
            assert fast.encode(read).tolist() == ids


def test_gpt2_cut_is_a_tokenizer_of_ours(tmp_path):
    gpt2 = gpt2_tokenizer()
    cut = cut_byte_pairs(BytePairs(gpt2.name, gpt2.pattern, gpt2.ranks), 1000, "cut")
    assert (cut.additions, cut.n_vocab, cut.end_of_text) == (None, 1000, 999)


def test_train_tokenizer_cuts_and_says_what_it_costs(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "t.txt").write_text("The quick brown fox, and the data sets of the Hub. " * 40)
    options = TokenizerOptions(
        paths=(str(tmp_path / "t.txt"),),
        cut=family("qwen2", tmp_path / "theirs"),
        vocab_size=300,
        out=tmp_path / "cut",
    )
    train_tokenizer(options)
    assert "the first 300 of the 704 ids of theirs; end-of-text is 299" in caplog.text
    assert "bytes per token; theirs's 704 ids" in caplog.text
    assert "% tokens against it" in caplog.text
    assert named_tokenizer(tmp_path / "cut").n_vocab == 300


@pytest.mark.parametrize(
    ("n_vocab", "message"),
    [(704, "cuts nothing off .* has 704 ids"), (200, "leaves out single bytes .* at least 257")],
)
def test_a_size_that_does_not_fit_is_refused(n_vocab, message, tmp_path):
    pairs = read_any_tokenizer(family("qwen2", tmp_path))
    with pytest.raises(ValueError, match=message):
        cut_byte_pairs(pairs, n_vocab, "cut")
