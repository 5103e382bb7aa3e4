#!/usr/bin/env python3
"""Writes tests/train/data/parquet: small Parquet files, and rows.jsonl with the rows that they hold.

  tools/make_parquet_fixtures.py        needs pyarrow
"""
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "train" / "data" / "parquet"
WORDS = "hello world 日本語 café 🙂 a\nb \"quoted\" end.".split(" ")


def text(n: int, seed: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * 3) % len(WORDS)] for i in range(n))


def rows() -> list:
    out = []
    for i in range(60):
        out.append({
            "id": i, "score": i / 4, "good": i % 3 == 0, "source": None if i % 4 == 1 else f"file-{i % 5}",
            "messages": [{"role": role, "content": text(2 + (i + turn) % 9, i + turn)}
                         for turn in range(1 + i % 3) for role in ("user", "assistant")],
            "history": None if i % 5 == 0 else [[text(1, j), text(2, j)] for j in range(i % 4)],
            "meta": None if i % 7 == 3 else {"lang": "en" if i % 2 else None, "tags": [text(1, j) for j in range(i % 3)]},
        })
    return out


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    data = rows()
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([
        ("id", pa.int64()), ("score", pa.float64()), ("good", pa.bool_()), ("source", pa.string()),
        ("messages", pa.list_(message)), ("history", pa.list_(pa.list_(pa.string()))),
        ("meta", pa.struct([("lang", pa.string()), ("tags", pa.list_(pa.string()))]))])
    table = pa.Table.from_pylist(data, schema=schema)
    for name, options in {
        "snappy": {"compression": "snappy"},
        "zstd": {"compression": "zstd", "row_group_size": 17, "data_page_version": "2.0"},
        "gzip": {"compression": "gzip", "row_group_size": 25, "data_page_size": 64, "use_dictionary": False},
        "plain": {"compression": "none", "write_page_checksum": True},
    }.items():
        pq.write_table(table, OUT / f"{name}.parquet", **options)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data)
    (OUT / "rows.jsonl").write_text(lines)


if __name__ == "__main__":
    main()
