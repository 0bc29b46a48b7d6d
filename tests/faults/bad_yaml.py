"""YAML files of a configs folder with one thing wrong in each, and what the refusal must name."""

from __future__ import annotations

import dataclasses

GLUE = ("task=rte", "method=lora2", "backbone=embedded")
TABLE = ("table=3", "profile=embedded", "rows=uv", "tasks=rte")


@dataclasses.dataclass(frozen=True)
class Broken:
    """``old`` of a file replaced by ``new`` (all of it where ``old`` is empty)."""

    path: str
    old: str
    new: str
    key: str
    value: str
    allowed: str
    words: tuple[str, ...] = GLUE
    script: str = "run_glue"

    def __str__(self) -> str:
        return f"{self.path}: {self.old!r} -> {self.new[:80]!r}"


def table(path: str, old: str, new: str, key: str, value: str, allowed: str) -> Broken:
    return Broken(path, old, new, key, value, allowed, TABLE, "reproduce")


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nname: lora2\n"
LORA2, RTE, EMBEDDED = "method/lora2.yaml", "task/rte.yaml", "backbone/embedded.yaml"
NOT_YAML = [
    Broken(LORA2, "", "", "method/lora2.yaml", "None", "a mapping of keys to values"),
    Broken(LORA2, "", "- r: 8\n", "method/lora2.yaml", "[{'r': 8}]", "a mapping of keys to values"),
    Broken(LORA2, "", "just text\n", "method/lora2.yaml", "'just text'",
           "a mapping of keys to values"),
    Broken(LORA2, "r: 8 ", "r: [8 ", "method/lora2.yaml", "", "line"),
    Broken(LORA2, "r: 8 ", "\tr: 8 ", "method/lora2.yaml", "", "line 3"),
    Broken(LORA2, "r: 8 ", "r: 8\nr: 9 ", "method/lora2.yaml", "", "key 'r' is given twice in"),
    Broken(LORA2, "", BOMB, "method/lora2.yaml", "", "anchors and aliases are refused in line 1"),
    Broken(LORA2, "r: 8 ", "r: !!python/object/apply:os.system ['touch pwned'] ",
           "method/lora2.yaml",
           "", "could not determine a constructor"),
    Broken(LORA2, "r: 8 ", "r: !!python/name:os.system ", "method/lora2.yaml", "", "constructor"),
    Broken(LORA2, "r: 8 ", "r: " + "[" * 5000 + "]" * 5000 + " ", "method/lora2.yaml",
           "", "32 levels"),
    Broken(LORA2, "r: 8 ", "r: 8\n? [a, b]\n: 1\n#", "method/lora2.yaml", "", "a key must be"),
    Broken(LORA2, "r: 8 ", "r: 2024-99-99 ", "method.r", "'2024-99-99'", "valid integer"),
    Broken(LORA2, "r: 8 ", "r: \0 ", "method/lora2.yaml", "''", "plain YAML"),
    Broken(LORA2, "r: 8 ", "r: ${oc.env:HOME} ", "method.r", "'${oc.env:HOME}'",
           "valid integer"),
    Broken(LORA2, "init_std: 0.02", "init_std: ???", "method.init_std", "'???'",
           "valid number"),
    Broken("config.yaml", "seed: 6", "seed: ${oc.env:SEED}", "seed",
           "'${oc.env:SEED}'", "valid integer"),
    Broken("config.yaml", "", "- a\n", "config.yaml", "['a']", "a mapping of keys to values"),
    Broken("config.yaml", "backbone: deberta-v3-base", "backbone: nothing",
           "config.yaml: backbone", "'nothing'", "minilm"),
    table("table/3.yaml", "", "", "table/3.yaml", "None", "a mapping of keys to values"),
    table("table/3.yaml", "kind: scores", "kind: &k scores", "table/3.yaml", "", "anchors"),
    table("profile/embedded.yaml", "", "[]", "profile/embedded.yaml", "[]", "a mapping of keys"),
    table("profile/embedded.yaml", "note: not", "note: [not", "profile/embedded.yaml", "", "line"),
]  # fmt: skip
METHODS = [
    Broken(LORA2, "r: 8 ", "r: 0 ", "method.r", "0", "equal to 1"),
    Broken(LORA2, "r: 8 ", "r: eight ", "method.r", "'eight'", "valid integer"),
    Broken(LORA2, "r: 8 ", "r: '8' ", "method.r", "'8'", "valid integer"),
    Broken(LORA2, "r: 8 ", "r: null ", "method.r", "None", "valid integer"),
    Broken(LORA2, "r: 8 ", "r: 1e3 ", "method.r", "", "valid integer"),
    Broken(LORA2, "r: 8 ", "rank: 8 ", "method.rank", "8", "unknown key"),
    Broken(LORA2, "r: 8 ", "", "method.r", "None", "required"),
    Broken(LORA2, "k: 8 ", "k: 0 ", "method.k", "0", "equal to 1"),
    Broken(LORA2, "beta1: 0.85", "beta1: 1.0", "method.beta1", "1.0", "less than 1"),
    Broken(LORA2, "init_std: 0.02", "init_std: nan", "method.init_std", "nan", ""),
    Broken(LORA2, "init_std: 0.02", "init_std: inf", "method.init_std", "inf", "finite"),
    Broken(LORA2, "k: 8 ", "k: true ", "method.k", "True", "valid integer"),
    Broken(LORA2, "orth_squared: false", "orth_squared: 0", "method.orth_squared", "0", "boolean"),
    Broken(LORA2, "[query, key,", "[query, kee,", "method.target_modules.1", "'kee'", "'key'"),
    Broken(LORA2, "name: lora2", "name: lora3", "method/lora2.yaml: name", "'lora3'", "lora2"),
    Broken(LORA2, "name: lora2", "nom: lora2", "method/lora2.yaml: name", "None", "lora2"),
    Broken(LORA2, "settings:\n", "settings: 5\nother:\n", "method.settings", "5", "a list"),
    Broken(LORA2, "for: {protocol: equal}", "for: {protocol: equall}",
           "method.settings.for.protocol",
           "'equall'", "did you mean equal?"),
    Broken(LORA2, "for: {protocol: equal}", "for: {proto: equal}", "method.settings.for.proto",
           "'equal'", "did you mean protocol?"),
    Broken(LORA2, "- for: {protocol: equal}", "- when: {protocol: equal}", "method.settings",
           "{'when'", "each entry needs for"),
    Broken(LORA2, "learning_rate: 8.0e-4", "learning_rat: 8.0e-4",
           "method.settings.train.learning_rat",
           "0.0008", "did you mean learning_rate?"),
    Broken(LORA2, "train: {learning_rate", "trian: {learning_rate", "method.settings.trian",
           "{'learning_rate'", "train"),
    Broken(LORA2, "learning_rate: 8.0e-4", "learning_rate: -1",
           "method.settings.train.learning_rate", "-1",
           "greater than 0"),
    Broken("method/adalora.yaml", "target_r: 8 ", "target_r: 13 ", "method.target_r", "13",
           "at most method.init_r", ("task=rte", "method=adalora", "backbone=embedded")),
    Broken(LORA2, "name: lora2", "defaults: [{override /backbone: minilm}]\nname: lora2",
           "method.defaults", "", "unknown key"),
    Broken("method/vera.yaml", "name: vera", "name: ../vera", "method/vera.yaml: name", "'../vera'",
           "vera", ("task=rte", "method=vera", "backbone=embedded")),
]  # fmt: skip
REST = [
    Broken(RTE, "name: rte", "name: snli", "task/rte.yaml: name", "'snli'", "rte"),
    Broken(RTE, "max_seq_length: 320", "max_seq_len: 320", "task.train.max_seq_len", "320",
           "unknown key"),
    Broken(RTE, "max_seq_length: 320", "max_seq_length: long", "task.train.max_seq_length",
           "'long'",
           "valid integer"),
    Broken(RTE, "train:\n  max", "trian:\n  max", "task.trian", "{'max_seq_length'", "train"),
    Broken(RTE, "train:\n  max_seq_length: 320", "train: 5\nx:\n  max_seq_length: 320",
           "task.train",
           "5", "a section with keys"),
    Broken(RTE, "tinit: 600", "tinit: -1", "method.tinit", "-1", "equal to 0"),
    Broken(RTE, "tinit: 600", "tinti: 600", "method.tinti", "600", "did you mean tinit?"),
    Broken(RTE, "seed: 4", "seed: four", "seed", "'four'", "valid integer",
           (*GLUE, "protocol=public")),
    Broken(RTE, "method: [lora2, adalora]}", "method: [lora2, adalorra]}",
           "task.settings.for.method",
           "'adalorra'", "did you mean adalora?"),
    Broken(EMBEDDED, "name: embedded", "name: other", "backbone/embedded.yaml: name", "'other'",
           "embedded"),
    Broken(EMBEDDED, "path: null", "path: nowhere/at/all", "backbone.path", "'nowhere/at/all'",
           "OWNER/NAME"),
    Broken(EMBEDDED, "path: null", "path: ../../etc", "backbone.path", "'../../etc'",
           "config.json"),
    Broken(EMBEDDED, "random_init: false", "random_init: maybe", "backbone.random_init", "'maybe'",
           "boolean"),
    Broken(EMBEDDED, "profile: embedded", "profile: tiny", "backbone.profile", "'tiny'", "'paper'"),
    Broken(EMBEDDED, "[pooler, classifier]", "[]", "backbone.head_modules", "[]", "at least 1"),
    Broken(EMBEDDED, "query: attention.self.query_proj", "querry: attention.self.query_proj",
           "backbone.targets.querry", "'querry'", "'query'"),
    Broken(EMBEDDED, "max_steps: 120", "max_steps: 0", "backbone.settings.train.max_steps",
           "0", "equal to 1"),
    Broken(EMBEDDED, "max_steps: 120", "max_step: 120", "backbone.settings.train.max_step", "120",
           "did you mean max_steps?"),
    Broken(EMBEDDED, "protocol: equal", "protocol: fair", "protocol", "'fair'", "'public'"),
    Broken(EMBEDDED, "profile: embedded", "profile: embedded\nextra: 1", "backbone.extra", "1",
           "unknown key"),
    Broken("config.yaml", "batch_size: 32", "batch_sise: 32", "train.batch_sise", "32",
           "did you mean batch_size?"),
    Broken("config.yaml", "lr_scheduler: linear", "lr_scheduler: liner", "train.lr_scheduler",
           "'liner'", "'linear'"),
    Broken("config.yaml", "ranks: paper", "ranks: papers", "ranks", "'papers'", "'public'"),
    Broken("config.yaml", "seed: 6", "sead: 6", "config.yaml: sead", "6", "did you mean seed?"),
    Broken("config.yaml", "seed: 6", "# 6", "seed", "None", "valid integer"),
    Broken("config.yaml", "  dir: null                     # null: results", "  dir: ''  #",
           "results.dir", "''", "at least 1 character"),
    Broken("config.yaml", "train:\n", "trains:\n", "config.yaml: trains", "{",
           "did you mean train?"),
    Broken("config.yaml", "train:\n", "train: 5\ntrains:\n", "train", "5", "a section with keys"),
    Broken("config.yaml", "  train: train\n", "  train: everything\n", "data.train", "'everything'",
           "'train'"),
]  # fmt: skip
TABLES = [
    table("table/3.yaml", "kind: scores", "kind: score", "table 3.kind", "'score'", "'scores'"),
    table("table/3.yaml", "kind: scores", "knid: scores", "table 3.knid", "'scores'", "kind"),
    table("table/3.yaml", "mnli, rte]", "mnli, snli]", "table 3.tasks.3", "'snli'", "'rte'"),
    table("table/3.yaml", "tasks: [mrpc", "tasks: [[mrpc]", "table 3.tasks.0", "['mrpc']",
          "'cola'"),
    table("table/3.yaml", "- id: uv\n", "- id: UV\n", "table 3, id", "'UV'",
          "a name of one row only"),
    table("table/3.yaml", "label: R(u,v)\n", "label: R(U,V)\n", "table 3, label", "'R(U,V)'",
          "one row"),
    table("table/3.yaml", "against: all", "against: everything", "table 3, against", "'everything'",
          "allowed: PQ"),
    table("table/3.yaml", "method: lora2", "method: lora9", "method", "'lora9'", "lora2"),
    table("table/3.yaml", "method.orthogonality=uv]", "method.orthogonality=vu]",
          "method.orthogonality", "'vu'", "'uv'"),
    table("table/3.yaml", "method.orthogonality=uv]", "method.orthogonality]", "command line",
          "'method.orthogonality'", "key=value"),
    table("table/3.yaml", "overrides: [method.k=1]", "overrides: method.k=1", "table 3.overrides",
          "'method.k=1'", "valid list"),
    table("table/3.yaml", "overrides: [method.k=1]", "overrides: [method.k=0]", "method.k", "0",
          "equal to 1"),
    table("table/3.yaml", "encoder: deberta-v3-base", "encoder: bert", "profile", "'embedded'",
          "bert"),
    table("table/3.yaml", "title:", "titel:", "table 3.title", "None", "required"),
    table("table/3.yaml", "rows:\n", "rows: 5\nrow:\n", "table 3, rows", "5", "a list of rows"),
    table("table/3.yaml", "{mnli: [mismatched_accuracy]}", "{mnli: [accuracy]}",
          "table 3.metrics.mnli",
          "'accuracy'", "mismatched_accuracy"),
    table("table/3.yaml", "{mnli: [mismatched_accuracy]}", "{snli: [accuracy]}",
          "table 3.metrics.snli",
          "['accuracy']", "mnli"),
    table("table/3.yaml", "paper_row: {orthogonality: uv}", "paper_row: {orthogonal: uv}",
          "table 3, paper_row", "{'orthogonal': 'uv'}", "orthogonality"),
    table("table/3.yaml", "paper_row: {orthogonality: uv}", "paper_row: {orthogonality: vu}",
          "table 3, paper_row", "{'orthogonality': 'vu'}", ""),
    table("table/3.yaml", "table: 3", "table: 9", "table 3, paper_row", "{", "no Table 9"),
    table("table/3.yaml", "table: 3", "table: ../../x", "table 3.table",
          "'../../x'", "pattern"),
    table("table/3.yaml", "- id: uv\n", "- id: 'u,v'\n", "table 3, row.id", "'u,v'", "pattern"),
    Broken("table/roberta-large.yaml", "rows_of: 1", "rows_of: 7", "table", "'7'", "1, 2, 3",
           ("table=roberta-large", "profile=embedded", "rows=full", "tasks=rte"), "reproduce"),
    table("profile/embedded.yaml", "seeds: [1]", "seeds: 1", "profile embedded.seeds", "1", "list"),
    table("profile/embedded.yaml", "seeds: [1]", "seeds: [-1]", "profile embedded.seeds.0",
          "-1", ""),
    table("profile/embedded.yaml", "seeds: [1]", "seeds: []", "profile embedded.seeds", "[]", ""),
    table("profile/embedded.yaml", "seeds: [1]", "seed: [1]", "profile embedded.seed", "[1]",
          "seeds"),
    table("profile/embedded.yaml", "{deberta-v3-base: embedded,", "{deberta-v3-base: embeded,",
          "backbone", "'embeded'", "did you mean embedded?"),
    table("profile/embedded.yaml", "overrides: []", "overrides: [train.lr=1]", "train.lr", "1",
          "unknown"),
    table("profile/embedded.yaml", "overrides: []", "overrides: 5",
          "profile embedded.overrides", "5",
          "list"),
]  # fmt: skip
ALL = [*NOT_YAML, *METHODS, *REST, *TABLES]
