"""Small models and tokenizers in both formats."""

import json
import shutil
from functools import cache
from itertools import pairwise

import pytest
import torch
import transformers

from data_prep.tokenizer import Tokenizer
from model.checkpoint import load_model, save_model
from model.config import GPTConfig
from model.gpt import GPT
from model.hf_format.convert import export_model, import_model
from storage.atomic import write_json
from storage.byte_pairs import GPT2_PATTERN, ranks_file
from storage.checkpoint_folder import write_manifest
from tests.eval_subjects import TINY_MODERN

LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False}
MODERN = {**TINY_MODERN, "initial_weights": "zero_outputs"}
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 24}
CL100K_LIKE = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"""
    r"""| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)


def published(folder, shape=None, seed=0, **settings):
    """A model as transformers saves it, with weights that all matter."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(**(shape or SMALL), **settings)
    return saved(transformers.GPT2LMHeadModel(config), folder)


def saved(model, folder):
    for name, parameter in model.named_parameters():
        if "wte" not in name:  # keeps GPT-2's deviation, so that 20 greedy tokens do not tie
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    return model


def random_nanochat(folder, width=32, heads=2, **settings):
    """A NanoChat as transformers saves it with random weights, and a tokenizer for it."""
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    config = transformers.NanoChatConfig(
        **{"vocab_size": tokenizer.n_vocab, "hidden_size": width * heads, "num_hidden_layers": 2,
           "num_attention_heads": heads, "intermediate_size": 96, "max_position_embeddings": 48,
           "rms_norm_eps": 1e-5, "pad_token_id": None, **settings}
    )  # fmt: skip
    model = saved(transformers.NanoChatForCausalLM(config), folder)
    tokenizer.save(folder)
    return model


def imported(folder, out, **options):
    import_model(str(folder), out, **options)
    return load_model(out)


def exported(checkpoint, out):
    """The export as transformers loads it, without a missing or unexpected tensor."""
    export_model(checkpoint, out)
    model, found = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


def our_checkpoint(folder, tokenizer=None, **shape):
    """A checkpoint of random weights as the trainer writes it, padding rows and biases not zero."""
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


def only(files, folder, *names):
    folder.mkdir()
    for name in ("config.json", *names):
        shutil.copy(files / name, folder)
    return folder


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
