"""Modern shapes as NanoChatForCausalLM: same logits, text, figures and bits."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from data_prep.dataset.shards import open_data_set
from data_prep.tokenizer import load_tokenizer
from eval.generate import main as generate
from eval.main import main as evaluate
from model.checkpoint import load_config
from model.hf_format.convert import export_model
from model.huggingface import main
from tests.damage import call
from tests.model.hf_format.models import (
    MODERN,
    altered,
    assert_same_logits,
    exported,
    imported,
    our_checkpoint,
    random_nanochat,
    small_tokenizer,
)
from tests.model.hf_format.test_nanochat_settings import FIELDS, WITHOUT_EFFECT
from tests.runs import nano_config, run_to_end
from train.command_line.parse import parse


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nanochat") / "theirs"
    random_nanochat(folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 32, "heads": 2},
        {"width": 128, "heads": 1},
        {"tie_word_embeddings": True, "final_logit_softcapping": 3.0},
        {"final_logit_softcapping": None},
    ],
)
def test_an_imported_model_has_the_logits_of_transformers(tmp_path, settings):
    theirs = random_nanochat(tmp_path / "theirs", **settings)
    ours = imported(tmp_path / "theirs", tmp_path / "ours")
    assert_same_logits(ours, theirs)
    wanted = settings.get("final_logit_softcapping", 15.0)
    assert ours.config.logit_softcap == wanted
    assert ours.config.tied == settings.get("tie_word_embeddings", False)


def test_an_import_that_is_exported_again_has_the_same_bits_and_settings(sound, tmp_path):
    imported(sound, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (sound, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for name in set(FIELDS) - WITHOUT_EFFECT:
        a, b = (
            getattr(transformers.AutoConfig.from_pretrained(f), name)
            for f in (sound, tmp_path / "out")
        )
        assert a == b, name


@pytest.mark.parametrize("way", ["out", "in"])
def test_without_the_exchanged_halves_the_logits_differ(sound, tmp_path, monkeypatch, way):
    monkeypatch.setattr("model.hf_format.weights._halves_exchanged", lambda _, __, value: value)
    if way == "out":
        ours = our_checkpoint(tmp_path / "ours", **MODERN)
        theirs = exported(tmp_path / "ours", tmp_path / "out")
    else:
        ours = imported(sound, tmp_path / "ours")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(sound).eval()
    with pytest.raises(AssertionError, match="not close"):
        assert_same_logits(ours, theirs)


def test_tensors_of_another_shape_are_refused_before_they_are_rearranged(sound, tmp_path):
    for name, value in (
        ("model.layers.0.self_attn.q_proj.weight", torch.zeros(64)),
        ("model.layers.1.self_attn.k_proj.weight", torch.zeros(63, 64)),
        ("model.layers.1.self_attn.q_norm.weight", torch.zeros(32)),
        ("model.norm.weight", torch.zeros(64)),
    ):
        folder = altered(sound, tmp_path / name)
        weights = load_file(folder / "model.safetensors") | {name: value}
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(ValueError, match=rf"(tensor|holds) {name} (is|\(and 0)"):
            imported(folder, tmp_path / "ours")


def test_an_export_with_shortcuts_is_one_sentence_and_leaves_nothing(tmp_path):
    our_checkpoint(tmp_path / "ours", **MODERN, shortcuts=True)
    words = ["export", str(tmp_path / "ours"), "--out", str(tmp_path / "out")]
    ended = call(main, words, tmp_path)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "cannot hold shortcuts=True (needs False)" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_the_card_names_the_family_and_counts_as_transformers_does(tmp_path):
    our_checkpoint(tmp_path / "ours", **MODERN)
    theirs = exported(tmp_path / "ours", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tags: [ratchet, nanochat]" in card
    assert f"| parameters | {theirs.num_parameters():,} |" in card
    assert "NanoChatForCausalLM came with transformers 5" in card


def test_transformers_gives_the_same_ids_and_decodes_them(tmp_path):
    our_checkpoint(tmp_path / "ours", **MODERN)
    export_model(tmp_path / "ours", tmp_path / "out")
    text = "the quick  brown\n\n日本 123<|endoftext|>fox"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = small_tokenizer()
    assert theirs(text)["input_ids"] == [
        *ours.encode("the quick  brown\n\n日本 123"), ours.n_vocab - 1, *ours.encode("fox"),
    ]  # fmt: skip
    written = theirs.decode(theirs(text)["input_ids"])
    assert json.dumps(written) == json.dumps(text)


@pytest.fixture(scope="module")
def starting_weights(tmp_path_factory):
    """A data set with its tokenizer, NanoChat's random weights, and the import of these."""
    folder = tmp_path_factory.mktemp("init")
    nano_config(folder)  # copies the data set
    tokenizer = folder / "data" / "tokenizer"
    theirs = random_nanochat(folder / "theirs", vocab_size=load_tokenizer(tokenizer).n_vocab)
    imported(folder / "theirs", folder / "ours", tokenizer=tokenizer)
    return folder, theirs


def test_a_run_from_an_import_may_cut_its_context_and_is_exported(starting_weights, tmp_path):
    folder, _ = starting_weights
    words = ["modern", "--data", str(folder / "data"), "--out", str(tmp_path / "run"),
             "--init", str(folder / "ours"), "--context-length=24", "--batch-tokens=96",
             "--steps=2", "--device=cpu", "--eval.every=0", "--eval.tasks-every=0",
             "--sample.every=0"]  # fmt: skip
    run = run_to_end(parse(words))
    assert run.model.config == replace(load_config(folder / "ours"), context_length=24)
    theirs = exported(tmp_path / "run" / "checkpoints" / "latest", tmp_path / "out")
    assert theirs.config.max_position_embeddings == 24
    assert_same_logits(run.model.eval(), theirs)
    before, after = (
        load_file(f / "model.safetensors") for f in (folder / "theirs", tmp_path / "out")
    )
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_an_import_is_evaluated_and_sampled_as_transformers_does(starting_weights, tmp_path):
    folder, theirs = starting_weights
    words = ["--checkpoint", str(folder / "ours"), "--device", "cpu", "--json", "-"]
    more = ["--data", str(folder / "data"), "--tasks", "val_unpadded"]
    ended = call(evaluate, [*words, *more], tmp_path)
    assert ended.code == 0, ended.err
    data, T = open_data_set(folder / "data"), 48
    windows = (data.split("val").tokens - 1) // T
    tokens = torch.from_numpy(data.split("val").read(0, windows * T + 1).astype("int64"))
    with torch.no_grad():
        logits = theirs(tokens[:-1].view(windows, T)).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[1:])
    assert json.loads(ended.out)["val_unpadded/loss"] == pytest.approx(float(wanted), rel=1e-5)

    more = ["--prompt", "the", "--temperature=0", "--max-tokens=20"]
    ended = call(generate, [*words, *more], tmp_path)
    ids = torch.tensor([data.tokenizer().encode("the")])
    text = theirs.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert json.loads(ended.out)["token_ids"] == text[0, ids.size(1) :].tolist()


def test_a_modern_model_without_a_tokenizer_is_not_assumed_to_have_gpt2s(tmp_path):
    random_nanochat(tmp_path / "theirs", vocab_size=50304)
    for name in ("gpt2.tiktoken", "meta.json"):
        (tmp_path / "theirs" / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="holds no tokenizer .* give the folder of one with --tok"):
        imported(tmp_path / "theirs", tmp_path / "ours")
