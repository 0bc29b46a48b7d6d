"""The audit of the paper's numbers: every finding against a value worked out by hand."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from lora2.markup import markdown
from lora2.paper import audit, findings, sizes
from lora2.paper.findings import agrees
from lora2.paper.numbers import exact

# id -> (recomputed, verdict). Checked by separate arithmetic in the tests further down.
EXPECTED = {
    "average/table1/full": ("87.822", "agrees"),
    "average/table1/bitfit": ("85.181", "agrees"),
    "average/table1/adalora r=2": ("88.864", "agrees"),
    "average/table1/lora r=1": ("87.226", "agrees"),
    "average/table1/sora r=1": ("87.854", "agrees"),
    "average/table1/lora2 k=1": ("89.058", "agrees"),
    "average/table1/adalora r=8": ("89.310", "agrees"),
    "average/table1/lora r=8": ("88.378", "agrees"),
    "average/table1/sora r=8": ("89.358", "agrees"),
    "average/table1/lora2 k=8": ("89.432 (-0.25)", "differs"),
    "average/table3/uv": ("90.313", "agrees"),
    "average/table3/UV": ("90.293", "agrees"),
    "average/table3/uv+UV": ("90.478", "agrees"),
    "average/table3/PQ": ("90.293", "agrees"),
    "average/table3/uv+UV+PQ": ("90.633", "agrees"),
    "average/table4/q+k": ("84.475 (-0.06)", "differs"),
    "average/table4/q+v": ("83.538", "agrees"),
    "average/table4/q+k+v": ("84.305", "agrees"),
    "average/table4/all": ("85.695", "agrees"),
    "lead/lora-at-1": ("1.83 by printed averages, 1.83 by cells", "differs"),
    "lead/sora-at-1": ("1.21 by printed averages, 1.20 by cells", "differs"),
    "lead/lora-at-8": ("1.30 by printed averages, 1.05 by cells", "differs"),
    "lead/sora-at-8": ("0.32 by printed averages, 0.07 by cells", "differs"),
    "lead/rte-adalora": ("2.17", "agrees"),
    "text/most-tasks": ("first in 4 of 8 tasks at k=1 and 2 of 8 at k=8", "differs"),
    "text/k1-over-r8": ("89.06 is above 1 of 3 baselines (lora)", "differs"),
    "text/orth-lead": ("0.32 over uv, 0.34 over UV, 0.16 over uv+UV, 0.34 over PQ", "differs"),
    "text/orth-worst": ("lowest average: UV and PQ, 90.2925", "differs"),
    "text/modules-lead": ("1.22 over the next best", "agrees"),
    "text/appendix": ("0 of 19 settings; its columns: train, valid, test, labels", "differs"),
    "text/selection": ("the best of 11 (mrpc) to 75 (qqp) evaluations", "note"),
    "table2/ratio": ("1.148 = 1.433 / 1.249 s", "note"),
    "table2/caption": ("7 datasets, seconds per iteration", "differs"),
    "repeated/table3": ("4 of 4 equal to Table 1, LoRA2 k=1", "agrees"),
    "repeated/table4": ("4 of 4 equal to Table 1, LoRA2 k=1", "agrees"),
    "parameters/table1/lora2 k=1": ("167,616 = 0.17M", "agrees"),
    "parameters/table1/lora2 k=8": ("1,336,896 = 1.34M", "differs"),
    "parameters/table1/lora r=1": ("165,888 = 0.17M", "agrees"),
    "parameters/table1/lora r=8": ("1,327,104 = 1.33M", "agrees"),
    "parameters/table1/bitfit": ("102,912 = 0.10M", "agrees"),
    "parameters/table4/q+k": ("37,440 = 37.44k", "agrees"),
    "parameters/table4/q+v": ("37,440 = 37.44k", "agrees"),
    "parameters/table4/q+k+v": ("56,160 = 56.16k", "agrees"),
    "parameters/table4/all": ("167,616 = 167.62k", "agrees"),
    "parameters/table1/adalora r=2": ("331,920 = 0.33 x 10^6 = 0.32 x 2^20", "differs"),
    "parameters/table1/adalora r=8": ("1,327,680 = 1.33 x 10^6 = 1.27 x 2^20", "differs"),
    "parameters/roberta-params": ("445,824", "agrees"),
    "parameters/roberta-compression": ("99.88", "differs"),
    "parameters/roberta-saving": ("0.34", "differs"),
    "parameters/share": ("0.723", "agrees"),
    "parameters/eightfold": ("7.92", "agrees"),
    "scores/768x768 k=1": ("98.46: 24 of 1,560 are left", "agrees"),
    "scores/768x3072 k=1": ("99.38: 24 of 3,864 are left", "note"),
    "scores/encoder k=1": ("98.97: 1,728 of 167,616 are left", "note"),
    "scores/encoder k=8": ("99.27: 9,792 of 1,336,896 are left", "note"),
    "reading/u and U": ("49.74 if u and U are dropped", "differs"),
    "reading/v and U": ("1.03 if v and U are dropped", "differs"),
    "reading/u and V": ("98.46 if u and V are dropped", "agrees"),
    "rank/k=1": ("rank 1", "note"),
    "rank/k=8": ("rank 8", "note"),
    "grim/kinds": (
        "LoRA2 and AdaLoRA: 8 of 8 cells can be one run; the other rows: 4 of 12",
        "note",
    ),
    "repeated/qnli": ("equal", "note"),
    "grim/table1/full/rte_acc": ("next to 82.310 and 82.671", "not one run"),
    "grim/table1/bitfit/mrpc_acc": ("next to 87.010 and 87.255", "not one run"),
    "grim/table1/bitfit/qnli_acc": ("next to 91.891 and 91.909", "not one run"),
    "grim/table1/bitfit/rte_acc": ("next to 75.812 and 76.173", "not one run"),
    "grim/table1/adalora r=2/sst2_acc": ("next to 95.757 and 95.872", "not one run"),
    "grim/table1/lora r=1/qnli_acc": ("next to 93.337 and 93.355", "not one run"),
    "grim/table1/lora r=1/rte_acc": ("next to 81.227 and 81.588", "not one run"),
    "grim/table1/sora r=1/sst2_acc": ("next to 95.069 and 95.183", "not one run"),
    "grim/table1/sora r=1/rte_acc": ("next to 82.671 and 83.032", "not one run"),
    "grim/table1/lora r=8/sst2_acc": ("next to 95.528 and 95.642", "not one run"),
    "grim/table1/lora r=8/rte_acc": ("next to 85.199 and 85.560", "not one run"),
    "grim/table1/sora r=8/mrpc_acc": ("next to 91.912 and 92.157", "not one run"),
    "grim/table1/sora r=8/qnli_acc": ("next to 94.271 and 94.289", "not one run"),
    "grim/table1/sora r=8/rte_acc": ("next to 87.726 and 88.087", "not one run"),
    "grim/table1/lora2 k=8/qnli_acc": ("next to 94.271 and 94.289", "not one run"),
}
# The claims of arXiv v1's abstract that the journal's abstract does not repeat as they were.
CHANGED = {
    "parameters/share": "the journal's abstract says it of DeBERTa-V3-base alone",
    "parameters/eightfold": "the journal's abstract no longer says it",
    "scores/768x768 k=1": "the journal's abstract no longer says it",
    "scores/768x3072 k=1": "the journal's abstract no longer says it",
    "scores/encoder k=1": "the journal's abstract no longer says it",
    "scores/encoder k=8": "the journal's abstract no longer says it",
}
EVERY = [finding for part in audit.PARTS for finding in part()]
DEBERTA = sizes.encoder("deberta-v3-base")
FINDINGS = {finding.id: finding for finding in EVERY}


def test_every_finding_is_expected_and_its_id_unique() -> None:
    assert len(FINDINGS) == len(EVERY)
    assert set(FINDINGS) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_finding(name: str) -> None:
    finding = FINDINGS[name]
    assert (finding.recomputed, finding.verdict) == EXPECTED[name]
    assert finding.where and finding.printed and finding.how
    changed = f"; {CHANGED[name]}" if name in CHANGED else ""
    assert finding.version == f"arXiv v1{changed}"


def test_every_claim_of_the_abstract_says_what_became_of_it() -> None:
    assert {name for name, f in FINDINGS.items() if f.where == "Abstract"} == set(CHANGED)


def test_every_line_of_the_report_names_its_version() -> None:
    lines = audit.audit().splitlines()
    for name, finding in FINDINGS.items():
        start = f"| {markdown(name)} | {markdown(finding.version)} | "
        assert sum(line.startswith(start) for line in lines) == 1, name


def test_lora2_k8_average_by_hand() -> None:
    qqp, mnli = (92.25 + 89.74) / 2, (90.43 + 90.23) / 2
    mean = (72.30 + 95.76 + 91.42 + qqp + 91.92 + mnli + 94.28 + 88.45) / 8
    assert mean == pytest.approx(89.431875)
    assert FINDINGS["average/table1/lora2 k=8"].recomputed.startswith("89.432")


def test_parameter_counts_by_hand() -> None:
    # One layer: four 768x768 matrices, 768x3072 and 3072x768.
    widths = 4 * (768 + 768) + 2 * (768 + 3072)
    for k in (1, 8):
        expected = 12 * (k * widths + 6 * (2 * k * 8 + 8))
        assert DEBERTA.total(sizes.lora2_parameters(k)) == expected
    assert sizes.encoder("roberta-large").total(sizes.lora2_parameters(8)) == 3_558_528
    lora = 12 * 8 * widths
    assert FINDINGS["parameters/eightfold"].recomputed == f"{lora / 167_616:.2f}"


def test_bitfit_count_is_the_encoders_own() -> None:
    torch = pytest.importorskip("torch")
    from transformers import DebertaV2Config, DebertaV2Model

    config = DebertaV2Config(
        vocab_size=100, hidden_size=48, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=80, relative_attention=True, position_buckets=8, type_vocab_size=0,
        norm_rel_ebd="layer_norm", position_biased_input=False, share_att_key=True,
        pos_att_type=["p2c", "c2p"],
    )  # fmt: skip
    with torch.device("meta"):
        model = DebertaV2Model(config)
    biases = sum(p.numel() for n, p in model.named_parameters() if n.endswith("bias"))
    assert sizes.Encoder(3, 48, 80).biases() == biases


@pytest.mark.parametrize("n", [277, 408, 872])
def test_granularity_finds_exactly_the_reachable_values(n: int) -> None:
    reachable = {round(100 * m / n, 2) for m in range(n + 1)}
    for hundredths in range(0, 10_001, 7):
        printed = hundredths / 100
        assert bool(findings.correct_counts(str(printed), n)) == (printed in reachable)


def test_granularity_of_means_over_runs() -> None:
    assert findings.fewest_runs("89.53", 277) == 1
    assert not findings.correct_counts("82.49", 277)
    assert list(findings.correct_counts("82.49", 277, runs=2)) == [457]  # 457 / 554 = 82.4910
    assert list(findings.by_truncation("94.28", 5463)) == [5151]  # 94.2889


def test_rank_of_the_update_never_exceeds_k_or_r() -> None:
    assert [sizes.update_rank(k, r=4) for k in (1, 2, 4, 8)] == [1, 2, 4, 4]


def test_agreement_is_rounding_at_the_printed_digits() -> None:
    assert agrees(exact("84.31"), Decimal("84.305"))
    assert agrees(exact("84.30"), Decimal("84.305"))
    assert not agrees(exact("84.31"), Decimal("84.3049"))
    assert agrees(exact("0.4"), Decimal("0.445"))


def test_the_committed_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["--check"]) == 0, f"run `{audit.COMMAND}` and commit"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "number"), [("audit.md", "89.432"), ("table5.md", "8,551")])
def test_a_stale_page_is_noticed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    number: str,
) -> None:
    monkeypatch.setattr(audit, "FOLDER", tmp_path / "new")
    assert audit.main(["--check"]) == 1 and audit.main([]) == 0 and audit.main(["--check"]) == 0
    path = tmp_path / "new" / name
    path.write_text(path.read_text(encoding="utf-8").replace(number, "9"), encoding="utf-8")
    assert audit.main(["--check"]) == 1
    assert audit.COMMAND in capsys.readouterr().err


@pytest.mark.parametrize(
    ("printed", "rows", "expected"),
    [("8.5k", 8551, False), ("8.6k", 8551, True), ("67k", 67349, True), ("1043", 1043, True),
     ("1.5k", 1500, True), ("277", 278, False)],
)  # fmt: skip
def test_sizes_of_table_5_are_compared_at_the_printed_digits(
    printed: str, rows: int, expected: bool
) -> None:
    assert audit.size_agrees(printed, rows) is expected


def test_table_5_names_the_sizes_that_do_not_round_to_the_papers() -> None:
    text = audit.table5()
    assert "| cola | 8,551 | 8.5k | 1,043 | 1043 | 2 | 2 | train |" in text
    assert "| rte | 2,490 | 2.5k | 277 | 277 | 2 | 2 |  |" in text
