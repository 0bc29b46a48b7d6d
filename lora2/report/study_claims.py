"""The paper's claims one by one, each held against a study or the audit."""

from __future__ import annotations

from lora2.report import paper_tables
from lora2.report.escape import grid
from lora2.report.study_answers import EQ8, FEWER, K1, K8, NO_REGULARISER
from lora2.report.study_data import Results
from lora2.report.study_gaps import Pair
from lora2.report.study_judges import (
    AUDIT,
    MARGIN,
    NEAR,
    NO,
    RIVALS,
    UNTESTED,
    YES,
    Judge,
    audited,
    beats,
    best_average,
    comparable,
    drawn_only,
    half_the_ranks,
    most_tasks,
    r_almost_free,
    reasoned,
    times,
)

RULE = (
    "*Confirmed*, of a comparison: every difference by which the claim is judged is *larger* by "
    "the rule of the answers, whatever its size; of a sum: the recomputed number agrees with the "
    "printed one; of *comparable* or *no degradation*: the 95 % interval of the difference lies "
    f"above -{MARGIN:g} point; of a ratio of times: within {NEAR:g} of the paper's. A claim of "
    "several tasks is judged by the average over those tasks whose data the encoder was not "
    "trained on if on each of them a row started, else by each task on which one did; p is "
    "corrected over the differences it is judged by. Differences are in percent points, with "
    "their interval. *Not confirmed*: tested and not so, which includes that these data cannot "
    "tell; what all comparisons must show one lost comparison refutes. *Not testable here*: not "
    "run in this study, run with one seed only, did not start, or not measured by it."
)
LARGE = reasoned(
    UNTESTED, "RoBERTa-large is not run in this study", "configs/table/roberta-large.yaml"
)
R8 = tuple(Pair("1", "lora2-k1", row) for row in RIVALS["lora2-k8"])
JUDGES: dict[str, Judge] = {
    "share": audited("parameters/share"),
    "scores": audited("scores/768x768 k=1"),
    "no-degradation": comparable(EQ8),
    "ranking-unaffected": reasoned(
        NO,
        "inside one matrix it is; between matrices, where the budget is shared out, Eq. 8 and 9 "
        "can keep other singular values",
        "tests/tuners/lora2/test_lora2_allocator.py: test_importance_can_change_the_kept_set",
    ),
    "comparable-k1": comparable(*R8),
    "learnable-space": reasoned(
        NO, "the update has rank at most k: at k=1 the functions of LoRA r=1", f"{AUDIT}: rank/k=1"
    ),
    "r-almost-free": r_almost_free,
    "best-average": best_average,
    "over-full": beats(Pair("1", "lora2-k8", "full")),
    "most-tasks": most_tasks,
    "over-lora-1": beats(K1),
    "over-sora-1": beats(Pair("1", "lora2-k1", "sora-r1")),
    "over-adalora-1": beats(Pair("1", "lora2-k1", "adalora-r2")),
    "over-lora-8": beats(K8),
    "over-sora-8": beats(Pair("1", "lora2-k8", "sora-r8")),
    "over-adalora-8": beats(Pair("1", "lora2-k8", "adalora-r8")),
    "rte-adalora": beats(Pair("1", "lora2-k1", "adalora-r2"), tasks=["rte"]),
    "k1-over-r8": beats(*R8),
    "fewer-parameters": beats(Pair("1", "lora2-k1", "adalora-r2"), *R8),
    "lead-arithmetic": audited(*(f"lead/{m}-at-{r}" for r in (1, 8) for m in ("lora", "sora"))),
    "average-arithmetic": audited("average/table1/lora2 k=8"),
    "roberta-comparable": LARGE,
    "roberta-compression": audited("parameters/roberta-compression"),
    "roberta-over-lora": LARGE,
    "roberta-saving": audited("parameters/roberta-saving"),
    "half-the-ranks": half_the_ranks,
    "layers": drawn_only,
    "task-ranks": reasoned(
        UNTESTED, "how many ranks are kept in all is a setting (target_r), not a finding",
        "configs/method/lora2.yaml: target_r",
    ),
    "time": times,
    "all-regularisers": beats(*FEWER),
    "uv-worst": beats(*(Pair("3", row, "UV") for row in ("uv", "uv-UV", "PQ", "all"))),
    "convergence": beats(NO_REGULARISER, score="score_first"),
    "all-matrices": beats(*(Pair("4", "all", row) for row in ("qk", "qv", "qkv"))),
    "overfitting": reasoned(UNTESTED, "the study compares scores, not train with validation", "–"),
}  # fmt: skip


def claims(results: Results) -> list[str]:
    """Every claim with its verdict, as a Markdown table."""
    lines = [["Claim", "Where", "Verdict", "Why", "Evidence"]]
    for claim in paper_tables.statements().reset_index().to_dict("records"):
        judged = JUDGES[str(claim["id"])](results)
        lines.append([str(claim["quote"]), str(claim["where"]), *judged])
    verdicts = [line[2] for line in lines[1:]]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in (YES, NO, UNTESTED))
    return [f"{len(verdicts)} claims: {counts}. {RULE}", "", *grid(lines)]
