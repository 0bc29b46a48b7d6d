"""The stacked forward and regulariser: what they compute, and how many operations they take."""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from lora2 import Lora2Config, create_lora2_optimizer
from lora2.bench.counters import counting
from lora2.tuners.lora2 import Lora2Linear
from tests.tuners.lora2.lora2_models import TARGETS, adapt, batch, cached_pairs, randomize


def narrow(layers, **settings):
    """A model with 6 adapted matrices per layer, shaped like a base model and narrow."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
    )
    defaults = {"r": 8, "k": 8, "target_r": 2, "total_step": 100, "init_std": 0.2}
    adapter = Lora2Config(target_modules=TARGETS["bert"], **{**defaults, **settings})
    return get_peft_model(BertForSequenceClassification(config), adapter).train()


def step_counts(model):
    with counting() as counts:
        model(**batch()).loss.backward()
    return counts


def regulariser_kernels(layers, k):
    """Operations of a forward and backward pass with all six terms, less those without."""
    on, off = (step_counts(narrow(layers, k=k, orth_reg_weight=weight)) for weight in (0.1, 0))
    return len(on.kernels) - len(off.kernels)


@pytest.mark.parametrize("k", [1, 8])
def test_the_regulariser_is_few_kernels_whatever_the_number_of_layers(k):
    twelve = regulariser_kernels(12, k)
    assert 0 < twelve <= 75
    assert regulariser_kernels(24, k) == twelve


def test_a_training_step_waits_for_no_value_but_those_of_the_encoder_itself():
    model = narrow(2)
    model.base_model.prepare_training(100)
    with counting() as counts:
        model(**batch()).loss.backward()
        model.base_model.update_and_allocate(1)
    assert int(model.base_model.allocator.mask.sum()) < 12 * 8
    with counting() as own, model.disable_adapter():
        model(**batch())
    assert counts.syncs == own.syncs


@pytest.mark.parametrize(("importance", "bound"), [("factored", 20), ("full", 29)])
@pytest.mark.parametrize("layers", [12, 24])
def test_the_allocator_is_few_kernels_whatever_the_number_of_layers(layers, importance, bound):
    model = narrow(layers, importance=importance)
    model.base_model.prepare_training(100)
    step_counts(model)
    with counting() as counts:
        model.base_model.update_and_allocate(1)
    assert int(model.base_model.allocator.mask.sum()) < 6 * layers * 8
    assert counts.syncs == []
    assert len(counts.kernels) <= bound


def gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), found


@pytest.mark.parametrize("arch", ["bert", "deberta-v2", "gpt2"])
def test_stacked_equals_each_layer_on_its_own_gradients_too(arch, monkeypatch):
    model = randomize(adapt(arch, dtype=torch.float64, orth_reg_weight=0.3))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss, stacked = gradients(model, **batch())
    monkeypatch.setattr("lora2.tuners.lora2.stacks.Adapted.cache_pairs", lambda self, on: None)
    alone_loss, alone = gradients(model, **batch())
    torch.testing.assert_close(loss, alone_loss, rtol=1e-12, atol=0)
    assert any("lora2_u" in name for name in stacked)
    torch.testing.assert_close(stacked, alone, rtol=1e-9, atol=1e-12)


def test_one_layer_equals_the_dense_update_gradients_too():
    """Against y = x W0^T + b + s x (u v) diag(lambda) (U V), every product formed in full."""
    model = randomize(adapt("bert", dtype=torch.float64))
    layer = next(m for m in model.modules() if isinstance(m, Lora2Linear))
    x = torch.randn(3, 5, layer.in_features, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 5, layer.out_features, dtype=torch.float64)
    names = ("u", "v", "lambda", "U", "V")
    factors = [getattr(layer, f"lora2_{name}")["default"] for name in names]
    u, v, lam, U, V = factors
    base = layer.base_layer
    dense = x @ base.weight.T + base.bias
    dense = dense + layer.scaling["default"] * (x @ (u @ v @ torch.diag(lam) @ U @ V))
    naive = torch.autograd.grad((dense * weights).sum(), [x, *factors])
    ours = torch.autograd.grad((layer(x) * weights).sum(), [x, *factors])
    torch.testing.assert_close(layer(x), dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-12)


def test_under_autocast_the_pairs_are_rounded_once_and_gradients_stay_float32():
    model = randomize(adapt("bert"))
    layers = [m for m in model.modules() if isinstance(m, Lora2Linear)]
    seen = {}

    def keep(index, layer):
        def hook(module, args):
            seen[index] = cached_pairs(layer)["default"]

        layer.base_layer.register_forward_pre_hook(hook)

    for index, layer in enumerate(layers):
        keep(index, layer)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch()).loss
    assert len(seen) == len(layers)
    for index, layer in enumerate(layers):
        exact = [one.detach() for one in layer.pair("default")]  # in float32, of its own
        for rounded, full in zip(seen[index], exact, strict=True):
            assert rounded.dtype == torch.bfloat16
            # u is a copy; the product is one in float32, rounded at its end.
            torch.testing.assert_close(rounded.float(), full, rtol=2**-8, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        alone = layers[0].pair("default")
    for handed, own in zip(seen[0], alone, strict=True):
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own, handed, rtol=0, atol=0)
    loss.backward()
    trained = [p for n, p in model.named_parameters() if "lora2_" in n]
    assert trained and all(p.grad.dtype == torch.float32 for p in trained)


def test_parts_are_taken_back_after_the_forward_and_a_failed_one_leaves_no_stale_ones():
    model = randomize(adapt("bert"))
    layers = [m for m in model.modules() if isinstance(m, Lora2Linear)]
    seen = []
    layers[0].base_layer.register_forward_pre_hook(
        lambda *_: seen.append(len(cached_pairs(layers[0])))
    )
    model(**batch())
    assert seen == [1] and not any(cached_pairs(layer) for layer in layers)
    with pytest.raises(IndexError):
        model(**{**batch(), "input_ids": torch.full((6, 7), 1000)})
    assert not any(cached_pairs(layer) for layer in layers)
    before, penalty = model(**batch()).logits, model.base_model.regularization_loss()
    with torch.no_grad():
        layers[0].lora2_u["default"].mul_(2)
    assert model.base_model.regularization_loss() > penalty
    assert not torch.equal(model(**batch()).logits, before)


def test_a_backward_hook_on_a_base_layer_changes_nothing():
    model = randomize(adapt("bert", dtype=torch.float64))
    layer = [m for m in model.modules() if isinstance(m, Lora2Linear)][-1]  # its x has a gradient
    expected = model(**batch()).loss
    seen = []
    layer.base_layer.register_full_backward_hook(lambda *_: seen.append(True))
    loss = model(**batch()).loss
    loss.backward()
    assert seen == [True]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixed", [False, True], ids=["float64", "bf16"])
def test_without_gradients_the_outputs_are_the_same(mixed):
    model = randomize(adapt("bert", dtype=torch.float32 if mixed else torch.float64)).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        tracked = model(**batch()).logits.detach()
        with torch.no_grad():
            untracked = model(**batch()).logits
        with torch.inference_mode():
            inferred = model(**batch()).logits
    exact = {} if mixed else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(untracked, tracked, **exact)
    torch.testing.assert_close(inferred, tracked, **exact)


def test_two_active_adapters_add_up_and_each_is_stacked():
    model = randomize(adapt("bert", dtype=torch.float64, task_type=None))
    config = Lora2Config(r=3, k=1, target_modules=["query"], init_std=0.2, lora_alpha=4)
    model.add_adapter("other", config)
    model.to(torch.float64)
    randomize(model, "other", seed=9)
    model.base_model.set_adapter(["default", "other"])
    layer = next(m for m in model.modules() if isinstance(m, Lora2Linear))
    x = torch.randn(4, layer.in_features, dtype=torch.float64)
    both = layer.get_delta_weight("default") + layer.get_delta_weight("other")
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ both.T)
    seen = []
    layer.base_layer.register_forward_pre_hook(lambda *_: seen.append(sorted(cached_pairs(layer))))
    stacked = model.eval()(**batch()).logits
    assert seen == [["default", "other"]]
    model.base_model.merge_adapter()
    torch.testing.assert_close(model(**batch()).logits, stacked)


def test_of_two_active_adapters_one_may_be_unstacked_without_gradients():
    model = randomize(adapt("bert", dtype=torch.float64, task_type=None))
    model.add_adapter("other", Lora2Config(r=3, k=1, target_modules=TARGETS["bert"], init_std=0.2))
    model.to(torch.float64)
    randomize(model, "other", seed=9)
    model.base_model.set_adapter(["default", "other"])
    *_, last = [m for m in model.modules() if isinstance(m, Lora2Linear)]
    for name in last.adapter_layer_names:
        factors = getattr(last, name)
        factors["other"] = torch.nn.Parameter(factors["other"].detach().float())
    expected = model(**batch()).logits.detach()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch()).logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("event", ["other", "disabled", "merged", "graded", "autocast"])
def test_what_changes_in_mid_pass_without_gradients_counts(event):
    dtype = torch.float32 if event == "autocast" else torch.float64
    model = randomize(adapt("bert", dtype=dtype, task_type=None))
    model.add_adapter("other", Lora2Config(r=3, k=1, target_modules=TARGETS["bert"], init_std=0.2))
    randomize(model.to(dtype), "other", seed=9)
    *_, last = [m for m in model.modules() if isinstance(m, Lora2Linear)]
    update = last.get_delta_weight("default").detach()
    seen = []

    def act(layer, args):
        seen.append(bool(cached_pairs(layer)))
        handle.remove()
        x = args[0]
        base = x @ layer.base_layer.weight.T + layer.base_layer.bias
        expected = base + x @ update.T
        if event == "other":
            layer.set_adapter("other")
            expected = base + x @ layer.get_delta_weight("other").T
        elif event == "disabled":
            layer.enable_adapters(False)
            expected = base
        elif event == "merged":
            layer.merge()
        elif event == "graded":
            with torch.enable_grad():
                found = layer(x)
                factors = [getattr(layer, n)["default"] for n in layer.adapter_layer_names]
                assert all(g is not None for g in torch.autograd.grad(found.sum(), factors))
        with torch.autocast("cpu", torch.bfloat16, enabled=event == "autocast"):
            found = layer(x)
        if event == "autocast":
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found.to(dtype), expected, rtol=0.05, atol=0.2)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    handle = last.register_forward_pre_hook(act)
    with torch.no_grad():
        model(**batch())
    assert seen == [True]


def test_a_weight_whose_data_comes_in_mid_pass_is_read():
    """As offloading of whole blocks brings it."""
    model = randomize(adapt("bert", dtype=torch.float64))
    expected = model(**batch()).logits.detach()
    block = model.base_model.model.bert.encoder.layer[-1]
    base = block.output.dense.base_layer
    real, empty = base.weight.data, torch.zeros_like(base.weight.data)
    base.weight.data = empty
    block.register_forward_pre_hook(lambda *_: setattr(base.weight, "data", real))
    with torch.no_grad():
        torch.testing.assert_close(model(**batch()).logits, expected, rtol=1e-12, atol=1e-12)


def test_what_a_pass_of_another_object_left_is_taken_back():
    model = randomize(adapt("bert", task_type=None))
    layers = [m for m in model.modules() if isinstance(m, Lora2Linear)]
    model.add_adapter("other", Lora2Config(r=3, k=1, target_modules=["query"]))
    with torch.no_grad():
        model.base_model._adapters["default"].cache_pairs(on=True)  # of a pass that was interrupted
        model.delete_adapter("other")
        model(**batch())
    assert not any(cached_pairs(layer) for layer in layers)


@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_that_begin_in_mid_pass_reach_every_factor(mixed):
    model = randomize(adapt("bert"))
    *_, last = [m for m in model.modules() if isinstance(m, Lora2Linear)]
    factors = [getattr(last, name)["default"] for name in last.adapter_layer_names]
    found = []

    def act(layer, args):
        handle.remove()
        with torch.enable_grad():
            found.extend(torch.autograd.grad(layer(args[0]).sum(), factors, allow_unused=True))

    handle = last.register_forward_pre_hook(act)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        model(**batch())
    assert len(found) == 5 and all(grad is not None for grad in found)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = randomize(adapt("bert", dtype=torch.float64))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    _, plain = gradients(model, **batch())
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    _, recomputed = gradients(model, **batch())
    torch.testing.assert_close(recomputed, plain, rtol=1e-9, atol=1e-12)


class Recomputing(torch.nn.Module):
    """No transformers model; recomputes its middle in the backward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)
        self.way = None

    def forward(self, x):
        def middle(x):
            return self.second(torch.tanh(self.first(x)))

        if self.way is None:
            return middle(x)
        return torch.utils.checkpoint.checkpoint(middle, x, use_reentrant=self.way)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_that_recomputes_by_itself_gets_the_same_gradients(reentrant):
    torch.manual_seed(0)
    config = Lora2Config(r=4, k=2, target_modules=["first", "second"], init_weights=False)
    model = get_peft_model(Recomputing(), config).train()
    x = torch.randn(3, 6, requires_grad=True)
    found = []
    for way in (None, reentrant):
        model.base_model.model.way = way
        model.zero_grad()
        (model(x).square().sum() + model.base_model.regularization_loss()).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    assert len(found[0]) == 10
    torch.testing.assert_close(found[1], found[0])


def test_a_recomputed_layer_draws_its_dropout_once():
    """A second draw in the first pass would give the second one another mask."""
    torch.manual_seed(0)
    config = Lora2Config(
        r=4, k=2, target_modules=["first", "second"], init_weights=False, lora_dropout=0.5
    )
    model = get_peft_model(Recomputing().to(torch.bfloat16), config).train()
    model.base_model.model.way = True  # reentrant
    inner = model.base_model.model.second
    seen = []
    inner.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    x = torch.randn(3, 6, dtype=torch.bfloat16, requires_grad=True)
    model(x).square().sum().backward()
    first, again = seen
    assert torch.equal(first, again)


def test_an_interrupted_forward_leaves_nothing_to_the_next():
    model = randomize(adapt("bert"))
    layers = [m for m in model.modules() if isinstance(m, Lora2Linear)]

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = layers[-1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**batch())
    hook.remove()
    with torch.no_grad():
        layers[0].lora2_u["default"].mul_(50)
        loss = model.train()(**batch()).loss
        penalty = model.base_model.regularization_loss()
    assert loss > penalty > 1


def test_a_hook_on_the_base_layer_sees_the_base_layers_own_output():
    model = randomize(adapt("bert"))
    layer = next(m for m in model.modules() if isinstance(m, Lora2Linear))
    x = torch.randn(2, 3, layer.in_features)
    expected = layer.base_layer(x).clone()
    seen = []
    layer.base_layer.register_forward_hook(lambda _, __, output: seen.append(output))
    assert not torch.equal(layer(x), expected)
    assert torch.equal(seen[0], expected)


def test_merged_inference_is_the_graph_of_the_base_model():
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    model = randomize(adapt("bert", modules_to_save=None))
    base = narrow(1).base_model.model.__class__(model.base_model.model.config).eval()
    merged = model.merge_and_unload()
    operations = []
    for one in (base, merged):
        with torch.no_grad(), counting() as counts:
            one(**inputs)
        operations.append(counts.kernels)
    assert operations[0] == operations[1]


@pytest.mark.slow
@pytest.mark.parametrize("start", [True, "orthogonal"])
def test_a_compiled_step_has_one_graph_and_no_recompilation_as_masks_change(start):
    settings = {"target_r": 1, "tfinal": 3, "total_step": 40, "init_weights": start}
    losses = []
    for compiled in (False, True):
        model = adapt("roberta", **settings).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        # Else transformers writes it in the first forward, and the second is compiled anew.
        model.base_model.model.config.problem_type = "single_label_classification"
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        forward = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        optimizer = create_lora2_optimizer(model, torch.optim.AdamW, lr=2e-2)
        for step in range(1, 9):
            loss = forward(**batch(step)).loss
            loss.backward()
            optimizer.step()
            model.base_model.update_and_allocate(step)
            optimizer.zero_grad()
        assert int(model.base_model.allocator.mask.sum()) < 4 * 10
        losses.append(loss.detach())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_a_compiled_pass_whose_loss_is_not_used_gets_the_penalty_afterwards(ours, compiled):
    """As TRL has it: labels are passed, and the loss is computed from the logits."""
    model, reference = (adapt("roberta", orth_reg_weight=1.0) for _ in range(2))
    for module in (*model.train().modules(), *reference.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.base_model.model.config.problem_type = "single_label_classification"
    model.base_model.prepare_training(2)
    torch._dynamo.reset()
    forward = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    for step in (1, 2):
        outputs, labels = forward(**batch()), batch()["labels"]
        own = outputs.loss if ours else torch.nn.functional.cross_entropy(outputs.logits, labels)
        own.backward()
        model.base_model.before_optimizer_step(step)
    (2 * reference.train()(**batch()).loss).backward()
    wanted, got = ([p.grad for p in one.parameters() if p.requires_grad]
                   for one in (reference, model))  # fmt: skip
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("grad", [True, False])
def test_a_traced_and_an_exported_model_give_the_same_outputs(grad):
    torch.manual_seed(0)
    config = Lora2Config(r=4, k=2, target_modules=["0", "2"], init_weights=False)
    layers = (torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    model = get_peft_model(torch.nn.Sequential(*layers), config).eval()
    x = torch.randn(3, 6)
    expected = model(x).detach()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, x)
        exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(traced(x).detach(), expected)
    torch.testing.assert_close(exported(x).detach(), expected)


def test_two_losses_of_one_forward_pass_add_up():
    model = randomize(adapt("bert", dtype=torch.float64))
    outputs = model(**batch())
    outputs.loss.backward(retain_graph=True)
    outputs.logits.square().mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    apart = [p.grad.clone() for p in trained]
    model.zero_grad()
    outputs = model(**batch())
    (outputs.loss + outputs.logits.square().mean()).backward()
    torch.testing.assert_close(apart, [p.grad for p in trained], rtol=1e-9, atol=1e-12)


def test_torch_func_gives_the_gradient_of_each_row():
    config = Lora2Config(r=3, k=2, target_modules=["0"], init_weights=False)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 5)), config).double().eval()
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    x = torch.randn(3, 6, dtype=torch.float64)

    def loss(parameters, row):
        return torch.func.functional_call(model, parameters, (row[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(trained, x)
    for at, row in enumerate(x):
        model.zero_grad()
        model(row[None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(each[name][at], parameter.grad)
