"""The fused head and loss against float64, on the CPU and on a GPU."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from model.config import GPTConfig
from model.fused_loss import head_and_loss as operator
from model.fused_loss.head_and_loss import fuses_loss, head_and_loss, softmax_minus_one_hot_
from model.gpt import GPT
from model.loss import NextTokenLoss
from model.precision import autocast

CPU = torch.device("cpu")
ROWS, WIDTH, VOCABULARY = 37, 24, 300
SHAPE = GPTConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=200)


KINDS = {"tied": {}, "untied": {"tied": False}, "soft-cap": {"logit_softcap": 0.5}}


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    model = GPT(replace(SHAPE, **KINDS[request.param]))
    model.initialise(3)
    return model


@pytest.fixture
def chunks_of_ten(monkeypatch):
    monkeypatch.setattr(operator, "CPU_CHUNK_BYTES", 10 * VOCABULARY * 4)
    monkeypatch.setattr(operator, "CACHED_BYTES", 9 * VOCABULARY * 4)


def inputs(seed=0):
    torch.manual_seed(seed)
    states, matrix = torch.randn(ROWS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    return states, matrix, torch.randint(0, VOCABULARY, (ROWS,))


def gradients(loss_of, states, matrix, targets):
    """Loss and both gradients of a quarter of it, as a micro-step takes them."""
    states, matrix = states.clone().requires_grad_(), matrix.clone().requires_grad_()
    loss = loss_of(states, matrix, targets)
    (loss / 4).backward()
    return loss.detach(), states.grad, matrix.grad


def plain(states, matrix, targets):
    return F.cross_entropy(F.linear(states, matrix), targets)


def assert_near(found, reference, rel):
    for own, other in zip(found, reference, strict=True):
        gap = (own.double() - other).abs().max() / other.abs().max()
        assert gap < rel, gap


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_loss_and_gradients_are_those_of_float64(chunks_of_ten, dtype, rel):
    states, matrix, targets = inputs()
    reference = gradients(plain, states.double(), matrix.double(), targets)
    with autocast(dtype, CPU):
        found = gradients(head_and_loss, states, matrix, targets)
    assert [part.dtype for part in found] == [torch.float32] * 3
    assert_near(found, reference, rel)


def test_bfloat16_is_no_further_from_float64_than_the_plain_path(chunks_of_ten):
    states, matrix, targets = inputs(1)
    reference = gradients(plain, states.double(), matrix.double(), targets)
    with autocast(torch.bfloat16, CPU):
        fused = gradients(head_and_loss, states, matrix, targets)
        usual = gradients(plain, states, matrix, targets)
    for own, other, exact in zip(fused, usual, reference, strict=True):
        assert (own - exact).norm() <= 1.1 * (other - exact).norm()


@pytest.mark.parametrize(("rows", "chunk"), [(2048, 512), (2085, 417), (521, 521), (1, 1)])
def test_chunks_are_as_large_as_allowed_and_alike(rows, chunk):
    row_bytes = 50304 * 4
    assert operator.equal_chunk(rows, row_bytes) == chunk
    assert chunk * row_bytes <= operator.CPU_CHUNK_BYTES


def test_chunks_change_the_sums_only_by_rounding(monkeypatch):
    in_one_chunk = gradients(head_and_loss, *inputs())
    monkeypatch.setattr(operator, "CPU_CHUNK_BYTES", 1)  # one row at a time
    assert_near(gradients(head_and_loss, *inputs()), [part.double() for part in in_one_chunk], 1e-6)


def capped(cap):
    """Plain and fused loss of soft-capped logits."""

    def plain_capped(states, matrix, targets):
        logits = F.linear(states, matrix)
        logits = logits.float() if torch.is_autocast_enabled(logits.device.type) else logits
        return F.cross_entropy(cap * torch.tanh(logits / cap), targets)

    return plain_capped, lambda *given: head_and_loss(*given, cap)


@pytest.mark.parametrize("cap", [2.0, 15])
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2)])
def test_a_soft_cap_gives_loss_and_gradients_of_float64(chunks_of_ten, cap, dtype, rel):
    states, matrix, targets = inputs()
    usual, fused = capped(cap)
    exact = gradients(usual, states.double(), matrix.double(), targets)
    with autocast(dtype, CPU):
        for loss_of in (usual, fused):
            assert_near(gradients(loss_of, states, matrix, targets), exact, rel)


@pytest.mark.parametrize("scale", [300.0, 1e4])
def test_soft_capped_logits_far_beyond_the_cap_give_a_finite_loss_and_no_nan(scale):
    states, matrix, targets = inputs()
    states = states * scale
    usual, fused = capped(15.0)
    own, other = (gradients(loss_of, states, matrix, targets) for loss_of in (fused, usual))
    for one, two in zip(own, other, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * two.abs().max().item())
    assert own[0] > 10  # nearly all of this loss is out of reach of the gradient


def test_huge_logits_neither_overflow_nor_lose_the_loss():
    logits = torch.tensor([[300.0, -300.0, 0.0], [-1e4, -1e4, -1e4]])
    targets = torch.tensor([1, 2])
    exact = F.cross_entropy(logits.double(), targets, reduction="none")
    losses = softmax_minus_one_hot_(logits, targets)
    torch.testing.assert_close(losses.double(), exact)
    torch.testing.assert_close(logits[0], torch.tensor([1.0, -1.0, 0.0]))


def test_the_model_gets_the_same_gradients_as_on_the_plain_path(model):
    ids = torch.randint(0, 200, (3, 17))
    found = {}
    for fused in (False, True):
        model.zero_grad(set_to_none=True)
        NextTokenLoss(model, fused)(ids[:, :-1], ids[:, 1:]).backward()
        found[fused] = {name: p.grad.clone() for name, p in model.named_parameters()}
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name], rtol=1e-4, atol=1e-7)


def test_all_padded_logits_count_in_the_loss(model):
    ids = torch.randint(0, 200, (2, 16))
    assert len(model.head_weight) == 256
    logits = model(ids).double()
    expected = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    assert NextTokenLoss(model, fused=True)(ids, ids).item() == pytest.approx(expected.item())


def test_logits_that_are_not_finite_give_a_loss_that_is_not_finite():
    states, matrix, targets = inputs()
    states[5, 0] = float("nan")
    assert not torch.isfinite(head_and_loss(states, matrix, targets))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by its own compiler
@pytest.mark.parametrize("loss_of", [head_and_loss, capped(15)[1]], ids=["plain", "soft-cap"])
def test_it_compiles_without_graph_breaks_and_gives_the_same(loss_of):
    compiled = torch.compile(loss_of, backend="aot_eager", dynamic=False, fullgraph=True)
    eager = [part.double() for part in gradients(loss_of, *inputs())]
    assert_near(gradients(compiled, *inputs()), eager, 1e-6)


def test_a_bfloat16_residual_stream_stays_near_the_plain_loss(model):
    ids = torch.randint(0, 200, (4, 16))
    with autocast(torch.bfloat16, CPU):
        assert model.hidden(ids, residual=torch.bfloat16).dtype == torch.bfloat16
        narrow = NextTokenLoss(model, residual=torch.bfloat16)(ids, ids).item()
    assert narrow == pytest.approx(NextTokenLoss(model)(ids, ids).item(), rel=1e-2)


def test_the_fused_path_is_taken_where_it_was_measured_or_asked_for(monkeypatch):
    cuda = torch.device("cuda")
    assert fuses_loss("auto", CPU)
    assert not fuses_loss("off", CPU)
    assert not fuses_loss("auto", cuda)
    monkeypatch.setattr(operator, "_FASTER_ON", ("cpu", "cuda"))  # the default once it is measured
    assert fuses_loss("auto", cuda) == operator.HAS_TRITON
    monkeypatch.setattr(operator, "HAS_TRITON", False)
    assert not fuses_loss("auto", cuda)
    with pytest.raises(ValueError, match="fused_loss=on needs Triton"):
        fuses_loss("on", cuda)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("cap", [None, 15.0])
def test_on_the_gpu_it_is_no_further_from_float64_than_the_plain_path(compiled, cap):
    usual_loss, own_loss = (plain, head_and_loss) if cap is None else capped(cap)
    cuda = torch.device("cuda")
    torch.manual_seed(0)
    states, matrix = torch.randn(512, 768, device=cuda), 0.02 * torch.randn(50304, 768, device=cuda)
    targets = torch.randint(0, 50304, (512,), device=cuda)
    reference = gradients(usual_loss, states.double(), matrix.double(), targets)
    fused = torch.compile(own_loss, dynamic=False) if compiled else own_loss
    with autocast(torch.bfloat16, cuda):
        found = gradients(fused, states, matrix, targets)
        usual = gradients(usual_loss, states, matrix, targets)
    for own, other, exact in zip(found, usual, reference, strict=True):
        assert (own - exact).norm() <= 1.1 * (other - exact).norm() + 1e-6
