"""Models come in and go out: same logits, same text, same bits."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.tokenizer import load_tokenizer
from eval.subject import EvalOptions, load_subject, with_checkpoint_defaults
from model.checkpoint import load_model
from model.hf_format.convert import export_model, import_model
from storage.checkpoint_folder import verify_checkpoint, write_manifest
from tests.data_sets import tiny_data_set
from tests.eval_subjects import ALONE, tiny_checkpoint
from tests.model.hf_format.models import (
    CL100K_LIKE,
    LLAMA,
    MODERN,
    SMALL,
    assert_same_logits,
    exported,
    greedy,
    imported,
    our_checkpoint,
    published,
    small_tokenizer,
)
from tests.runs import alone, tiny_config
from train.preflight.inputs import check_inputs

SHAPES = [{}, {"tied": False}, LLAMA, LLAMA | {"tied": False}, MODERN]
SHAPES += [MODERN | {"tied": True, "logit_softcap": None}, MODERN | {"initial_weights": "gpt2"}]
SHAPES += [LLAMA | {"initial_weights": "zero_outputs"}]


@pytest.mark.parametrize(
    "shape",
    [
        {"n_layer": 1, "n_head": 1, "n_embd": 16, "n_positions": 8},
        {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 24, "n_inner": 40},
        {**SMALL, "tie_word_embeddings": False},
    ],
)
def test_an_imported_model_has_the_logits_of_transformers(tmp_path, shape):
    theirs = published(tmp_path / "theirs", shape)
    assert_same_logits(imported(tmp_path / "theirs", tmp_path / "ours"), theirs)


def test_an_import_serves_evaluation_and_the_start_of_training(tmp_path):
    published(tmp_path / "theirs", {**SMALL, "n_embd": 16, "n_positions": 16})
    imported(tmp_path / "theirs", tmp_path / "ours")
    verify_checkpoint(tmp_path / "ours")
    subject = load_subject(tmp_path / "ours", ALONE)
    assert subject.tokenizer.name == "gpt2"
    assert with_checkpoint_defaults(tmp_path / "ours", EvalOptions()).data == ()
    data = tiny_data_set(tmp_path / "data").folder
    config = tiny_config(data, tmp_path / "run", init=tmp_path / "ours")
    assert check_inputs(config, alone()).steps == 8


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ({}, "GPT2LMHeadModel"),
        ({"tied": False, "mlp_width": 40}, "GPT2LMHeadModel"),
        ({"bias": False}, "GPT2LMHeadModel"),
        (LLAMA | {"tied": False}, "LlamaForCausalLM"),
        (LLAMA | {"bias": True, "mlp_width": 40}, "LlamaForCausalLM"),
        (MODERN | {"n_embd": 64}, "NanoChatForCausalLM"),  # heads of 32
        (MODERN | {"n_embd": 256, "n_layer": 1}, "NanoChatForCausalLM"),  # heads of 128
        (MODERN | {"tied": True, "mlp_width": 40}, "NanoChatForCausalLM"),
        (MODERN | {"logit_softcap": 2}, "NanoChatForCausalLM"),
        (MODERN | {"logit_softcap": None}, "NanoChatForCausalLM"),
    ],
)
def test_transformers_loads_an_export_with_the_same_logits_and_text(tmp_path, shape, name):
    ours = our_checkpoint(tmp_path / "ours", **shape)
    theirs = exported(tmp_path / "ours", tmp_path / "out")
    assert type(theirs).__name__ == name
    assert_same_logits(ours, theirs)
    prompt = torch.tensor([[64, 268, 86]])
    text = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert text[0].tolist() == greedy(ours, [64, 268, 86])


@pytest.mark.parametrize("shape", SHAPES)
def test_an_export_that_is_imported_again_has_the_same_bits(tmp_path, shape):
    our_checkpoint(tmp_path / "ours", **shape)
    export_model(tmp_path / "ours", tmp_path / "out")
    again = imported(tmp_path / "out", tmp_path / "again")
    ours = load_model(tmp_path / "ours")
    assert again.config == ours.config
    for name, value in ours.state_dict().items():
        padded = name in ("wte.weight", "lm_head.weight")
        rows = ours.config.vocab_size if padded else len(value)
        assert torch.equal(again.state_dict()[name][:rows], value[:rows])
    tokenizers = [load_tokenizer(tmp_path / f / "tokenizer") for f in ("ours", "again")]
    assert tokenizers[0].ranks_sha256 == tokenizers[1].ranks_sha256


def test_an_import_that_is_exported_again_has_the_same_bits(tmp_path):
    published(tmp_path / "theirs")
    imported(tmp_path / "theirs", tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "out")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("theirs", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_given_tokenizer_comes_before_the_models_own(tmp_path):
    ours = small_tokenizer(CL100K_LIKE)
    ours.save(tmp_path / "tokenizer")
    published(tmp_path / "theirs", vocab_size=ours.n_vocab)
    imported(tmp_path / "theirs", tmp_path / "ours", tokenizer=tmp_path / "tokenizer")
    assert load_subject(tmp_path / "ours", ALONE).tokenizer.ranks_sha256 == ours.ranks_sha256


def test_a_tokenizer_of_another_size_is_refused(sound, tmp_path):
    small_tokenizer().save(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="ids and the model vocab_size=50257"):
        imported(sound, tmp_path / "ours", tokenizer=tmp_path / "tokenizer")


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    folder = tiny_checkpoint(tmp_path / "ours")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    with pytest.raises(ValueError, match=r"model\.safetensors differs from its digest"):
        export_model(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_not_exported(tmp_path, value):
    our_checkpoint(tmp_path / "ours")
    path = tmp_path / "ours" / "model.safetensors"
    weights = load_file(path)
    weights["h.0.ln_1.weight"][3] = value
    save_file(weights, path)
    write_manifest(tmp_path / "ours")
    with pytest.raises(
        ValueError, match=r"1 of \d+ weights in transformer\.h\.0\.ln_1\.weight are"
    ):
        export_model(tmp_path / "ours", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_ever_overwritten(sound, tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        imported(sound, tmp_path / "ours")


@pytest.mark.parametrize("last_step", ["write_manifest", "write_text"])
def test_an_incomplete_folder_never_appears(sound, tmp_path, monkeypatch, last_step):
    imported(sound, tmp_path / "ours")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(f"model.hf_format.convert.{last_step}", full)
    with pytest.raises(OSError, match="No space left"):
        if last_step == "write_manifest":
            import_model(str(sound), tmp_path / "out")
        else:
            export_model(tmp_path / "ours", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
