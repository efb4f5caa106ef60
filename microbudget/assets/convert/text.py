"""Labelled text as it is published -> tables: UTF-8, tab-separated, the label last."""

import tarfile
from collections.abc import Iterable
from pathlib import Path

# in Hutto and Gilbert's archive -> here
_SNIPPETS = {"movieReviewSnippets": "movies", "amazonReviewSnippets": "products",
             "nytEditorialSnippets": "editorials"}  # fmt: skip


def rated_snippets(raw: Path, ready: Path) -> None:
    """vaderSentiment's rated sentences: one table a source, (id, text, mean rating)."""
    with tarfile.open(raw / "hutto_ICWSM_2014.tar.gz") as archive:
        for theirs, ours in _SNIPPETS.items():
            name = f"hutto_ICWSM_2014/{theirs}_GroundTruth.txt"
            text = archive.extractfile(name).read().decode("utf-8")
            rows = [line.split("\t") for line in text.splitlines()]
            table = [f"{i}\t{' '.join(t.split())}\t{float(r)}" for i, r, t in rows]
            _write(ready / f"{ours}.tsv", table)
    (raw / "LICENSE.txt").replace(ready / "LICENSE.txt")


def glue_tables(raw: Path, ready: Path) -> None:
    """A GLUE task's parquet files -> train.tsv and dev.tsv, (sentence(s), label).

    GLUE's test labels are not public, so there is no test.tsv.
    """
    for theirs, ours in {"train": "train", "validation": "dev"}.items():
        rows = _parquet(raw, theirs)
        columns = [c for c in rows.column_names if c.startswith("sentence")]
        table = []
        for row in rows:
            sentences = [" ".join(row[column].split()) for column in columns]
            table.append("\t".join([*sentences, str(row["label"])]))
        _write(ready / f"{ours}.tsv", table)


def wikitext(raw: Path, ready: Path) -> None:
    """WikiText's parquet files -> valid.txt and test.txt, as first published."""
    for theirs, ours in {"validation": "valid", "test": "test"}.items():
        lines = [line.rstrip("\n") for line in _parquet(raw, theirs)["text"]]
        _write(ready / f"{ours}.txt", lines)


def _parquet(raw: Path, split: str):
    import datasets

    (path,) = raw.rglob(f"{split}-00000-of-00001.parquet")
    return datasets.Dataset.from_parquet(
        str(path), cache_dir=str(raw / "cache"), keep_in_memory=True
    )


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
