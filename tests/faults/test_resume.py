"""A run that is killed anywhere and started again equals, to the bit, one that was not."""

from __future__ import annotations

import pytest

from tests.faults import crash

METHODS = {
    "lora2": ("method=lora2", "method.k=2", "method.init_weights=null", "method.init_std=0.3"),
    "adalora": ("method=adalora",),
    "sora": ("method=sora", "method.xi=0.1"),  # half of the gates close within 8 steps
    "full": ("method=full",),
}
CHECKPOINT_OF = {
    "lora2": {"adapter_model.safetensors", "tuner_state.safetensors"},
    "adalora": {"adapter_model.safetensors", "tuner_state.safetensors"},
    "sora": {"adapter_model.safetensors", "tuner_state.safetensors"},
    "full": {"model.safetensors"},
}


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []


def assert_worth_comparing(method: str, made: dict) -> None:
    """All that decides how a run goes on is among what is compared, and ranks were pruned."""
    names = {key.removeprefix("checkpoint/") for key in made if key.startswith("checkpoint/")}
    assert names >= {"optimizer.pt", "scheduler.pt", "rng_state.pth", *CHECKPOINT_OF[method]}
    assert made.keys() >= {"best", "last", "history.csv", "recorder", "trainer_state"}
    kept = [line.rpartition(b",")[2] for line in made["ranks.csv"].splitlines()[1:]]
    assert method == "full" or set(kept) == {b"0", b"1"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function: method -> (operations of the uninterrupted run, what it made)."""
    made: dict[str, tuple[int, dict]] = {}

    def of(method: str) -> tuple[int, dict]:
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            operations = crash.run(*METHODS[method], into=folder)
            assert operations is not None
            made[method] = operations, crash.outcome(folder)
            assert_worth_comparing(method, made[method][1])
        return made[method]

    return of


def test_killed_again_and_again_equals_uninterrupted(tmp_path, whole):
    operations, expected = whole("lora2")
    # While the first, then the second checkpoint is written, and while the folder is published.
    for share in (0.3, 0.4, 0.25):
        died = crash.run(*METHODS["lora2"], into=tmp_path, die_at=int(share * operations))
        assert died is None
    assert crash.run(*METHODS["lora2"], into=tmp_path) is not None
    assert_equal(crash.outcome(tmp_path), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stride"), [("lora2", 1), ("adalora", 7), ("sora", 7), ("full", 7)]
)
def test_killed_at_any_file_operation_equals_uninterrupted(tmp_path, whole, method, stride):
    operations, expected = whole(method)
    for at in range(1, operations + 1, stride):
        folder = tmp_path / str(at)
        assert crash.run(*METHODS[method], into=folder, die_at=at) is None
        assert crash.run(*METHODS[method], into=folder) is not None, at
        assert_equal(crash.outcome(folder), expected)
