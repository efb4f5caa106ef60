"""Text and language models as they are published, made into what the course reads."""

import hashlib

import pytest
import torch
import transformers
from test_assets import make_tar, use_catalog

from microbudget import assets
from microbudget.assets import catalog, download, sources
from microbudget.assets.convert import text as texts
from microbudget.data import text


def snippets(table: bytes) -> bytes:
    names = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")
    files = {f"hutto_ICWSM_2014/{name}_GroundTruth.txt": table for name in names}
    return make_tar(files)


@pytest.fixture
def archive(home, server, monkeypatch):
    """A source archive on an index on loopback, whose setup.py must never run."""
    evil = b"raise SystemExit('setup.py was run')"
    inner = snippets(b"1\t2.5\ta  fine film\r\n2\t-1\tdull\r\n")
    members = {"toy-1.0/setup.py": evil, "toy-1.0/hutto_ICWSM_2014.tar.gz": inner,
               "toy-1.0/LICENSE.txt": b"MIT"}  # fmt: skip
    content = make_tar(members)
    server.files["/files/toy-1.0.tar.gz"] = content
    link = b'<a href="/files/toy-1.0.tar.gz">toy-1.0.tar.gz</a>'
    server.files["/simple/toy/"] = link
    index = f"global.index-url='{server.url}/simple'"
    monkeypatch.setattr(sources, "_pip_config_list", lambda: index)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    spec = {
        "source": "sdist",
        "requirement": "toy==1.0",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "members": ["toy-1.0/hutto_ICWSM_2014.tar.gz", "toy-1.0/LICENSE.txt"],
        "converter": "rated_snippets",
    }
    use_catalog(monkeypatch, {"toy": spec})
    return server


def test_a_source_archive_is_read_and_never_run(archive):
    folder = assets.fetch("toy")
    assert (folder / "movies.tsv").read_text() == "1\ta fine film\t2.5\n2\tdull\t-1.0\n"
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["LICENSE.txt", "asset.json", "editorials.tsv", "movies.tsv",
                     "products.tsv"]  # fmt: skip


def test_glues_parquet_files_become_tables(tmp_path):
    import datasets

    (tmp_path / "mrpc").mkdir()
    rows = {"sentence1": ["a\tb", "c"], "sentence2": ["d", "e\nf"], "label": [0, 1],
            "idx": [0, 1]}  # fmt: skip
    for name in ("train", "validation"):
        path = tmp_path / "mrpc" / f"{name}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows).to_parquet(str(path))
    ready = tmp_path / "ready"
    ready.mkdir()
    texts.glue_tables(tmp_path, ready)
    for table in ("train.tsv", "dev.tsv"):
        assert text._rows(ready / table) == [(("a b", "d"), 0), (("c", "e f"), 1)]


def test_the_small_llm_is_what_llama_cpp_would_read():
    """Weights unpacked from the GGUF by transformers equal gguf's own reader's."""
    folder = assets.fetch("smollm2-135m-instruct")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        best = model(**ids).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"


def test_a_folders_position_below_the_users_data(tmp_path, monkeypatch):
    (tmp_path / "text" / "sst2").mkdir(parents=True)
    monkeypatch.setenv("MICROBUDGET_DATA", str(tmp_path))
    assert catalog.get("sst2").folder == "text/sst2"
    assert assets.locate("sst2") == tmp_path / "text" / "sst2"
    assert catalog.get("minilm-l6").folder == "minilm-l6"
