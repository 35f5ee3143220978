"""ModelScope's client (training/hubs/modelscope.py, modelscope_http.py), against a small one on loopback."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.at_hubs import led_to, nowhere, offline
from tests.support.fuzz import spoiled_json
from tests.support.hubs import COMMIT, LARGE, OLDER, ModelScope
from training.errors import FinetuneError, MachineError, UserError
from training.hubs import Listing, Unreachable, Wanted, modelscope, modelscope_http

TOKEN = "ms-secret-secret-secret"
LONG = random.Random(7).randbytes(5 * LARGE)
DATA = {"README.md": b"# rows", "data/train.jsonl": b'{"prompt": "a", "completion": "b"}\n', "data/long.bin": LONG}
WANTED = Wanted("owner/rows", setting="DATASET_FILE")


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScope]:
    running = ModelScope(data={"owner/rows": dict(DATA)})
    led_to(monkeypatch, tmp_path, nowhere(), running)
    yield running
    running.server.shutdown()


def listed(said: list[str] | None = None, wanted: Wanted = WANTED) -> Listing:
    return modelscope.listing(wanted, (said if said is not None else []).append)


def fetched(name: str, said: list[str] | None = None, wanted: Wanted = WANTED) -> bytes:
    said = said if said is not None else []
    return modelscope.fetch(wanted, listed(said, wanted), [name], said.append)[0].read_bytes()


def test_a_listing_names_the_commit_and_every_file_with_its_size_and_sha256(scope: ModelScope) -> None:
    found = listed()
    assert found.commit == COMMIT
    assert set(found.files) == set(DATA)
    assert found.files["data/long.bin"].size == len(LONG)
    assert found.files["data/long.bin"].sha256 == hashlib.sha256(LONG).hexdigest()


@pytest.mark.parametrize(
    ("newest", "commit"),
    [
        ({"Id": "a" * 40, "ShortId": "a" * 8}, "a" * 40),
        ({"Id": "", "ShortId": OLDER[:8]}, OLDER),
        # Nothing is told: the newest file's.
        (None, COMMIT),
        ({}, COMMIT),
        ({"Id": None, "ShortId": "0" * 8}, COMMIT),
    ],
)
def test_the_commit_is_the_whole_one_whatever_is_told_of_it(scope: ModelScope, newest: dict, commit: str) -> None:
    scope.newest = newest
    assert listed().commit == commit


def test_files_are_fetched_as_they_are_and_only_once(scope: ModelScope) -> None:
    said: list[str] = []
    assert fetched("data/long.bin", said) == LONG
    assert said == [f"owner/rows: getting 0 MB from {scope.address} (what is there already is kept)"]
    before = [path for path, _, _ in scope.requests if "/lfs/" in path]
    assert fetched("data/long.bin") == LONG
    assert [path for path, _, _ in scope.requests if "/lfs/" in path] == before


def test_the_token_goes_to_modelscope_and_not_to_the_host_that_a_file_is_redirected_to(
    scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    fetched("data/long.bin")
    sent = {path: TOKEN in str(headers) for path, _, headers in scope.requests}
    assert sent["/api/v1/datasets/owner/rows/repo/tree"]
    assert sent["/api/v1/datasets/owner/rows/repo"]
    assert not sent["/lfs/datasets/owner/rows/data/long.bin"]


@pytest.mark.parametrize("cuts", [1, 3])
def test_a_cut_download_goes_on_where_it_stopped(scope: ModelScope, cuts: int) -> None:
    scope.cut, scope.cuts = LARGE, cuts
    assert fetched("data/long.bin") == LONG
    ranges = [headers["Range"] for path, _, headers in scope.requests if "/lfs/" in path and "Range" in headers]
    assert ranges == [f"bytes={number * LARGE}-" for number in range(1, cuts + 1)]


def test_a_download_that_was_given_up_goes_on_in_the_next_run(
    scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope.cut, scope.cuts = LARGE, 1
    monkeypatch.setattr(modelscope_http, "ATTEMPTS", 1)
    with pytest.raises(Unreachable, match="run again, a cut download goes on where it stopped"):
        fetched("data/long.bin")
    scope.requests.clear()
    assert fetched("data/long.bin") == LONG
    assert [headers.get("Range") for path, _, headers in scope.requests if "/lfs/" in path] == [f"bytes={LARGE}-"]


def test_a_server_without_ranges_sends_all_of_it_again(scope: ModelScope) -> None:
    scope.cut, scope.cuts, scope.without_ranges = LARGE, 1, True
    assert fetched("data/long.bin") == LONG


def test_a_part_that_begins_elsewhere_is_not_taken(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    scope.cut, scope.cuts = LARGE, 1
    monkeypatch.setattr(modelscope_http, "_begin", lambda response: 7)
    with pytest.raises(Unreachable, match="answers with something else than its API"):
        fetched("data/long.bin")


@pytest.mark.parametrize("instead", [LONG[:-1], LONG[:-1] + b"?", LONG + b"?"])
def test_a_file_that_was_changed_after_the_listing_is_refused_and_not_kept(
    scope: ModelScope, instead: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope.instead["data/long.bin"] = instead
    monkeypatch.setattr(modelscope_http, "ATTEMPTS", 1)
    with pytest.raises(MachineError):
        fetched("data/long.bin")
    del scope.instead["data/long.bin"]
    assert fetched("data/long.bin") == LONG


def test_a_wrong_sha256_is_told_with_the_file(scope: ModelScope) -> None:
    scope.lies["data/train.jsonl"] = "0" * 64
    with pytest.raises(
        MachineError, match=r"owner/rows: data/train.jsonl is not the file that ModelScope .* lists .*run again"
    ):
        fetched("data/train.jsonl")


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        (
            "owner/nothing",
            "",
            "knows no data set owner/nothing: check the spelling; MODELSCOPE_API_TOKEN is needed for a private one",
        ),
        (
            "owner/nothing",
            TOKEN,
            "knows no data set owner/nothing: .* MODELSCOPE_API_TOKEN may lack the right to read it",
        ),
        (
            "owner/rows",
            "",
            r"refuses owner/rows \(HTTP 401\): ask for access at http.*/datasets/owner/rows .*now not set",
        ),
        ("owner/rows", TOKEN, r"refuses owner/rows \(HTTP 403\): .* MODELSCOPE_API_TOKEN .*now set, but not enough"),
    ],
)
def test_each_refusal_says_what_to_do(
    scope: ModelScope, name: str, token: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope.forbidden.add("owner/rows")
    if token:
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", token)
    with pytest.raises(MachineError, match=said) as error:
        listed(wanted=Wanted(name, setting="DATASET_FILE"))
    assert TOKEN not in str(error.value)


def test_a_revision_that_is_none_is_named(scope: ModelScope) -> None:
    with pytest.raises(MachineError, match=r"owner/rows has no revision v2: see its branches and tags at http"):
        listed(wanted=Wanted("owner/rows", "v2", "DATASET_FILE"))
    assert listed(wanted=Wanted("owner/rows", "v1", "DATASET_FILE")).commit == COMMIT


def test_a_wait_that_is_asked_for_is_kept_and_one_too_long_is_told(
    scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(modelscope_http.time, "sleep", slept.append)
    scope.first = [(429, {"Retry-After": "7"})]
    said: list[str] = []
    assert listed(said).commit == COMMIT
    assert 7 in slept
    assert said == [f"ModelScope ({scope.address}) asks to wait 7 s"]
    scope.first = [(429, {"Retry-After": "3600"})]
    with pytest.raises(Unreachable, match=r"fails on owner/rows \(HTTP 429\): try again in 3600 s"):
        modelscope_http.asked(WANTED, "repo/tree", {}, said.append)


def test_a_server_that_fails_is_asked_again_and_then_given_up(scope: ModelScope) -> None:
    scope.first = [(502, {})] * (modelscope_http.ATTEMPTS - 1)
    assert listed().commit == COMMIT
    scope.first = [(500, {})] * modelscope_http.ATTEMPTS
    with pytest.raises(Unreachable, match=r"fails on owner/rows at the revision v1 \(HTTP 500\): try again later"):
        listed(wanted=Wanted("owner/rows", "v1", "DATASET_FILE"))


def test_a_silent_server_is_not_waited_for_for_ever(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    scope.silent = 5.0
    monkeypatch.setattr(modelscope_http, "READ", 0.1)
    monkeypatch.setattr(modelscope_http, "ATTEMPTS", 1)
    with pytest.raises(Unreachable, match="cannot be reached for owner/rows"):
        listed()


def test_an_answer_that_never_ends_is_given_up(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelscope_http, "LONGEST_ANSWER", -1.0)
    with pytest.raises(Unreachable, match="cannot be reached for owner/rows"):
        listed()
    monkeypatch.undo()


def test_an_answer_that_is_too_large_is_none_of_its_api(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelscope_http, "MOST_ANSWER", 100)
    with pytest.raises(Unreachable, match="answers with something else than its API"):
        listed()


@pytest.mark.parametrize(
    "page",
    [b"<html><form>Log in</form></html>", b"[]", b"", b"7", b"null", b"[" * 100_000, b'{"Data": []}', b'{"Data": {"Files": 7}}',
     b'{"Data": {"Files": [7]}}', b'{"Data": {"Files": [{}]}}', b'{"Data": {"Files": [{"Path": 7}]}}',
     b'{"Data": {"Files": [{"Path": "a", "Size": -1}]}}', b'{"Data": {"Files": [{"Path": "a", "Sha256": []}]}}',
     b'{"Data": {"Files": [], "LatestCommitter": 7}}', b'{"Data": {"Files": [], "LatestCommitter": {"Id": 7}}}'],
)  # fmt: skip
def test_an_answer_that_is_not_modelscopes_is_said_to_be_a_proxys(scope: ModelScope, page: bytes) -> None:
    scope.page = page
    said = f"ModelScope ({scope.address}) answers with something else than its API: a proxy or a login page?"
    with pytest.raises(Unreachable, match=re.escape(said)):
        listed()


def test_whatever_is_answered_ends_in_words(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(23)
    scope.spoil = lambda raw: (
        spoiled_json(raw, chance) if raw.startswith((b"{", b"[")) and chance.random() < 0.5 else raw
    )
    for _ in range(60):
        try:
            found = modelscope._asked(WANTED, [].append)
            modelscope.fetch(WANTED, found, list(found.files)[:1], [].append)
        except FinetuneError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../../evil.jsonl", "a file whose name leads elsewhere"),
        ("/etc/evil.jsonl", "a file whose name leads elsewhere"),
        ("data/../../x", "a file whose name leads elsewhere"),
        ("data//x", "a file whose name leads elsewhere"),
        ("a\\b", "a file whose name leads elsewhere"),
        ("a" * 1001, "a file whose name has more than 1,000 characters"),
        ("", "a file whose name leads elsewhere"),
        ("a\x1b[2J", "a file whose name holds control characters"),
    ],
)
def test_a_name_that_leads_out_of_its_folder_is_refused_before_anything_is_fetched(
    scope: ModelScope, path: str, said: str, tmp_path: Path
) -> None:
    scope.stores["datasets"]["owner/rows"][path] = b"x"
    with pytest.raises(UserError, match=f"owner/rows has {said}"):
        listed()
    assert not (tmp_path / "ms").exists()


def test_a_listing_of_thousands_is_read_page_by_page(scope: ModelScope) -> None:
    scope.stores["datasets"]["owner/rows"] |= {f"many/{number:05}.jsonl": b"{}" for number in range(1234)}
    assert len(listed().files) == len(DATA) + 1234


def test_a_server_that_knows_no_pages_is_not_asked_for_ever(scope: ModelScope) -> None:
    scope.page = scope.envelope({"Files": [scope.entry(f"{number}.jsonl", b"") for number in range(modelscope.PAGE)]})
    assert len(listed().files) == modelscope.PAGE
    assert len(scope.requests) == 2


def test_more_files_than_can_be_meant_are_refused(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.hubs.listing.MOST", 2)
    with pytest.raises(UserError, match="owner/rows has more than 2 files"):
        listed()


def test_without_a_network_the_message_names_the_other_hub(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://me:{TOKEN}@{nowhere().removeprefix('http://')}")
    other = re.escape("The Hugging Face Hub may have it under the same name: ".replace("The", "the"))
    with pytest.raises(
        Unreachable, match=rf"cannot be reached for owner/rows: .*{other}DATASET_FILE = hf:owner/rows:default:train$"
    ) as error:
        listed(wanted=Wanted("owner/rows", None, "DATASET_FILE", ":default:train"))
    assert TOKEN not in str(error.value)
    with pytest.raises(Unreachable, match=rf"{other}BASE_MODEL_NAME = owner/rows$"):
        listed(wanted=Wanted("owner/rows"))


def test_a_commit_that_was_fetched_is_never_asked_for_again(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched("data/train.jsonl")
    scope.requests.clear()
    pinned = Wanted("owner/rows", COMMIT, "DATASET_FILE")
    scope.stores["datasets"]["owner/rows"]["data/train.jsonl"] = b"other"
    assert fetched("data/train.jsonl", wanted=pinned) == DATA["data/train.jsonl"]
    assert scope.requests == []


def test_offline_the_cache_alone_serves(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched("data/train.jsonl")
    scope.requests.clear()
    offline(monkeypatch)
    assert fetched("data/train.jsonl") == DATA["data/train.jsonl"]
    with pytest.raises(
        MachineError, match="data/long.bin was never downloaded, and HF_HUB_OFFLINE is set: unset it once"
    ):
        fetched("data/long.bin")
    with pytest.raises(
        MachineError, match="owner/other was never downloaded from ModelScope, and HF_HUB_OFFLINE is set"
    ):
        listed(wanted=Wanted("owner/other", setting="DATASET_FILE"))
    assert scope.requests == []


def test_without_a_network_the_list_from_before_serves_and_this_is_said(
    scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched("data/train.jsonl")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", nowhere())
    said: list[str] = []
    assert fetched("data/train.jsonl", said) == DATA["data/train.jsonl"]
    assert said[0].endswith("using the list of its files from before")


@pytest.mark.parametrize("content", ["", "[]", '{"commit": 7}', '{"commit": "x", "files": {"../x": {}}}', "\xff"])
def test_a_damaged_record_of_a_listing_is_asked_for_anew(scope: ModelScope, content: str, tmp_path: Path) -> None:
    listed()
    for record in (tmp_path / "ms").rglob("listings/*"):
        record.write_text(content, "latin-1")
    assert set(listed().files) == set(DATA)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MODELSCOPE_ENDPOINT", "modelscope.cn", "MODELSCOPE_ENDPOINT needs https:// in front of modelscope.cn"),
        ("MODELSCOPE_ENDPOINT", "https://host:0", "MODELSCOPE_ENDPOINT = https://host:0 is no address"),
        ("HTTP_PROXY", "nonsense://x", "the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY cannot be used"),
    ],
)
def test_an_address_that_is_none_is_told_by_its_variable(
    scope: ModelScope, variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(MachineError, match=said):
        listed()


def test_the_older_variable_names_a_host_alone(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    assert modelscope_http.endpoint() == "https://www.modelscope.cn"
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "www.modelscope.ai")
    assert modelscope_http.endpoint() == "https://www.modelscope.ai"


def test_a_folder_that_cannot_be_written_is_told(scope: ModelScope, tmp_path: Path) -> None:
    (tmp_path / "ms").write_text("")
    with pytest.raises(MachineError, match=f"{tmp_path / 'ms'}.* cannot be written"):
        fetched("data/train.jsonl")


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = listed()
    monkeypatch.setattr("training.hubs.wanted.shutil.disk_usage", lambda path: type("Free", (), {"free": 10}))
    with pytest.raises(
        MachineError, match="owner/rows takes 0 MB, .* has 0 MB left: free some, or move MODELSCOPE_CACHE"
    ):
        modelscope.fetch(WANTED, found, ["data/long.bin"], [].append)
    assert not any("/lfs/" in path for path, _, _ in scope.requests)
