"""The fusion loss against the dense formula: values, every gradient, and what may be left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fusion_core.errors import TrainingError
from fusion_core.losses.cross_entropy import fusion_cross_entropy

N, K, V, H = 23, 5, 41, 6


def case(dtype=torch.float64, *, seed: int = 0) -> dict[str, Tensor]:
    """Rows with all entries, fewer entries, one entry, none, and without a label."""
    torch.manual_seed(seed)
    labels = torch.randint(0, V, (N,))
    labels[3] = labels[9] = -100
    token_ids = torch.stack([torch.randperm(V)[:K] for _ in range(N)]).int()
    log_probs = torch.log_softmax(2 * torch.randn(N, V, dtype=dtype), 1).gather(1, token_ids.long())
    for row, kept in ((2, 3), (4, 1), (5, 0)):
        token_ids[row, kept:] = -1
        log_probs[row, kept:] = -torch.inf
    # A gold token among the entries, and one that is the only entry.
    labels[6] = token_ids[6, 1]
    labels[4] = token_ids[4, 0]
    return {
        "hidden": torch.randn(N, H, dtype=dtype, requires_grad=True),
        "weight": torch.randn(V, H, dtype=dtype, requires_grad=True),
        "bias": torch.randn(V, dtype=dtype, requires_grad=True),
        "labels": labels,
        "token_ids": token_ids,
        "log_probs": log_probs,
    }


def dense(
    hidden,
    weight,
    labels,
    token_ids,
    log_probs,
    *,
    lm_weight,
    bias=None,
    temperature=1.0,
    tail="renormalise",
    form="cross_entropy",
    logit_scale=1.0,
    soft_cap=None,
    normaliser=None,
):
    """The formula row by row over the whole vocabulary, with autograd's own gradients."""
    logits = logit_scale * (hidden @ weight.T + (0 if bias is None else bias))
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    model = torch.log_softmax(logits, 1)
    lm, fusion, count = torch.zeros(()), torch.zeros(()), 0
    for row, label in enumerate(labels.tolist()):
        if label == -100:
            continue
        count += 1
        lm = lm - model[row, label]
        ids = token_ids[row][token_ids[row] >= 0].long()
        stored = log_probs[row][token_ids[row] >= 0]
        if not len(ids):
            fusion = fusion - model[row, label]
            continue
        inside = model[row, ids]
        if tail == "bucket":
            rest = torch.ones(len(model[row]), dtype=torch.bool)
            rest[ids] = False
            inside = torch.cat([inside, model[row, rest].logsumexp(0)[None]])
            stored = torch.cat([stored, torch.log1p(-stored.exp().sum())[None]])
        shares = stored.exp() if tail == "weights" else torch.softmax(stored / temperature, 0)
        fusion = fusion - (shares * inside).sum()
        if form == "kl":
            fusion = fusion - torch.special.entr(shares).sum()
    count = max(count, 1) if normaliser is None else normaliser
    return (lm_weight * lm + (1 - lm_weight) * fusion) / count, lm / count, fusion / count


SETTINGS = [
    {},
    {"lm_weight": 1.0},
    {"lm_weight": 0.0},
    {"temperature": 2.5},
    {"logit_scale": 0.3},
    {"soft_cap": 2.0, "logit_scale": 1.7},
    {"form": "kl"},
    {"normaliser": 100.0},
    {"tail": "bucket"},
    {"tail": "bucket", "temperature": 0.7, "soft_cap": 3.0, "lm_weight": 0.0},
    {"tail": "bucket", "form": "kl"},
    {"tail": "weights"},
    {"tail": "weights", "lm_weight": 0.0, "logit_scale": 2.0},
]


def compare(inputs: dict[str, Tensor], settings: dict, chunk_size: int, tolerance: float, **options) -> None:
    settings = {"lm_weight": 0.7, **settings}
    loss = fusion_cross_entropy(**inputs, **settings, chunk_size=chunk_size, **options)
    expected = dense(**inputs, **settings)
    leaves = [inputs[name] for name in ("hidden", "weight", "bias") if inputs.get(name) is not None]
    found = [loss.loss, loss.lm_loss, loss.fusion_loss, *torch.autograd.grad(loss.loss, leaves)]
    wanted = [*expected, *torch.autograd.grad(expected[0], leaves)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("chunk_size", [1, 7, 256])
def test_equals_the_dense_formula(settings, chunk_size):
    compare(case(torch.float64), settings, chunk_size, 1e-12)
    compare(case(torch.float32), settings, chunk_size, 1e-5)


def test_equals_the_dense_formula_without_bias():
    compare(case() | {"bias": None}, {}, 7, 1e-12)


@pytest.mark.parametrize("tail", ["renormalise", "bucket", "weights"])
def test_gradcheck(tail):
    inputs = case()
    few = {name: inputs[name][:7].detach() for name in ("labels", "token_ids", "log_probs")}
    leaves = [
        inputs[name].detach()[:rows].requires_grad_() for name, rows in (("hidden", 7), ("weight", V), ("bias", V))
    ]

    def loss(hidden, weight, bias):
        return fusion_cross_entropy(
            hidden, weight, **few, bias=bias, lm_weight=0.4, tail=tail, soft_cap=4.0, chunk_size=3
        ).loss

    assert torch.autograd.gradcheck(loss, leaves)


def test_worked_by_hand():
    # One position, two tokens, equal logits: both cross-entropies are log 2, the gradient at the logits 1/2 - mixture.
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [0.0]], requires_grad=True)
    loss = fusion_cross_entropy(
        hidden,
        weight,
        torch.tensor([1]),
        torch.tensor([[0, 1]]),
        torch.tensor([[math.log(0.6), math.log(0.2)]]),
        lm_weight=0.5,
    )
    loss.loss.backward()
    assert loss.lm_loss.item() == pytest.approx(math.log(2))
    assert loss.fusion_loss.item() == pytest.approx(math.log(2))
    # P = (0.75, 0.25), mixture = (0.375, 0.625).
    assert weight.grad.squeeze().tolist() == pytest.approx([0.125, -0.125])


def test_only_loss_carries_gradient_and_none_is_computed_without_need():
    inputs = case(torch.float32)
    loss = fusion_cross_entropy(**inputs, lm_weight=0.5)
    assert loss.loss.requires_grad and not loss.lm_loss.requires_grad and not loss.fusion_loss.requires_grad
    with torch.no_grad():
        frozen = fusion_cross_entropy(**inputs, lm_weight=0.5)
    assert not frozen.loss.requires_grad
    torch.testing.assert_close(frozen.loss, loss.loss.detach())


def test_frozen_embedding_leaves_the_gradient_of_hidden():
    inputs = case()
    inputs["weight"].requires_grad_(False)
    inputs["bias"].requires_grad_(False)
    fusion_cross_entropy(**inputs, lm_weight=0.5, chunk_size=4).loss.backward()
    expected = torch.autograd.grad(dense(**inputs, lm_weight=0.5)[0], inputs["hidden"])[0]
    torch.testing.assert_close(inputs["hidden"].grad, expected)
    assert inputs["weight"].grad is None


def test_all_masked_is_zero_with_zero_gradients():
    inputs = case(torch.float32) | {"labels": torch.full((N,), -100)}
    loss = fusion_cross_entropy(**inputs, lm_weight=0.5)
    loss.loss.backward()
    assert loss.loss.item() == loss.lm_loss.item() == loss.fusion_loss.item() == 0.0
    assert inputs["hidden"].grad.abs().sum() == inputs["weight"].grad.abs().sum() == 0


def test_no_position_at_all_still_gives_gradients():
    # A process without data in a collective step must take part in its backward pass.
    inputs = case(torch.float32)
    none = {name: inputs[name][:0] for name in ("labels", "token_ids", "log_probs")}
    leaves = (torch.zeros(0, H, requires_grad=True), inputs["weight"])
    loss = fusion_cross_entropy(*leaves, **none, lm_weight=0.5).loss
    gradients = torch.autograd.grad(loss, leaves)
    assert [gradient.shape for gradient in gradients] == [(0, H), (V, H)]
    assert gradients[1].abs().sum() == 0


def test_broken_hidden_states_without_label_do_not_spread():
    inputs = case(torch.float32)
    with torch.no_grad():
        inputs["hidden"][3] = torch.nan
    fusion_cross_entropy(**inputs, lm_weight=0.5).loss.backward()
    assert torch.isfinite(inputs["weight"].grad).all() and inputs["hidden"].grad[3].abs().sum() == 0


def test_parts_with_the_whole_count_add_up_under_accumulation():
    whole, parts = case(), case()
    count = float((whole["labels"] != -100).sum())
    fusion_cross_entropy(**whole, lm_weight=0.7).loss.backward()
    total = 0.0
    for rows in (slice(0, 5), slice(5, 6), slice(6, N)):
        part = {name: tensor if name in ("weight", "bias") else tensor[rows] for name, tensor in parts.items()}
        loss = fusion_cross_entropy(**part, lm_weight=0.7, normaliser=count).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(dense(**whole, lm_weight=0.7)[0].item())
    for name in ("hidden", "weight", "bias"):
        torch.testing.assert_close(parts[name].grad, whole[name].grad)


def test_scaled_loss_and_retained_graph():
    inputs = case()
    loss = fusion_cross_entropy(**inputs, lm_weight=0.7).loss
    once = torch.autograd.grad(loss, inputs["weight"], retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(3 * loss, inputs["weight"], retain_graph=True)[0], 3 * once)
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(inputs["weight"].grad, 2 * once)


def test_tied_embedding_gets_both_gradients():
    embedding = torch.randn(V, H, dtype=torch.float64, requires_grad=True)
    inputs = case()
    ids = torch.arange(N) % V

    def gradient(loss):
        chosen = {**inputs, "hidden": embedding[ids], "weight": embedding}
        value = loss(**chosen, lm_weight=0.5)
        return torch.autograd.grad(value.loss if loss is fusion_cross_entropy else value[0], embedding)[0]

    torch.testing.assert_close(gradient(fusion_cross_entropy), gradient(dense))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_stay_near_float32(dtype):
    exact, half = case(torch.float32), case(torch.float32)
    for name in ("hidden", "weight", "bias"):
        rounded = exact[name].detach().to(dtype)
        exact[name], half[name] = rounded.float().requires_grad_(), rounded.requires_grad_()
    exact_loss = fusion_cross_entropy(**exact, lm_weight=0.7)
    loss = fusion_cross_entropy(**half, lm_weight=0.7, chunk_size=5)
    assert loss.loss.dtype == torch.float32
    torch.testing.assert_close(loss.loss, exact_loss.loss, rtol=1e-2, atol=1e-2)
    exact_loss.loss.backward()
    loss.loss.backward()
    for name in ("hidden", "weight", "bias"):
        assert half[name].grad.dtype == dtype
        error = (half[name].grad.float() - exact[name].grad).norm() / exact[name].grad.norm()
        assert error < 2e-2


def test_weight_gradient_is_summed_in_float32_under_autocast():
    # 512 chunks that each add the same small gradient: a bf16 sum would stop growing at 256 times the addend.
    rows = 512
    hidden = torch.ones(rows, 1)
    weight = torch.zeros(2, 1, requires_grad=True)
    nothing = torch.zeros(rows, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fusion_cross_entropy(
            hidden, weight, torch.ones(rows, dtype=torch.int64), nothing.int(), nothing, lm_weight=1.0, chunk_size=1
        ).loss
    loss.backward()
    assert weight.grad.squeeze().tolist() == pytest.approx([0.5, -0.5])


def test_compiles_as_one_graph():
    inputs = case(torch.float32)

    def loss(hidden, weight):
        rest = {name: inputs[name] for name in ("labels", "token_ids", "log_probs")}
        return 2 * fusion_cross_entropy(hidden * 1.5, weight, **rest, lm_weight=0.7).loss

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    leaves = inputs["hidden"], inputs["weight"]
    found, wanted = compiled(*leaves), loss(*leaves)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_importance_weights_are_unbiased():
    # Tokens drawn by probability, weighted count / draws: the mean gradient is that of the whole distribution.
    torch.manual_seed(1)
    p = torch.softmax(torch.randn(V, dtype=torch.float64), 0)
    hidden, weight = torch.randn(1, H, dtype=torch.float64), torch.randn(V, H, dtype=torch.float64)
    label = torch.tensor([0])

    def gradient(token_ids, log_probs):
        rows = len(token_ids)
        leaf = hidden.expand(rows, H).clone().requires_grad_()
        loss = fusion_cross_entropy(
            leaf, weight, label.expand(rows), token_ids, log_probs, lm_weight=0.0, tail="weights"
        )
        return torch.autograd.grad(loss.loss, leaf)[0].sum(0)

    counts = torch.stack([torch.bincount(torch.multinomial(p, 8, True), minlength=V) for _ in range(6000)])
    values, ids = counts.topk(8)
    ids = torch.where(values > 0, ids, -1)
    sampled = gradient(ids, (values / 8.0).double().log())
    whole = gradient(torch.arange(V)[None], p.log()[None])
    assert (sampled - whole).norm() < 0.05 * whole.norm()


def test_nothing_outside_the_entries():
    # Every token is an entry: the bucket is empty on both sides.
    torch.manual_seed(2)
    hidden = torch.randn(3, H, requires_grad=True)
    weight = torch.randn(4, H)
    token_ids = torch.arange(4).expand(3, 4)
    log_probs = torch.log_softmax(torch.randn(3, 4), 1)
    losses = [
        fusion_cross_entropy(hidden, weight, torch.tensor([0, 1, 2]), token_ids, log_probs, lm_weight=0.2, tail=tail)
        for tail in ("bucket", "renormalise")
    ]
    torch.testing.assert_close(losses[0].loss, losses[1].loss, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(loss.loss, hidden)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": torch.zeros(N + 1, dtype=torch.int64)}, r"labels \[24\]"),
        ({"log_probs": torch.zeros(N, K + 1)}, r"log_probs \[23, 6\]"),
        ({"lm_weight": 1.5}, "1.5"),
        ({"temperature": 0.0}, "temperature"),
        ({"tail": "weights", "temperature": 2.0}, "importance weights"),
    ],
)
def test_wrong_inputs_are_named(change, named):
    with pytest.raises(TrainingError, match=named):
        fusion_cross_entropy(**(case(torch.float32) | {"lm_weight": 0.5} | change))
