# ruff: noqa: E501
"""Small made-up data sets, in the Hub's own schemas, for `fake_hub.py` to serve.

`Maker(folder, seed)` writes FineWeb-Edu (configs default, sample-10BT, sample-100BT and one dump),
HellaSwag, TinyStories and LAMBADA. The text is random words: schemas, names, splits and field types
are those of the real data sets, contents are not. Same seed, same bytes.
"""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "his",
    "but",
    "at",
    "are",
    "this",
    "have",
    "from",
    "or",
    "had",
    "an",
    "they",
    "which",
    "one",
    "you",
    "were",
    "all",
    "her",
    "she",
    "there",
    "would",
    "their",
    "we",
    "him",
    "been",
    "has",
    "when",
    "who",
    "will",
    "no",
    "more",
    "if",
    "out",
    "so",
    "up",
    "said",
    "what",
    "its",
    "about",
    "than",
    "into",
    "them",
    "can",
    "only",
    "other",
    "time",
    "new",
    "some",
    "could",
    "these",
    "two",
    "may",
    "first",
    "then",
    "do",
    "any",
    "like",
    "my",
    "now",
    "over",
    "such",
    "our",
    "man",
    "me",
    "even",
    "most",
    "made",
    "after",
    "also",
    "did",
    "many",
    "off",
    "before",
    "must",
    "well",
    "back",
    "through",
    "years",
    "much",
    "where",
    "your",
    "way",
    "down",
    "should",
    "because",
    "long",
    "each",
    "just",
    "state",
    "those",
    "people",
    "too",
    "mister",
    "how",
    "little",
    "good",
    "world",
    "make",
    "very",
    "year",
    "still",
    "see",
    "own",
    "work",
    "men",
    "day",
    "get",
    "here",
    "old",
    "life",
    "both",
    "between",
    "being",
    "water",
    "plants",
    "energy",
    "students",
    "learning",
    "history",
    "science",
    "system",
    "light",
    "cells",
    "earth",
    "species",
    "climate",
    "model",
    "data",
    "theory",
    "energy",
]

FINEWEB_EDU = pa.schema(
    [("text", pa.string()), ("id", pa.string()), ("dump", pa.string()), ("url", pa.string()), ("file_path", pa.string()),
     ("language", pa.string()), ("language_score", pa.float64()), ("token_count", pa.int64()), ("score", pa.float64()),
     ("int_score", pa.int64())]
)  # fmt: skip
# The default config and the per-dump ones also have `date`; the sample-* ones do not.
FINEWEB_EDU_DATED = pa.schema(
    [*list(FINEWEB_EDU)[:4], pa.field("date", pa.string()), *list(FINEWEB_EDU)[4:]]
)
HELLASWAG = pa.schema(
    [("ind", pa.int32()), ("activity_label", pa.string()), ("ctx_a", pa.string()), ("ctx_b", pa.string()), ("ctx", pa.string()),
     ("endings", pa.list_(pa.string())), ("source_id", pa.string()), ("split", pa.string()), ("split_type", pa.string()),
     ("label", pa.string())]
)  # fmt: skip


class Maker:
    def __init__(self, out: Path, seed: int):
        self.out, self.rng = out, random.Random(seed)

    def words(self, n: int) -> str:
        return " ".join(self.rng.choices(WORDS, k=max(1, n)))

    def document(self, median_words: int = 480) -> str:
        """Paragraphs, with the long tail web pages have; now and then text that trips tokenizers."""
        n = min(40_000, max(20, int(self.rng.lognormvariate(0, 0.9) * median_words)))
        parts = []
        while n > 0:
            k = min(n, self.rng.randint(30, 120))
            parts.append(self.words(k).capitalize() + ".")
            n -= k
        if self.rng.random() < 0.05:
            parts.append(
                self.rng.choice(
                    [
                        "café naïve — “quotes” ☃ 日本語テキスト 🦜",
                        "<|endoftext|> as plain text",
                        "a\tb\r\nc  d   e",
                    ]
                )
            )
        return "\n".join(parts)

    def put(
        self, repo: str, path: str, rows: list[dict], schema: pa.Schema, row_group: int
    ) -> None:
        file = self.out / repo / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=row_group)

    def card(self, repo: str, front: str) -> None:
        file = self.out / repo / "README.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"---\n{front.strip()}\n---\n# {repo} (made up)\n")

    def page(self, dated: bool) -> dict:
        text = self.document()
        score = round(self.rng.uniform(2.5, 5.0), 4)
        row = {
            "text": text,
            "id": f"<urn:uuid:{uuid.UUID(int=self.rng.getrandbits(128))}>",
            "dump": "CC-MAIN-2024-10",
            "url": f"http://example.org/{self.rng.getrandbits(32):08x}",
            "file_path": "s3://commoncrawl/crawl-data/CC-MAIN-2024-10/segments/0/warc/0.warc.gz",
            "language": "en",
            "language_score": round(self.rng.uniform(0.65, 0.99), 6),
            "token_count": len(text) // 5,
            "score": score,
            "int_score": round(score),
        }
        if dated:
            row["date"] = "2024-03-05T09:27:37Z"
        return row

    def fineweb_edu(self, docs: int, files: int, row_group: int) -> None:
        repo = "HuggingFaceFW/fineweb-edu"
        for i in range(files):
            n = docs // files + (i < docs % files)
            self.put(
                repo,
                f"sample/10BT/{i:03d}_00000.parquet",
                [self.page(False) for _ in range(n)],
                FINEWEB_EDU,
                row_group,
            )
        self.put(
            repo,
            "sample/100BT/000_00000.parquet",
            [self.page(False) for _ in range(50)],
            FINEWEB_EDU,
            row_group,
        )
        self.put(repo, "data/CC-MAIN-2024-10/train-00000-of-00001.parquet", [self.page(True) for _ in range(50)],
                 FINEWEB_EDU_DATED, row_group)  # fmt: skip
        features = "\n".join(f"      - name: {f.name}\n        dtype: {'float64' if f.type == pa.float64() else f.type}"
                             for f in FINEWEB_EDU_DATED)  # fmt: skip
        self.card(
            repo,
            f"""
license: odc-by
configs:
  - config_name: default
    data_files:
      - split: train
        path: data/*/*
    features:
{features}
  - config_name: sample-10BT
    data_files:
      - split: train
        path: sample/10BT/*
  - config_name: sample-100BT
    data_files:
      - split: train
        path: sample/100BT/*
  - config_name: CC-MAIN-2024-10
    data_files:
      - split: train
        path: data/CC-MAIN-2024-10/*
""",
        )

    def hellaswag(self, n: int) -> None:
        repo = "Rowan/hellaswag"
        for split, name, count in (
            ("train", "train", 2 * n),
            ("val", "validation", n),
            ("test", "test", n),
        ):
            rows = []
            for i in range(count):
                wikihow = self.rng.random() < 0.68
                if wikihow:
                    ctx_a = f"[header] How to {self.words(4)} [title] {self.words(6)}. [step] {self.words(40).capitalize()}."
                    ctx_b = "" if self.rng.random() < 0.7 else self.words(2)
                    endings = [
                        f"{self.words(self.rng.randint(8, 40)).capitalize()}. [substeps] {self.words(8)}."
                        for _ in range(4)
                    ]
                else:
                    ctx_a, ctx_b = (
                        self.words(18).capitalize() + ".",
                        self.rng.choice(["he", "the man", "a woman in red"]),
                    )
                    endings = [self.words(self.rng.randint(3, 20)) + "." for _ in range(4)]
                rows.append({
                    "ind": i, "activity_label": self.words(3).capitalize(), "ctx_a": ctx_a, "ctx_b": ctx_b,
                    "ctx": f"{ctx_a} {ctx_b}" if ctx_b else ctx_a, "endings": endings,
                    "source_id": f"{'wikihow' if wikihow else 'activitynet'}~{i}", "split": split,
                    "split_type": self.rng.choice(["indomain", "zeroshot"]),
                    "label": "" if split == "test" else str(self.rng.randrange(4)),
                })  # fmt: skip
            self.put(repo, f"data/{name}-00000-of-00001.parquet", rows, HELLASWAG, 1000)
        self.card(
            repo,
            """
language:
- en
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
  - split: validation
    path: data/validation-*
""",
        )

    def tinystories(self, n: int) -> None:
        repo = "roneneldan/TinyStories"
        schema = pa.schema([("text", pa.string())])
        for split, count in (("train", n), ("validation", max(1, n // 50))):
            stories = [self.document(120) for _ in range(count)]
            self.put(
                repo,
                f"data/{split}-00000-of-00001.parquet",
                [{"text": s} for s in stories],
                schema,
                1000,
            )
            v2 = "\n".join(s + "\n<|endoftext|>" for s in stories) + "\n"
            (
                self.out
                / repo
                / f"TinyStoriesV2-GPT4-{'train' if split == 'train' else 'valid'}.txt"
            ).write_text(v2)
        self.card(
            repo,
            """
license: cdla-sharing-1.0
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: data/validation-*
""",
        )

    def lambada(self, n: int) -> None:
        repo = "EleutherAI/lambada_openai"
        file = self.out / repo / "data" / "lambada_test_en.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"text": self.words(70)}) + "\n" for _ in range(n)))
        self.card(
            repo,
            """
configs:
- config_name: default
  data_files:
  - split: test
    path: data/lambada_test_en.jsonl
""",
        )
