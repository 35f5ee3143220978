"""Data sets on the Hugging Face Hub and on ModelScope as DATASET_FILE (training/data/hub_files.py), from small hubs on loopback."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.at_hubs import led_to, nowhere, offline
from tests.support.hubs import COMMIT, Hub, ModelScope
from training import settings
from training.data import dataset, hub_files
from training.errors import MachineError, UserError
from training.settings import Settings

TOKEN = "hf_secretsecretsecretsecret"
AT = {"hf": "a" * 40, "ms": COMMIT}


def rows(count: int, word: str = "a") -> bytes:
    return b"".join(
        json.dumps({"prompt": f"{word}{n}", "completion": f"{word}{n}?"}).encode() + b"\n" for n in range(count)
    )


def content() -> dict[str, dict[str, bytes]]:
    return {
        "owner/one": {"README.md": b"# one", "rows.jsonl": rows(6), "paper.pdf": b"%PDF"},
        "owner/two": {"data/train-00000-of-00002.jsonl": rows(4), "data/train-00001-of-00002.jsonl": rows(3, "b"),
                      "data/test-00000-of-00001.jsonl": rows(2, "t")},
        "owner/large": {"train.jsonl.gz": gzip.compress(rows(3)), "test.jsonl": rows(40_000, "long")},
        "owner/program": {"program.py": b"import os", "train.jsonl": rows(3)},
        "owner/bad": {"train.jsonl": rows(1) + b"{\n"},
        "owner/odd": {"README.md": b"---\nconfigs:\n- config_name: 'a b'\n  data_files: x.jsonl\n---\n", "x.jsonl": rows(2)},
        "org/gated": {"train.jsonl": rows(2)},
    }  # fmt: skip


@pytest.fixture
def hub() -> Iterator[Hub]:
    running = Hub({}, data=content())
    yield running
    running.server.shutdown()


@pytest.fixture
def scope() -> Iterator[ModelScope]:
    running = ModelScope(data=content())
    yield running
    running.server.shutdown()


@pytest.fixture(autouse=True)
def led(hub: Hub, scope: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    led_to(monkeypatch, tmp_path, hub, scope)


def given(folder: Path, written: str, more: str = "") -> Settings:
    config = folder / "config.ini"
    config.write_text(f"[Dataset]\nDATASET_FILE = {written}\n{more}", "utf-8")
    return settings.load(config)


def pinned(folder: Path, written: str, more: str = "", said: list[str] | None = None) -> Settings:
    return hub_files.pinned(given(folder, written, more), (said if said is not None else []).append)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process."""
    monkeypatch.setattr(hub_files, "_known", {})


both = pytest.mark.parametrize("at", ["hf", "ms"])


@both
def test_a_data_set_is_pinned_to_its_commit_and_read_by_our_own_reader(at: str, tmp_path: Path) -> None:
    said: list[str] = []
    found = pinned(tmp_path, f"{at}:owner/one", said=said)
    assert str(found.dataset.dataset_file) == f"{at}:owner/one@{AT[at]}:default:train"
    assert said[-1] == f"{at}:owner/one is {at}:owner/one@{AT[at]}:default:train: rows.jsonl"
    data = dataset.load(found, tmp_path / "cache")
    assert data.counts.rows == 6
    assert [Path(path).name for path in data.sha256] == ["rows.jsonl"]


@both
def test_the_settings_that_a_run_keeps_name_the_commit_and_give_the_same_rows(
    at: str, tmp_path: Path, hub: Hub, scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pinned(tmp_path, f"{at}:owner/two:train*2", f"VALIDATION_FILE = {at}:owner/two:test\n")
    before = dataset.load(first, tmp_path / "cache")
    own = tmp_path / "run.ini"
    own.write_text(first.to_ini(), "utf-8")
    for store in (hub.data, scope.stores["datasets"]):
        store["owner/two"] = {"data/train-00000-of-00001.jsonl": rows(9, "new")}
    hub.commits["main"] = "c" * 40
    hub.requests.clear()
    scope.requests.clear()
    forget(monkeypatch)
    again = hub_files.pinned(settings.of_run(own), [].append)
    assert again.dataset == first.dataset
    after = dataset.load(again, tmp_path / "cache2")
    assert (after.sha256, after.used, after.held_out) == (before.sha256, before.used, before.held_out)
    assert hub.requests == scope.requests == []


@both
def test_a_split_of_several_files_has_the_share_of_the_data_set(at: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(rows(5, "m"))
    found = pinned(tmp_path, f"mine.jsonl, {at}:owner/two:train*2", f"VALIDATION_FILE = {at}:owner/two:test\n")
    assert str(found.dataset.dataset_file) == f"{mine}, {at}:owner/two@{AT[at]}:default:train*2"
    data = dataset.load(found, tmp_path / "cache")
    assert list(data.used.values()) == [5, 8, 6]
    assert list(data.held_out["validation"].values()) == [2]
    assert data.counts.validation == 2


@both
def test_one_file_can_be_named(at: str, tmp_path: Path) -> None:
    found = pinned(tmp_path, f"{at}:owner/large/train.jsonl.gz")
    assert str(found.dataset.dataset_file) == f"{at}:owner/large/train.jsonl.gz@{AT[at]}"
    assert dataset.load(found, tmp_path / "cache").counts.rows == 3
    with pytest.raises(
        UserError, match=rf"DATASET_FILE = {at}:owner/one/x.jsonl: it has no file x.jsonl; there are rows.jsonl$"
    ):
        pinned(tmp_path, f"{at}:owner/one/x.jsonl")
    with pytest.raises(UserError, match=r"paper.pdf is not read here$"):
        pinned(tmp_path, f"{at}:owner/one/paper.pdf")


@both
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{0}:owner/two", "has several splits, and none is named; write DATASET_FILE = {0}:owner/two:default:train, or {0}:owner/two:default:test"),
        ("{0}:owner/two:dev", "has no configuration or split dev; write DATASET_FILE = {0}:owner/two:default:train, or "),
        ("{0}:owner/two@main", "has several splits, and none is named; write DATASET_FILE = {0}:owner/two@main:default:train, or "),
        ("{0}:owner/program", "this data set is a program (program.py), which is not run; {0}:owner/program/FILE names one of its files"),
        ("{0}:owner/odd", "a b:train has a name that cannot be written here; name a file of it, as in {0}:owner/odd/x.jsonl"),
    ],
)  # fmt: skip
def test_what_is_not_one_file_of_rows_is_refused_with_the_setting(
    at: str, written: str, said: str, tmp_path: Path, scope: ModelScope
) -> None:
    scope.revisions.add("main")
    place = f"config.ini:2: [Dataset] DATASET_FILE = {written.format(at)}: {said.format(at)}"
    with pytest.raises(UserError, match=re.escape(place)):
        pinned(tmp_path, written.format(at))


def test_a_program_is_never_fetched(tmp_path: Path, hub: Hub, scope: ModelScope) -> None:
    for at in ("hf", "ms"):
        with pytest.raises(UserError, match="is a program"):
            pinned(tmp_path, f"{at}:owner/program")
    asked = [*hub.requests, *(f"{path} {query}" for path, query, _ in scope.requests)]
    assert not any("program.py" in request or "train.jsonl" in request for request in asked)


@both
def test_bad_rows_are_told_by_file_and_line(at: str, tmp_path: Path) -> None:
    found = pinned(tmp_path, f"{at}:owner/bad")
    with pytest.raises(UserError, match=r"datasets--owner--bad/snapshots/\w+/train.jsonl:2: not JSON"):
        dataset.load(found, tmp_path / "cache")


def test_two_names_of_the_same_files_are_no_validation(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"VALIDATION_FILE = hf:owner/one::train: has the files of \[Dataset\] DATASET_FILE"
    ):
        pinned(tmp_path, "hf:owner/one", "VALIDATION_FILE = hf:owner/one::train\n")


@pytest.mark.parametrize("other", ["hf:owner/one::train", "hf:owner/one/rows.jsonl", "hf:owner/one@main"])
def test_two_names_of_the_same_files_are_not_taken_twice_without_a_word(other: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DATASET_FILE = hf:owner/one, .*: .*one.* is named twice; "):
        pinned(tmp_path, f"hf:owner/one, {other}")


@both
def test_a_revision_that_is_none_is_told(at: str, tmp_path: Path) -> None:
    with pytest.raises(
        MachineError,
        match=rf"DATASET_FILE = {at}:owner/one@v3: owner/one has no revision v3: see its branches and tags at",
    ):
        pinned(tmp_path, f"{at}:owner/one@v3")


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        (
            "org/gated",
            "",
            "org/gated is gated: ask for access at http.*/datasets/org/gated with your account, .*now not set",
        ),
        ("org/gated", TOKEN, "org/gated is gated: .*now set, but not enough"),
        ("owner/nothing", "", "knows no owner/nothing: check the spelling; a private data set needs HF_TOKEN"),
        ("org/broken", "", r"fails on org/broken \(HTTP 500\): try again later"),
    ],
)
def test_each_refusal_of_the_hub_says_what_to_do(
    name: str, token: str, said: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.data["org/broken"] = {}
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(MachineError, match=said) as error:
        pinned(tmp_path, f"hf:{name}")
    assert TOKEN not in str(error.value)


def test_a_hub_that_asks_to_wait_is_told_with_its_time(hub: Hub, tmp_path: Path) -> None:
    hub.status = (429, {"Retry-After": "120"})
    with pytest.raises(MachineError, match=r"fails on owner/one \(HTTP 429\): try again in 120 s"):
        pinned(tmp_path, "hf:owner/one")


@pytest.mark.parametrize("page", [b"<html>Log in</html>", b"[]", b"", b"7", b'{"id": 7, "sha": []}', b"[" * 100_000])
def test_an_answer_that_is_not_the_hubs_is_said_to_be_a_proxys(page: bytes, hub: Hub, tmp_path: Path) -> None:
    hub.page = page
    with pytest.raises(MachineError, match="answers with something else than its API: .* or name a local file"):
        pinned(tmp_path, "hf:owner/one")


@pytest.mark.parametrize("name", ["owner/one", "owner/large"])
def test_a_file_that_is_not_the_one_that_the_hub_listed_is_refused_and_not_kept(
    name: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = {"owner/one": "rows.jsonl", "owner/large": "test.jsonl"}[name]
    hub.instead[file] = hub.data[name][file][:-2] + b"x\n"
    with pytest.raises(MachineError, match=rf"{name}: {file} is not the file that the Hub \(.*\) lists .*run again"):
        pinned(tmp_path, f"hf:{name}/{file}")
    hub.instead.clear()
    forget(monkeypatch)
    assert pinned(tmp_path, f"hf:{name}/{file}")


@pytest.mark.parametrize("path", ["../x.jsonl", "a/../../x.jsonl", "a\x1b[2J.jsonl"])
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_fetched(path: str, hub: Hub, tmp_path: Path) -> None:
    hub.data["owner/one"][path] = b"x"
    with pytest.raises(UserError, match="DATASET_FILE = hf:owner/one: owner/one has a file whose name"):
        pinned(tmp_path, "hf:owner/one")
    assert not any("resolve" in request for request in hub.requests)


def test_each_hub_that_cannot_be_reached_names_the_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    led_to(monkeypatch, tmp_path, nowhere(), nowhere())
    said = r"cannot be reached for owner/one: .* ModelScope may have it under the same name: VALIDATION_FILE = ms:owner/one:test$"
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(rows(5, "m"))
    with pytest.raises(MachineError, match=said):
        pinned(tmp_path, "mine.jsonl", "VALIDATION_FILE = hf:owner/one:test\n")
    said = r"ModelScope \(.*\) cannot be reached for owner/one: .* the Hugging Face Hub may have it .*: DATASET_FILE = hf:owner/one/rows.jsonl$"
    with pytest.raises(MachineError, match=said):
        pinned(tmp_path, "ms:owner/one/rows.jsonl")


@both
def test_offline_what_was_fetched_before_serves_and_nothing_is_asked(
    at: str, tmp_path: Path, hub: Hub, scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pinned(tmp_path, f"{at}:owner/one").dataset
    forget(monkeypatch)
    offline(monkeypatch)
    hub.requests.clear()
    scope.requests.clear()
    assert pinned(tmp_path, f"{at}:owner/one").dataset == before
    with pytest.raises(
        MachineError, match="was never downloaded.*HF_HUB_OFFLINE is set: unset it once, or name a local file"
    ):
        pinned(tmp_path, f"{at}:owner/two:train")
    assert hub.requests == scope.requests == []


@both
def test_a_part_of_a_data_set_from_before_is_not_taken_for_all_of_it(
    at: str, tmp_path: Path, hub: Hub, scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned(tmp_path, f"{at}:owner/two/data/train-00000-of-00002.jsonl")
    forget(monkeypatch)
    offline(monkeypatch)
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE is set"):
        pinned(tmp_path, f"{at}:owner/two:train")


def test_a_card_that_is_too_large_is_not_left_unread(hub: Hub, tmp_path: Path) -> None:
    hub.data["owner/one"]["README.md"] = b"#" * ((4 << 20) + 1)
    with pytest.raises(UserError, match=r"its README.md has 4,194,305 bytes, too many to be read; name a file of it"):
        pinned(tmp_path, "hf:owner/one")


@both
def test_replay_rows_may_be_of_a_data_set_on_a_hub(
    at: str, tmp_path: Path, hub: Hub, scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.jsonl").write_bytes(rows(12, "m"))
    more = f"VALIDATION_SPLIT = 0\nREPLAY_SHARE = 0.5\nREPLAY_FILE = {at}:owner/two:train\n"
    found = pinned(tmp_path, "mine.jsonl", more)
    assert found.dataset.replay_file == f"{at}:owner/two@{AT[at]}:default:train"
    data = dataset.load(found, tmp_path / "cache")
    assert (data.counts.train, data.counts.replay, len(data.replay)) == (12, 12, 12)
    # All of its files, each with its digest; the user's own rows are counted alone.
    assert {Path(path).name for path in data.replay["file"]} == {Path(path).name for path in data.sha256} - {
        "mine.jsonl"
    }
    assert len(data.sha256) == 3 and data.counts.rows == 12

    own = tmp_path / "run.ini"
    own.write_text(found.to_ini(), "utf-8")
    hub.requests.clear()
    scope.requests.clear()
    forget(monkeypatch)
    again = hub_files.pinned(settings.of_run(own), [].append)
    assert again.dataset == found.dataset
    assert dataset.load(again, tmp_path / "cache2").sha256 == data.sha256
    assert hub.requests == scope.requests == []


def test_a_replay_file_on_a_hub_is_not_asked_for_without_a_share(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(rows(12, "m"))
    found = pinned(tmp_path, "mine.jsonl", "REPLAY_FILE = hf:owner/two:train\n")
    assert (found.dataset.replay_file, hub.requests) == ("hf:owner/two:train", [])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("REPLAY_FILE = hf:owner/two", "REPLAY_FILE = hf:owner/two: has several splits, and none is named; write REPLAY_FILE = hf:"),
        ("REPLAY_FILE = hf:owner/two@main:train", "has the files of [Dataset] DATASET_FILE: its rows are trained on already"),
        ("REPLAY_FILE = hf:owner/two:test\nVALIDATION_FILE = hf:owner/two::test",
         "has the files of [Dataset] VALIDATION_FILE: they would be measured on rows already seen"),
        ("REPLAY_FILE = hf:owner", "REPLAY_FILE = hf:owner: is written hf:owner/name"),
    ],
)  # fmt: skip
def test_a_replay_file_on_a_hub_that_will_not_do_is_refused_with_the_setting(
    more: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        pinned(tmp_path, "hf:owner/two:train", f"REPLAY_SHARE = 0.1\n{more}\n")
