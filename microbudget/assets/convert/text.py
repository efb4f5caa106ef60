"""Labelled text as it is published -> tables: UTF-8, tab-separated, the label last."""

import tarfile
from pathlib import Path

from ...core.errors import AssetError

# in Hutto and Gilbert's archive -> here
_SNIPPETS = {"movieReviewSnippets": "movies", "amazonReviewSnippets": "products",
             "nytEditorialSnippets": "editorials"}  # fmt: skip


def rated_snippets(raw: Path, ready: Path) -> None:
    """vaderSentiment's rated sentences: one table a source, (id, text, mean rating).

    Raises:
        AssetError: the archive isn't whole, or its tables have another form.
    """
    (path,) = raw.glob("hutto_ICWSM_2014.tar.gz")
    try:
        with tarfile.open(path) as archive:
            for theirs, ours in _SNIPPETS.items():
                name = f"hutto_ICWSM_2014/{theirs}_GroundTruth.txt"
                text = archive.extractfile(name).read().decode("utf-8")
                rows = [line.split("\t") for line in text.splitlines()]
                table = [f"{i}\t{' '.join(t.split())}\t{float(r)}" for i, r, t in rows]
                _write(ready / f"{ours}.tsv", table)
    except (tarfile.TarError, EOFError, KeyError, ValueError) as error:
        raise AssetError(
            f"{path.name} is not the archive it should be ({error})."
        ) from error
    (raw / "LICENSE.txt").replace(ready / "LICENSE.txt")


def glue_tables(raw: Path, ready: Path) -> None:
    """A GLUE task's parquet files -> train.tsv and dev.tsv, (sentence(s), label).

    GLUE's test labels are not public, so there is no test.tsv.

    Raises:
        AssetError: a file is missing or is no parquet of sentences and labels.
    """
    import datasets

    names = {"train": "train", "validation": "dev"}
    for theirs, ours in names.items():
        path = raw / f"{theirs}-00000-of-00001.parquet"
        path = path if path.is_file() else next(raw.rglob(path.name), path)
        try:
            rows = datasets.Dataset.from_parquet(
                str(path), cache_dir=str(raw / "cache"), keep_in_memory=True
            )
            columns = [c for c in rows.column_names if c.startswith("sentence")]
            table = []
            for row in rows:
                sentences = [" ".join(row[column].split()) for column in columns]
                table.append("\t".join([*sentences, str(row["label"])]))
        except Exception as error:  # datasets and pyarrow raise their own kinds
            raise AssetError(
                f"{path.name} is no table of sentences and labels "
                f"({type(error).__name__}: {error})."
            ) from error
        _write(ready / f"{ours}.tsv", table)


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def wikitext(raw: Path, ready: Path) -> None:
    """WikiText's parquet files -> valid.txt and test.txt, as they were first published.

    Raises:
        AssetError: a file is missing or is no parquet of lines.
    """
    import datasets

    for theirs, ours in {"validation": "valid", "test": "test"}.items():
        path = next(raw.rglob(f"{theirs}-00000-of-00001.parquet"), raw / theirs)
        try:
            rows = datasets.Dataset.from_parquet(
                str(path), cache_dir=str(raw / "cache"), keep_in_memory=True
            )
            lines = [line.rstrip("\n") for line in rows["text"]]
        except Exception as error:  # datasets and pyarrow raise their own kinds
            raise AssetError(
                f"{path.name} is no table of lines ({type(error).__name__}: {error})."
            ) from error
        _write(ready / f"{ours}.txt", lines)
