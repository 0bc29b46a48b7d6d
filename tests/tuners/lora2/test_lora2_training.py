from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from lora2 import Lora2Config
from lora2.bench.counters import counting
from tests.tuners.lora2.lora2_models import adapt, batch, build, optimizer_of, train

SCHEDULE = {"target_r": 1, "tinit": 2, "tfinal": 3, "total_step": 14}


def test_a_plain_loop_prunes_to_the_target():
    model = adapt("roberta", **SCHEDULE)
    train(model, optimizer_of(model), 1, 14)
    model.base_model.finish_training()
    kept = model.base_model.kept_ranks()
    assert sum(map(sum, kept.values())) == len(kept)
    for name, layer in model.base_model.adapted_layers("default").items():
        lam = layer.lora2_lambda["default"]
        assert (lam != 0).tolist() == kept[name]


@pytest.mark.parametrize("importance", ["factored", "full"])
def test_stopped_and_resumed_equals_uninterrupted_to_the_bit(importance, tmp_path):
    settings = {**SCHEDULE, "importance": importance, "lora_dropout": 0.1, "deltaT": 2}
    settings["modules_to_save"] = ["classifier"]
    whole = adapt("roberta", **settings)
    train(whole, optimizer_of(whole), 1, 14)

    first = adapt("roberta", **settings)
    optimizer = optimizer_of(first)
    train(first, optimizer, 1, 7)
    first.save_pretrained(tmp_path)
    save_file(first.base_model.training_state(), tmp_path / "state.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")

    second = PeftModel.from_pretrained(build("roberta"), tmp_path, is_trainable=True)
    optimizer = optimizer_of(second)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    second.base_model.load_training_state(load_file(tmp_path / "state.safetensors"))
    assert second.base_model.kept_ranks() == first.base_model.kept_ranks()
    train(second, optimizer, 8, 14)
    second.base_model.finish_training()
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), second.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert not torch.equal(
        whole.state_dict()["base_model.model.classifier.modules_to_save.default.dense.weight"],
        build("roberta").classifier.dense.weight,
    )


@pytest.mark.parametrize("target_r", [None, 4])
def test_without_pruning_there_is_nothing_to_allocate(target_r):
    model = adapt("roberta", target_r=target_r, tinit=100, tfinal=100)
    train(model, optimizer_of(model), 1, 3)
    tuner = model.base_model
    tuner.finish_training()
    assert tuner.training_state() == {} and tuner.allocator is None
    tuner.load_training_state({})
    with pytest.raises(ValueError, match="the adapter does not prune"):
        tuner.load_training_state({"step": torch.tensor(1)})
    assert all(all(mask) for mask in tuner.kept_ranks().values())


def test_a_second_training_keeps_the_final_ranks():
    model = adapt("roberta", **SCHEDULE)
    train(model, optimizer_of(model), 1, 14)
    kept = model.base_model.kept_ranks()
    model.base_model.prepare_training(20)
    train(model, optimizer_of(model), 1, 20)
    model.base_model.finish_training()
    assert model.base_model.kept_ranks() == kept == nonzero(model)


def nonzero(model):
    layers = model.base_model.adapted_layers("default").items()
    return {name: (layer.lora2_lambda["default"] != 0).tolist() for name, layer in layers}


@pytest.mark.parametrize("driven", [True, False])
def test_a_pruned_adapter_that_is_trained_on_keeps_its_masks(driven, tmp_path, recwarn):
    model = adapt("roberta", **SCHEDULE)
    train(model, optimizer_of(model), 1, 14)
    model.save_pretrained(tmp_path)
    kept = model.base_model.kept_ranks()
    again = PeftModel.from_pretrained(build("roberta"), tmp_path, is_trainable=True)
    before = torch.cat([p.flatten() for n, p in again.named_parameters() if "lora2_lambda" in n])
    optimizer = optimizer_of(again)
    for step in range(1, 6):
        step_once(again)
        optimizer.step()
        if driven:
            again.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    assert again.base_model.kept_ranks() == kept == nonzero(again)
    after = torch.cat([p.flatten() for n, p in again.named_parameters() if "lora2_lambda" in n])
    assert (after != before).sum() == 10 and int((after != 0).sum()) == 10
    assert not [w for w in recwarn if "the allocator is not called" in str(w.message)]


def test_a_training_that_nobody_allocates_warns_once(tmp_path):
    model = adapt("roberta", **SCHEDULE)
    optimizer = optimizer_of(model)
    with pytest.warns(UserWarning, match="the allocator is not called") as caught:
        for _ in range(8):
            for _ in range(4):  # micro-batches of a step
                step_once(model)
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(tmp_path)
    assert len([w for w in caught if "the allocator is not called" in str(w.message)]) == 1


def test_saving_an_adapter_that_was_trained_and_never_pruned_warns(tmp_path, recwarn):
    model = adapt("roberta", **SCHEDULE)
    model.save_pretrained(tmp_path)
    step_once(model)
    model.save_pretrained(tmp_path)  # not trained yet
    assert not [w for w in recwarn if "the allocator is not called" in str(w.message)]
    optimizer_of(model).step()
    with pytest.warns(UserWarning, match="the allocator is not called"):
        model.save_pretrained(tmp_path)
    driven = adapt("roberta", **SCHEDULE)
    recwarn.clear()
    train(driven, optimizer_of(driven), 1, 6)
    driven.save_pretrained(tmp_path)
    plain = adapt("roberta")
    for _ in range(6):
        step_once(plain)
        optimizer_of(plain).step()
    plain.save_pretrained(tmp_path)
    assert not [w for w in recwarn if "the allocator is not called" in str(w.message)]


def test_the_penalty_is_given_to_a_step_whose_loss_had_none_once():
    model = adapt("roberta", dtype=torch.float64, orth_reg_weight=0.3)
    own = {k: v for k, v in batch().items() if k != "labels"}
    named = {n: p for n, p in model.named_parameters() if "lora2_" in n}

    def gradients(with_term):
        model.train().zero_grad()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        loss = model(**own).logits.square().sum()
        if with_term:
            loss = loss + model.base_model.regularization_loss()
        loss.backward()
        model.base_model.before_optimizer_step(1)
        return {n: p.grad.clone() for n, p in named.items()}

    torch.testing.assert_close(gradients(False), gradients(True), rtol=1e-12, atol=1e-14)
    model.zero_grad()
    model(**batch()).loss.backward()  # contains it
    wanted = {n: p.grad.clone() for n, p in named.items()}
    with counting() as counts:
        model.base_model.before_optimizer_step(2)
    assert counts.kernels == []
    torch.testing.assert_close({n: p.grad for n, p in named.items()}, wanted, rtol=0, atol=0)


def test_the_penalty_is_few_kernels_and_waits_for_no_value():
    def counts(layers):
        config = Lora2Config(r=4, k=2, target_modules=[f"{i}" for i in range(layers)])
        model = get_peft_model(nn.Sequential(*(nn.Linear(6, 6) for _ in range(layers))), config)
        model.train()(torch.randn(3, 6)).sum().backward()
        with counting() as found:
            model.base_model.before_optimizer_step(1)
        return found

    three, nine = counts(3), counts(9)
    assert three.syncs == nine.syncs == []
    assert 0 < len(three.kernels) == len(nine.kernels) <= 85


def step_once(model):
    model.train()
    model(**batch()).loss.backward()


def test_gradients_cleared_before_the_allocator_are_an_error():
    model = adapt("roberta", **SCHEDULE)
    step_once(model)
    model.zero_grad()
    with pytest.raises(RuntimeError, match="and optimizer"):
        model.base_model.update_and_allocate(1)


def test_an_unknown_total_step_is_an_error_that_names_the_ways_out():
    model = adapt("roberta", target_r=1)
    step_once(model)
    with pytest.raises(ValueError, match=r"total_step=...\), or .*Lora2Callback"):
        model.base_model.update_and_allocate(1)
    model.base_model.prepare_training(5)
    model.base_model.update_and_allocate(1)
    assert model.peft_config["default"].total_step is None  # the user's config stays as it was


def test_total_step_must_agree_and_the_schedule_fit():
    model = adapt("roberta", **SCHEDULE)
    with pytest.raises(ValueError, match="total_step=14, but this training has 15"):
        model.base_model.prepare_training(15)
    model = adapt("roberta", target_r=1, tinit=5, tfinal=5)
    with pytest.raises(ValueError, match="tfinal=5 leave no step"):
        model.base_model.prepare_training(10)


def test_a_step_beyond_the_end_is_an_error():
    model = adapt("roberta", **SCHEDULE)
    train(model, optimizer_of(model), 1, 14)
    step_once(model)
    with pytest.raises(ValueError, match="step 15 is beyond total_step=14"):
        model.base_model.update_and_allocate(15)


def test_a_training_whose_allocator_never_ran_is_an_error():
    model = adapt("roberta", **SCHEDULE)
    with pytest.raises(RuntimeError, match="allocator was never called"):
        model.base_model.finish_training()
    model.base_model.prepare_training(14)
    with pytest.raises(RuntimeError, match="allocator was never called"):
        model.base_model.finish_training()
    train(model, optimizer_of(model), 1, 9)
    with pytest.raises(RuntimeError, match="after step 9 of total_step=14"):
        model.base_model.finish_training()


def test_an_adapter_switch_in_mid_training_is_an_error():
    model = adapt("roberta", task_type=None, **SCHEDULE)
    config = Lora2Config(r=4, target_modules=["query"], init_std=0.2, **SCHEDULE)
    model.add_adapter("other", config)
    train(model, optimizer_of(model), 1, 2)
    model.set_adapter("other")
    step_once(model)
    with pytest.raises(RuntimeError, match="'other' is active, but the ranks of 'default'"):
        model.base_model.update_and_allocate(3)
    with pytest.raises(RuntimeError, match="'other' is active, but the ranks of 'default'"):
        model.base_model.finish_training()
    state = model.base_model.training_state()
    with pytest.raises(RuntimeError, match="'other' is active, but the ranks of 'default'"):
        model.base_model.load_training_state(state)


def test_a_deleted_adapter_takes_its_allocator_with_it():
    model = adapt("roberta", task_type=None, **SCHEDULE)
    train(model, optimizer_of(model), 1, 2)
    config = model.peft_config["default"]
    model.add_adapter("other", Lora2Config(target_modules=["query"]))
    model.delete_adapter("default")
    assert model.base_model.allocator is None
    model.add_adapter("default", config)
    model.set_adapter("default")
    train(model, optimizer_of(model), 1, 14)
    model.base_model.finish_training()


def test_an_inference_adapter_is_not_trained(tmp_path):
    adapt("roberta", **SCHEDULE).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("roberta"), tmp_path)
    loss = loaded.train()(**batch()).loss
    assert not loss.requires_grad
    with pytest.raises(ValueError, match="is_trainable=True"):
        loaded.base_model.prepare_training(14)


def test_a_regulariser_in_no_loss_is_reported_once():
    model = adapt("roberta", **SCHEDULE).train()
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    with pytest.warns(UserWarning, match="regulariser was part of no loss") as caught:
        for step in (1, 2):
            model(**inputs).logits.square().sum().backward()
            model.base_model.update_and_allocate(step)
    assert len([w for w in caught if "regulariser" in str(w.message)]) == 1


def test_saving_a_trained_adapter_warns_though_no_pass_was_watched(tmp_path, monkeypatch):
    """A compiled forward pass is not watched."""
    model = adapt("roberta", **SCHEDULE).train()
    optimizer = optimizer_of(model)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for _ in range(2):
        model(**batch()).loss.backward()
        optimizer.step()
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="the allocator is not called") as caught:
        model.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
    assert len([w for w in caught if "allocator" in str(w.message)]) == 1


@pytest.mark.parametrize("saving", [False, True])
def test_without_an_allocator_a_regulariser_in_no_loss_is_reported_once(tmp_path, saving, recwarn):
    """The loss is ours, and neither a callback nor the loop calls the tuner."""
    model = adapt("roberta", orth_reg_weight=0.1).train()
    optimizer = optimizer_of(model)
    inputs = {key: value for key, value in batch().items() if key != "labels"}

    def reports() -> int:
        return len([w for w in recwarn if "regulariser was part of no loss" in str(w.message)])

    for _ in range(2 if saving else 6):
        model(**inputs).logits.square().sum().backward()
        optimizer.step()
    assert reports() == (0 if saving else 1)
    model.save_pretrained(tmp_path)
    assert reports() == 1


@pytest.mark.parametrize("driven", [False, True])
def test_an_adapter_saved_in_mid_schedule_keeps_its_masks_until_it_is_driven(tmp_path, driven):
    model = adapt("roberta", **SCHEDULE)
    train(model, optimizer_of(model), 1, 8)
    model.save_pretrained(tmp_path)
    kept = sum(map(sum, model.base_model.kept_ranks().values()))
    loaded = PeftModel.from_pretrained(build("roberta"), tmp_path, is_trainable=True).train()
    layers = loaded.base_model.adapted_layers("default").values()
    assert 1 * len(layers) < kept < 4 * len(layers)  # cut, and not to the target
    optimizer = optimizer_of(loaded)
    if driven:
        train(loaded, optimizer, 1, 14)  # a training of its own, from all ranks
        assert sum(map(sum, loaded.base_model.kept_ranks().values())) == len(layers)
        loaded.base_model.finish_training()
        return
    with pytest.warns(UserWarning, match="the allocator is not called"):
        for _ in range(6):
            loaded(**batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert sum(int(layer.lora2_lambda["default"].count_nonzero()) for layer in layers) <= kept
    with pytest.raises(RuntimeError, match="never called"):
        loaded.base_model.finish_training()


class OwnModel(nn.Module):
    """No transformers model, and a loss that is computed outside."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)


def test_a_model_of_ones_own_trains_with_an_explicit_regulariser(recwarn):
    torch.manual_seed(0)
    config = Lora2Config(
        r=4, k=2, target_modules=["layers.0", "layers.2"], init_std=0.2, **SCHEDULE
    )
    model = get_peft_model(OwnModel(), config)
    optimizer = optimizer_of(model)
    for step in range(1, 15):
        loss = model(torch.randn(8, 6)).square().mean() + model.base_model.regularization_loss()
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.base_model.finish_training()
    assert sum(map(sum, model.base_model.kept_ranks().values())) == 2
    assert not [w for w in recwarn if "regulariser" in str(w.message)]
