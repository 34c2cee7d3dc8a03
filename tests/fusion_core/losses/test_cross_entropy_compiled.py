"""The compiled chunk computes what the plain one does, alone and in a compiled model, and is left out where it must."""

from __future__ import annotations

import pytest
import torch

from fusion_core.losses.chunks import compiled_chunk
from fusion_core.losses.cross_entropy import fusion_cross_entropy
from tests.fusion_core.losses.test_cross_entropy import SETTINGS, K, case, compare, dense

GPU = pytest.mark.gpu
# Inductor's first compilation builds C++; each setting after it takes seconds.
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def forget_compilations():
    torch.compiler.reset()
    compiled_chunk.cache_clear()
    yield
    torch.compiler.reset()
    compiled_chunk.cache_clear()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.filterwarnings("error:The fusion loss runs without compilation")
@pytest.mark.parametrize(
    "settings", [SETTINGS[0], *(pytest.param(settings, marks=SLOW) for settings in SETTINGS[1:])], ids=str
)
def test_compiled_chunks_equal_the_dense_formula(settings):
    before = graphs()
    # The last chunk has another length than the others, and so has the next batch.
    compare(case(torch.float32), settings, 8, 1e-5, compiled=True)
    compare(case(torch.float32, seed=1), settings, 9, 1e-5, compiled=True)
    assert 1 <= graphs() - before <= 2


@SLOW
@pytest.mark.filterwarnings("error:The fusion loss runs without compilation")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_compiled_chunks_in_other_precisions(dtype):
    inputs = case(torch.float64 if dtype == torch.float64 else torch.float32)
    for name in ("hidden", "weight", "bias"):
        inputs[name] = inputs[name].detach().to(dtype).requires_grad_()
    losses = [fusion_cross_entropy(**inputs, lm_weight=0.7, chunk_size=6, compiled=way) for way in (True, False)]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(losses[0].loss, losses[1].loss, rtol=tolerance, atol=tolerance)
    leaves = [inputs[name] for name in ("hidden", "weight", "bias")]
    pairs = zip(*(torch.autograd.grad(loss.loss, leaves) for loss in losses), strict=True)
    for one, other in pairs:
        assert one.dtype == dtype
        # Beyond float64 both round at the same places.
        assert (one.double() - other.double()).norm() <= max(tolerance, torch.finfo(dtype).eps) * other.double().norm()


@SLOW
@pytest.mark.parametrize("inner", [True, False])
def test_right_inside_a_compiled_model(inner):
    inputs = case(torch.float32)
    rest = {name: inputs[name] for name in ("labels", "token_ids", "log_probs", "bias")}

    def model(hidden, weight):
        return 2 * fusion_cross_entropy(torch.tanh(hidden), weight, **rest, lm_weight=0.7, compiled=inner).loss

    leaves = inputs["hidden"], inputs["weight"]
    before = graphs()
    found = torch.compile(model, fullgraph=True)(*leaves)
    # The model, and the chunk that it calls.
    assert graphs() - before == 1 + inner
    wanted = 2 * dense(torch.tanh(leaves[0]), leaves[1], **rest, lm_weight=0.7)[0]
    torch.testing.assert_close(found, wanted)
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("error", [torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit])
def test_where_nothing_can_be_compiled_the_plain_lines_run(monkeypatch, error):
    calls = []

    def broken(function, **options):
        def call(*arguments):
            calls.append(1)
            raise error("no working C++ compiler\nfound anywhere")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match=r"runs without compilation, which failed: no working C\+\+ compiler$"):
        compare(case(torch.float32), {}, 4, 1e-5, compiled=True)
    assert len(calls) == 1


def test_a_processor_compiles_only_when_told(monkeypatch):
    monkeypatch.setattr("fusion_core.losses.cross_entropy.compiled_chunk", None)
    fusion_cross_entropy(**case(torch.float32), lm_weight=0.5)
    with pytest.raises(TypeError):
        fusion_cross_entropy(**case(torch.float32), lm_weight=0.5, compiled=True)


@GPU
@pytest.mark.filterwarnings("error:The fusion loss runs without compilation")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("compiled", [None, False])
def test_cuda_equals_the_dense_formula(settings, compiled):
    def moved(seed):
        return {name: part.detach().cuda() for name, part in case(torch.float32, seed=seed).items()}

    for seed in (0, 1):
        inputs = moved(seed)
        for name in ("hidden", "weight", "bias"):
            inputs[name].requires_grad_()
        on_cpu = {name: part.detach().cpu().requires_grad_(part.requires_grad) for name, part in inputs.items()}
        chosen = {"lm_weight": 0.7, **settings}
        loss = fusion_cross_entropy(**inputs, **chosen, chunk_size=8, compiled=compiled).loss
        wanted = dense(**on_cpu, **chosen)[0]
        torch.testing.assert_close(loss.cpu(), wanted.float(), rtol=1e-4, atol=1e-5)
        leaves = ("hidden", "weight", "bias")
        found = torch.autograd.grad(loss, [inputs[name] for name in leaves])
        expected = torch.autograd.grad(wanted, [on_cpu[name] for name in leaves])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)


@GPU
def test_cuda_holds_no_logits_of_all_positions():
    rows, vocabulary, hidden_size = 4096, 50_000, 64
    torch.manual_seed(0)
    hidden = torch.randn(rows, hidden_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, hidden_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, vocabulary, (rows,), device="cuda")
    token_ids = torch.stack([torch.randperm(vocabulary, device="cuda")[:K] for _ in range(16)]).repeat(rows // 16, 1)
    log_probs = torch.log_softmax(torch.randn(rows, K, device="cuda"), 1)

    def step():
        fusion_cross_entropy(hidden, weight, labels, token_ids, log_probs, lm_weight=0.5).loss.backward()
        hidden.grad = weight.grad = None

    step()
    torch.cuda.reset_peak_memory_stats()
    rest = torch.cuda.memory_allocated()
    step()
    assert torch.cuda.max_memory_allocated() - rest < 0.5 * rows * vocabulary * 2
