"""Decoding on CUDA never takes cuDNN's attention. The switches of torch exist without a GPU."""

import pytest
import torch
from torch.backends import cuda

from data_prep.tokenizer import gpt2_tokenizer
from eval.sampling import decoding, kept_cache
from eval.sampling.attention_kernels import decoding_kernels
from eval.sampling.next_token import GenerateOptions
from tests.eval_subjects import generate, tiny_model

CUDA = torch.device("cuda", 0)
OPTIONS = GenerateOptions(max_tokens=3)


def allowed():
    """Which kernels of attention torch may choose: cuDNN's, and the others."""
    others = (cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled)
    return cuda.cudnn_sdp_enabled(), [enabled() for enabled in others]


def test_only_cudnn_is_left_out_and_only_inside():
    with decoding_kernels(CUDA):
        assert allowed() == (False, [True] * 3)
    assert allowed() == (True, [True] * 3)
    with decoding_kernels(torch.device("cpu")):
        assert allowed() == (True, [True] * 3)


def of_a_batch(model):
    [text] = generate(model, gpt2_tokenizer(), ["One two"], OPTIONS)
    return text


def of_typed_prompts(model):
    samples = decoding.start_samples(gpt2_tokenizer(), ["One two"], OPTIONS)
    kept_cache.TextWriter(model, OPTIONS).finish(samples[0], OPTIONS, decoding.ignore_token)
    return samples[0].to_sample().text


@pytest.mark.parametrize("write", [of_a_batch, of_typed_prompts])
def test_every_pass_of_decoding_is_inside(monkeypatch, write):
    model, seen = tiny_model().eval(), []
    plain, text = model.hidden, write(model)
    monkeypatch.setattr(model, "hidden", lambda *a, **k: seen.append(allowed()) or plain(*a, **k))
    for module in (decoding, kept_cache):
        monkeypatch.setattr(module, "decoding_kernels", lambda _: decoding_kernels(CUDA))
    assert write(model) == text
    assert seen == [(False, [True] * 3)] * 4  # the prompt, and three tokens
