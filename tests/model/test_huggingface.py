"""Models from transformers come in and ours go out: same logits, same text, same ids."""

import json
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from data_prep.tokenizer import Tokenizer, gpt2_tokenizer, load_tokenizer
from eval.subject import EvalOptions, load_subject, with_checkpoint_defaults
from model.checkpoint import load_model, save_model
from model.config import GPTConfig
from model.gpt import GPT
from model.hf_format.card import weights_name
from model.hf_format.config import family_of
from model.hf_format.convert import export_model, import_model
from model.hf_format.tokenizer_files import byte_characters, read_hf_tokenizer, write_hf_tokenizer
from storage.atomic import read_json, write_json
from storage.byte_pairs import GPT2_PATTERN, BytePairs, ranks_file, read_byte_pairs
from storage.checkpoint_folder import verify_checkpoint, write_manifest
from tests.data_sets import tiny_data_set
from tests.eval_subjects import ALONE, tiny_checkpoint
from tests.fake_hub import FakeHub
from tests.launching import REPO, python
from tests.runs import alone, tiny_config
from train.preflight.inputs import check_inputs

SHARED_CACHE = Path(__file__).parents[3] / "shared" / "data" / "tiktoken_cache"
LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False}
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 24}
CL100K_LIKE = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"""
    r"""| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)
TRICKY = [
    "",
    " ",
    "Hello  world   \n\n\n  x",
    "It's we'll THEY'VE 'S 'tis",
    "naïve café — “quotes” ☃ 日本語テキスト مرحبا ไทย",
    "🦜👩‍👩‍👧‍👦🇮🇸 e\u0301\u200b\u00a0\u3000x\ufeff",
    "def f(x):\n\treturn {'a': x**2}  # 3.14159 0x1F\r\n",
    "12345678 ½²³ ⅷ",
    "aaaaaaaaaaaaaaaaaaaaaaa -------- \t\t\t \x00\x7f\x85",
]


def published(folder, shape=None, seed=0, **settings):
    """A model as transformers saves it, with weights that all count."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(**(shape or SMALL), **settings)
    return saved(transformers.GPT2LMHeadModel(config), folder)


def saved(model, folder):
    for name, parameter in model.named_parameters():
        if "wte" not in name:  # GPT-2's own deviation there, so that 20 greedy tokens are no tie
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    return model


def brought_in(folder, out, **options):
    import_model(str(folder), out, **options)
    return load_model(out)


def sent_out(checkpoint, out):
    """The export as transformers loads it, known to lack nothing and to have nothing over."""
    export_model(checkpoint, out)
    model, found = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


def our_checkpoint(folder, tokenizer=None, **shape):
    """A checkpoint of random weights as the trainer lays it out, dead rows and biases not zero."""
    tokenizer = tokenizer or small_tokenizer()
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 48, **shape}
    config = GPTConfig(vocab_size=tokenizer.n_vocab, **shape)
    model = GPT(config)
    model.initialise(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    folder.mkdir(parents=True)
    save_model(folder, model)
    tokenizer.save(folder / "tokenizer")
    write_manifest(folder)
    return model.eval()


def assert_same_logits(ours, theirs):
    vocabulary, T = ours.config.vocab_size, ours.config.context_length
    ids = torch.randint(vocabulary, (2, T), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        found = ours(ids)[..., :vocabulary], theirs(ids).logits
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def greedy(model, ids, count=20):
    """Continue `ids` by our network, one argmax after the other."""
    with torch.no_grad():
        for _ in range(count):
            logits = model.masked_logits(model.hidden(torch.tensor([ids]))[:, -1])
            ids = [*ids, int(logits.argmax())]
    return ids


@cache
def small_tokenizer(pattern=GPT2_PATTERN, vocabulary=400):
    """Byte pairs learnt from a few words: each new token joins the commonest neighbours."""
    words = [
        list(word) for word in ["the quick brown fox", "aaaa", "  then", "\n\n", "日本", "123"]
    ]
    words = [[bytes([b]) for b in "".join(word).encode()] for word in words]
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocabulary:
        pairs = {a + b for word in words for a, b in pairwise(word)}
        new = min(pairs - set(tokens), key=lambda token: (len(token), token), default=None)
        if new is None:
            break
        tokens.append(new)
        words = [joined(word, new) for word in words]
    return Tokenizer("small", pattern, ranks_file(tokens))


def joined(word, token):
    parts: list[bytes] = []
    for part in word:
        if parts and parts[-1] + part == token:
            parts[-1] = token
        else:
            parts.append(part)
    return parts


# --- weights in --------------------------------------------------------------------------------


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
    assert_same_logits(brought_in(tmp_path / "theirs", tmp_path / "ours"), theirs)


def test_openais_own_file_without_prefix_and_with_buffers_is_the_same_model(tmp_path):
    published(tmp_path / "theirs")
    wanted = brought_in(tmp_path / "theirs", tmp_path / "a").state_dict()
    path = tmp_path / "theirs" / "model.safetensors"
    bare = {name.removeprefix("transformer."): value for name, value in load_file(path).items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 24, 24), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(bare, path)
    found = brought_in(tmp_path / "theirs", tmp_path / "b").state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_half_precision_weights_are_widened_exactly(tmp_path):
    theirs = published(tmp_path / "theirs")
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    assert_same_logits(brought_in(tmp_path / "theirs", tmp_path / "ours"), theirs.float())


def test_weights_in_several_files_are_read_by_their_index(tmp_path):
    theirs = published(tmp_path / "theirs")
    shutil.rmtree(tmp_path / "theirs")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    assert_same_logits(brought_in(tmp_path / "theirs", tmp_path / "ours"), theirs)


def test_dead_ids_of_an_import_stay_improbable_where_all_logits_are_negative(tmp_path):
    theirs = published(tmp_path / "theirs")
    with torch.no_grad():  # OpenAI's logits lie around -40 whatever the text: zeros would win
        theirs.transformer.ln_f.bias.add_(10)
        theirs.transformer.wte.weight.sub_(0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = brought_in(tmp_path / "theirs", tmp_path / "ours")
    with torch.no_grad():
        logits = ours(torch.randint(50257, (1, 24)))
    assert logits[..., :50257].max() < -20
    assert logits.softmax(-1)[..., 50257:].sum(-1).max() < 47 / 50257


def test_an_import_serves_evaluation_and_the_start_of_training(tmp_path):
    published(tmp_path / "theirs", {**SMALL, "n_embd": 16, "n_positions": 16})
    brought_in(tmp_path / "theirs", tmp_path / "ours")
    verify_checkpoint(tmp_path / "ours")
    subject = load_subject(tmp_path / "ours", ALONE)
    assert subject.tokenizer.name == "gpt2"
    assert with_checkpoint_defaults(tmp_path / "ours", EvalOptions()).data is None
    data = tiny_data_set(tmp_path / "data").folder
    config = tiny_config(data, tmp_path / "run", init=tmp_path / "ours")
    assert check_inputs(config, alone()).steps == 8


# --- weights out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ({}, "GPT2LMHeadModel"),
        ({"tied": False, "mlp_width": 40}, "GPT2LMHeadModel"),
        ({"bias": False}, "GPT2LMHeadModel"),
        (LLAMA | {"tied": False}, "LlamaForCausalLM"),
        (LLAMA | {"bias": True, "mlp_width": 40}, "LlamaForCausalLM"),
    ],
)
def test_transformers_loads_an_export_with_the_same_logits_and_text(tmp_path, shape, name):
    ours = our_checkpoint(tmp_path / "ours", **shape)
    theirs = sent_out(tmp_path / "ours", tmp_path / "out")
    assert type(theirs).__name__ == name
    assert_same_logits(ours, theirs)
    prompt = torch.tensor([[64, 268, 86]])
    text = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert text[0].tolist() == greedy(ours, [64, 268, 86])


@pytest.mark.parametrize("shape", [{}, {"tied": False}, LLAMA, LLAMA | {"tied": False}])
def test_out_and_in_again_gives_the_same_bits(tmp_path, shape):
    our_checkpoint(tmp_path / "ours", **shape)
    export_model(tmp_path / "ours", tmp_path / "out")
    again = brought_in(tmp_path / "out", tmp_path / "again")
    ours = load_model(tmp_path / "ours")
    assert again.config == ours.config
    for name, value in ours.state_dict().items():
        alive = name in ("wte.weight", "lm_head.weight")
        rows = ours.config.vocab_size if alive else len(value)
        assert torch.equal(again.state_dict()[name][:rows], value[:rows])
    tokenizers = [load_tokenizer(tmp_path / f / "tokenizer") for f in ("ours", "again")]
    assert tokenizers[0].ranks_sha256 == tokenizers[1].ranks_sha256


def test_in_and_out_again_gives_the_same_bits(tmp_path):
    published(tmp_path / "theirs")
    brought_in(tmp_path / "theirs", tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "out")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("theirs", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_card_carries_the_runs_own_figures(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step_000500"
    our_checkpoint(folder)
    state = {"step": 500, "next_window": 4000, "context_length": 48, "seed": 1337}
    state |= {"data": "/secret/place/stories", "data_fingerprint": "abcdef" * 8}
    write_json(folder / "state.json", state)
    metrics = {"val/loss": 3.21, "hellaswag/acc_norm": 0.2955, "hellaswag/acc_norm_stderr": 0.0046}
    write_json(folder / "results.json", {"step": 500, "metrics": metrics})
    write_json(tmp_path / "run" / "config.json", {"run": {"steps": 900, "batch_tokens": 384}})
    write_manifest(folder)
    export_model(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for row in ("| tokens | 192,000 |", "| data | stories |", "| batch tokens | 384 |",
                "| val/loss | 3.2100 |", "| hellaswag/acc_norm | 0.2955 ± 0.0046 |"):  # fmt: skip
        assert row in card
    assert "secret" not in card
    assert "trained on stories, with Ratchet; exported at step 500" in card
    assert "tags: [ratchet, gpt2]" in card


@pytest.mark.parametrize(
    ("checkpoint", "named"),
    [
        ("alice/runs/first/checkpoints/step_000500", "first, step_000500"),
        ("alice/runs/first/checkpoints/latest", "first"),
        ("alice/ckpts/own", "own"),
        ("/own", "own"),
    ],
)
def test_a_card_names_weights_and_not_the_place_where_they_lie(tmp_path, checkpoint, named):
    (tmp_path / "alice/ckpts/own").mkdir(parents=True)
    assert weights_name(tmp_path / checkpoint) == named


def test_a_card_names_the_run_also_by_a_path_from_inside_it(tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    assert weights_name(Path("checkpoints/latest")) == "first"


@pytest.mark.parametrize("known", [True, False])
def test_the_card_says_whose_weights_a_run_began_with(tmp_path, known):
    folder, begin = tmp_path / "run" / "checkpoints" / "step_000008", tmp_path / "brought_in"
    our_checkpoint(folder, **LLAMA)
    write_json(folder / "state.json", {"step": 8, "data": "/secret/stories"})
    write_json(tmp_path / "run" / "config.json", {"config": {"init": str(begin)}})
    if known:
        write_json(begin / "origin.json", {"source": "openai-community/gpt2", "commit": "607a"})
    write_manifest(folder)
    export_model(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    source = "openai-community/gpt2 at commit 607a" if known else "brought_in"
    assert f"trained on stories, from the weights of {source}, with Ratchet" in card
    assert "tags: [ratchet, llama]" in card


def test_the_card_takes_the_figures_of_the_runs_watcher_for_this_step_and_these_weights(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step_000500"
    our_checkpoint(folder)
    write_json(folder / "state.json", {"step": 500})
    write_json(folder / "results.json", {"step": 500, "metrics": {"val/loss": 3.25}})
    write_manifest(folder)
    weights = read_json(folder / "MANIFEST.json")["files"]["model.safetensors"]["sha256"]
    here = {"step": 500, "tasks": "piqa", "options": "", "weights": weights}
    asked = {**here, "piqa/acc": 0.51, "options": "task_file=piqa=/secret/p.jsonl items=7"}
    rounded = {**here, "piqa/acc": 0.52, "options": "dtype=bfloat16"}
    evals = [
        {**here, "piqa/acc": 0.11, "step": 400},
        {**here, "piqa/acc": 0.22, "weights": "0" * 64},  # before the step was taken anew
        {**here, "piqa/acc": 0.62, "piqa/acc_stderr": 0.01},
        asked,
        rounded,
    ]
    text = "".join(json.dumps(line) + "\n" for line in evals) + '{"step": 500, "piq'
    (tmp_path / "run" / "evals.jsonl").write_text(text)
    export_model(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    table = (
        "| Results at step 500 | |\n| --- | ---: |\n| val/loss | 3.2500 |\n| piqa/acc | 0.6200 ± "
    )
    assert table in card
    assert "| Results at step 500 with task_file, items=7 | |" in card
    assert (
        "| Results at step 500 with dtype=bfloat16 | |\n| --- | ---: |\n| piqa/acc | 0.5200" in card
    )
    assert not any(text in card for text in ("secret", "0.1100", "0.2200"))


# --- the tokenizer -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_hf_tokenizer(folder, BytePairs("gpt2", GPT2_PATTERN, gpt2_tokenizer().ranks), 48)
    write_json(folder / "config.json", {"model_type": "gpt2"})
    return folder


def only(files, folder, *names):
    folder.mkdir()
    for name in ("config.json", *names):
        shutil.copy(files / name, folder)
    return folder


@pytest.mark.parametrize(
    "names", [("tokenizer.json", "tokenizer_config.json"), ("vocab.json", "merges.txt")]
)
def test_the_exported_tokenizer_gives_our_ids(gpt2_files, tmp_path, names):
    theirs = transformers.AutoTokenizer.from_pretrained(only(gpt2_files, tmp_path / "t", *names))
    ours = gpt2_tokenizer()
    for text in [*TRICKY, (REPO / "README.md").read_text(), (REPO / "Makefile").read_text()]:
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert (len(theirs), theirs.eos_token_id, theirs.bos_token_id) == (50257, 50256, 50256)
    assert theirs.encode("a<|endoftext|>b") == [64, 50256, 65]


def test_the_exported_tokenizer_knows_the_context_length(gpt2_files):
    theirs = transformers.AutoTokenizer.from_pretrained(gpt2_files)
    assert theirs.model_max_length == 48
    assert theirs.is_fast


def test_a_tokenizer_with_another_pattern_gives_our_ids_and_comes_back(tmp_path):
    ours = small_tokenizer(CL100K_LIKE)
    our_checkpoint(tmp_path / "ours", ours)
    sent_out(tmp_path / "ours", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in [*TRICKY, "the then fox quick brown\n\n 1234"]:
        assert theirs.encode(text) == ours.encode(text)
    brought_in(tmp_path / "out", tmp_path / "again")
    again = load_tokenizer(tmp_path / "again" / "tokenizer")
    assert (again.pattern, again.ranks_sha256) == (ours.pattern, ours.ranks_sha256)


@pytest.mark.skipif(not SHARED_CACHE.exists(), reason="OpenAI's own files are not at hand")
def test_vocabulary_and_merges_are_openais(gpt2_files):
    originals = {path.read_bytes().strip() for path in SHARED_CACHE.iterdir()}
    assert (gpt2_files / "merges.txt").read_bytes().strip() in originals
    vocabulary = json.loads((gpt2_files / "vocab.json").read_text())
    assert any(json.loads(o) == vocabulary for o in originals if o.startswith(b"{"))


def test_vocabulary_and_merges_alone_give_gpt2s_ranks(gpt2_files, tmp_path):
    found = read_hf_tokenizer(only(gpt2_files, tmp_path / "t", "vocab.json", "merges.txt"), "x")
    assert found is not None
    assert found.ranks == gpt2_tokenizer().ranks
    assert found.pattern == gpt2_tokenizer().pattern


def test_every_byte_has_its_own_printable_character():
    assert len(set(byte_characters().values())) == 256
    assert byte_characters()[ord(" ")] == "Ġ"


def test_a_given_tokenizer_comes_before_the_models_own(tmp_path):
    ours = small_tokenizer(CL100K_LIKE)
    ours.save(tmp_path / "tokenizer")
    published(tmp_path / "theirs", vocab_size=ours.n_vocab)
    brought_in(tmp_path / "theirs", tmp_path / "ours", tokenizer=tmp_path / "tokenizer")
    assert load_subject(tmp_path / "ours", ALONE).tokenizer.ranks_sha256 == ours.ranks_sha256


# --- refusals ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "theirs"
    published(folder)
    return folder


def altered(sound, folder, **changes):
    shutil.copytree(sound, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    write_json(folder / "config.json", config)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "relu"}, r"activation_function=relu \(must be gelu_new"),
        ({"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon=1e-06 \(must be 1e-05\)"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"activation_function": "silu", "scale_attn_weights": False}, "silu.*weights=False"),
        ({"model_type": "gpt_neox"}, "model_type=gpt_neox, but only gpt2 and llama"),
        ({"n_embd": "wide"}, "has a size that is no number"),
        ({"model_type": "llama"}, "has no field 'num_attention_heads'"),
        ({"n_layer": 3}, r"has no tensor transformer\.h\.2"),
        ({"n_layer": 1}, r"holds transformer\.h\.1.*and 11 others"),
        ({"n_positions": 25}, r"wpe\.weight is \(24, 32\), but config.json describes \(25, 32\)"),
        ({"vocab_size": 50258}, "holds no tokenizer"),
    ],
)
def test_what_our_network_is_not_is_refused_by_name(sound, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        brought_in(altered(sound, tmp_path / "theirs", **changes), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


LLAMA_CONFIG = {
    "model_type": "llama", "num_attention_heads": 4, "hidden_size": 32, "num_hidden_layers": 1,
    "max_position_embeddings": 16, "vocab_size": 300, "intermediate_size": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads=2"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06"),
        ({"head_dim": 16}, "head_dim=16"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_scaling=llama3"),
        ({"rope_theta": 500000.0}, r"rope_theta=500000\.0"),
        ({"attention_bias": True}, "mlp_bias=False"),
    ],
)
def test_llamas_that_our_network_is_not_are_refused_by_name(tmp_path, changes, message):
    write_json(tmp_path / "config.json", LLAMA_CONFIG | changes)
    with pytest.raises(ValueError, match=message):
        import_model(str(tmp_path), tmp_path / "ours")


def test_pickled_weights_are_refused_unread(sound, tmp_path):
    folder = altered(sound, tmp_path / "theirs")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors.*can run code.*save_pretrained"):
        brought_in(folder, tmp_path / "ours")


def test_a_cut_weight_file_is_refused(sound, tmp_path):
    path = altered(sound, tmp_path / "theirs") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cannot be read"):
        brought_in(path.parent, tmp_path / "ours")


def test_a_tokenizer_of_another_size_is_refused(sound, tmp_path):
    small_tokenizer().save(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="ids and the model vocab_size=50257"):
        brought_in(sound, tmp_path / "ours", tokenizer=tmp_path / "tokenizer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(type="Unigram"), "only byte-level BPE"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "without a normalizer"),
        (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "in another way than GPT-2"),
        (
            lambda t: t["model"]["vocab"].pop("<|endoftext|>") and t["added_tokens"].clear(),
            "the last",
        ),
        (lambda t: t["added_tokens"].append({"id": 50257, "content": "<pad>"}), "the last"),
        (lambda t: t.pop("model"), "does not have the structure of a tokenizer"),
        (lambda t: t["model"]["merges"].reverse(), "not those that its ids imply"),
    ],
)
def test_tokenizers_that_ours_is_not_are_refused(gpt2_files, tmp_path, change, message):
    whole = json.loads((gpt2_files / "tokenizer.json").read_text())
    change(whole)
    write_json(tmp_path / "tokenizer.json", whole)
    with pytest.raises(ValueError, match=message):
        read_hf_tokenizer(tmp_path, "x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"norm": "rmsnorm"},
            r"GPT2LMHeadModel cannot hold norm=rmsnorm \(needs layernorm\); Llama",
        ),
        (LLAMA | {"mlp": "gelu"}, r"LlamaForCausalLM cannot hold mlp=gelu \(needs swiglu\)"),
    ],
)
def test_shapes_that_no_class_holds_are_refused_with_the_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        family_of(GPTConfig(**fields))


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    folder = tiny_checkpoint(tmp_path / "ours")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    with pytest.raises(ValueError, match=r"model\.safetensors differs from its digest"):
        export_model(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_ranks_are_refused(tmp_path):
    gpt2_tokenizer().save(tmp_path)
    (tmp_path / "ranks.tiktoken").write_bytes(b"QQ== 0\n")
    with pytest.raises(ValueError, match="ranks must have"):
        read_byte_pairs(tmp_path)
    with pytest.raises(ValueError, match="no token for 255 of the 256 bytes"):
        BytePairs("x", ".", b"QQ== 0\n")


def test_nothing_is_ever_overwritten(sound, tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        brought_in(sound, tmp_path / "ours")


@pytest.mark.parametrize("last_step", ["write_manifest", "write_text"])
def test_a_half_written_folder_is_never_seen(sound, tmp_path, monkeypatch, last_step):
    brought_in(sound, tmp_path / "ours")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(f"model.hf_format.convert.{last_step}", full)
    with pytest.raises(OSError, match="No space left"):
        if last_step == "write_manifest":
            import_model(str(sound), tmp_path / "out")
        else:
            export_model(tmp_path / "ours", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


# --- the Hub -----------------------------------------------------------------------------------


def fetched(hub_url, home, *words):
    """Run the import in a process of its own: the Hub's library reads its address at import."""
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return python("model/huggingface.py", "import", *map(str, words), **settings)


@pytest.mark.slow
def test_a_model_comes_from_the_hub_again_if_damaged_and_later_from_the_cache(tmp_path, gpt2_files):
    folder = tmp_path / "hub" / "_models" / "openai-community" / "gpt2"
    theirs = published(folder)
    shutil.copy(gpt2_files / "vocab.json", folder)
    shutil.copy(gpt2_files / "merges.txt", folder)
    with FakeHub(tmp_path / "hub", faults=["corrupt:count=1,path=cdn"]) as hub:
        done = fetched(hub.url, tmp_path / "home", "gpt2", "--out", tmp_path / "ours")
        assert done.returncode == 0, done.stderr
        assert hub.stats()["faults"] == {"corrupt": 1}
        url = hub.url
    assert_same_logits(load_model(tmp_path / "ours"), theirs)
    commit = json.loads((tmp_path / "ours" / "origin.json").read_text())["commit"]
    words = ("gpt2", "--revision", commit, "--out", tmp_path / "again")
    assert fetched(url, tmp_path / "home", *words).returncode == 0
    gone = fetched(url, tmp_path / "home", "gpt2-xl", "--out", tmp_path / "xl")
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
    refusal = "gpt2-xl at revision=main is no local folder and cannot be downloaded from the Hub"
    assert refusal in gone.stderr
