"""A run keeps the commit of a base model on a hub, and goes on with it whatever the hub has later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.at_hubs import led_to
from tests.support.folders import folder
from tests.support.hubs import COMMIT, Hub, ModelScope
from tests.support.plans import a_base_model
from tests.support.settings import a_settings
from training import base_model, runs
from training import settings as loading
from training.base_model import BaseModel, sources
from training.control import resume
from training.errors import UserError
from training.plan import choices
from training.report import gathering, schema
from training.report.schema import BaseFacts, Report, RunFacts
from training.runs import checkpoint
from training.settings import Settings, contradictions
from training.settings.command_line import Arguments
from training.system import files

LATER = "c" * 40
NAMES = {"org/good": "a" * 40, "ms:org/good": COMMIT}


@pytest.fixture
def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, ModelScope]]:
    content = {file.name: file.read_bytes() for file in folder(tmp_path / "served").iterdir()}
    hub, scope = Hub({"org/good": dict(content)}), ModelScope({"org/good": dict(content)})
    led_to(monkeypatch, tmp_path, hub, scope)
    yield hub, scope
    hub.server.shutdown()
    scope.server.shutdown()


def moved_on(hub: Hub, scope: ModelScope) -> None:
    """Somebody uploads another version of the model to both; the older one is gone."""
    for store in (hub.models, scope.stores["models"]):
        store["org/good"]["tokenizer.json"] += b" "
    hub.commits = {"main": LATER}
    scope.newest = {"Id": LATER, "ShortId": LATER[:8], "Name": "somebody"}


def with_rows(folder: Path, **values: object) -> Settings:
    """Settings with a data file that is there."""
    (folder / "rows.jsonl").write_text("{}", encoding="utf-8")
    return a_settings(DATASET_FILE=folder / "rows.jsonl", **values)


def located(settings: Settings) -> tuple[Settings, BaseModel]:
    """As a plan does it."""
    base = base_model.locate(settings.model)
    return choices.pin(settings, base), base


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_with_the_commit_that_it_began_with(
    name: str, hubs: tuple[Hub, ModelScope], tmp_path: Path
) -> None:
    settings, began = located(with_rows(tmp_path, BASE_MODEL_NAME=name))
    assert (settings.model.revision, began.revision) == (NAMES[name], NAMES[name])
    (tmp_path / "config.ini").write_text(settings.to_ini(), encoding="utf-8")
    moved_on(*hubs)
    assert base_model.locate(a_settings(BASE_MODEL_NAME=name).model).revision == LATER, "or nothing is shown"

    own, later = located(loading.of_run(tmp_path / "config.ini"))
    assert (later.revision, later.path) == (began.revision, began.path)
    assert own.model.revision == NAMES[name]
    checkpoint.refuse_mismatch(
        checkpoint.kept(checkpoint.fingerprint(settings, "", began, "")), checkpoint.fingerprint(own, "", later, "")
    )


def test_the_plan_says_which_commit_a_name_stands_for(hubs: tuple[Hub, ModelScope]) -> None:
    for revision, said in ((None, "the newest of org/good, which stands"), ("v2", "v2 stands")):
        settings, base = located(a_settings(BASE_MODEL_NAME="org/good", REVISION=revision))
        assert settings.choices == (("Model.REVISION", base.revision, f"{said} for this commit now"),)
    commit = "b" * 40
    settings, _ = located(a_settings(BASE_MODEL_NAME="org/good", REVISION=commit))
    assert settings.choices == (), "it is written already"


@pytest.mark.parametrize(
    ("name", "revision"), [("/a/folder", None), ("ms:org/good", "listing-0123456789abcdef"), ("qwen3:0.6b", "a" * 40)]
)
def test_nothing_is_pinned_that_could_not_be_asked_for_by_its_commit(name: str, revision: str | None) -> None:
    settings = a_settings(BASE_MODEL_NAME=name)
    assert choices.pin(settings, replace(a_base_model(), revision=revision)) == settings


def old_run(path: Path, name: str, revision: str | None, commit: str | None) -> runs.Run:
    """A run of a version that wrote the commit into its record only."""
    (path / runs.CHECKPOINTS).mkdir(parents=True)
    settings = with_rows(path, BASE_MODEL_NAME=name, REVISION=revision)
    (path / runs.CONFIG).write_text(settings.to_ini(), encoding="utf-8")
    files.write_json(path / runs.STATUS, {"state": "interrupted"})
    base = BaseFacts(name=name, kind="hub", revision=commit)
    record = Report(name="mine", run=RunFacts(path.name, str(path)), base=base, settings={})
    files.write_json(path / runs.CHECKPOINTS / gathering.PLANNED, schema.plain(record))
    return runs.open_run(path)


@pytest.mark.parametrize("revision", [None, "main"])
@pytest.mark.parametrize("name", ["org/good", "qwen3:0.6b"])
def test_a_run_of_an_older_version_goes_on_with_the_commit_of_its_record(
    name: str, revision: str | None, tmp_path: Path
) -> None:
    run = old_run(tmp_path / "run", name, revision if name == "org/good" else None, "a" * 40)
    own = resume.settings_of(run, Arguments(command="resume"))
    assert own.model.revision == "a" * 40
    assert contradictions.find(own) == []
    # What its checkpoints have of the setting is what was written then.
    base = replace(a_base_model(), revision="a" * 40)
    stored = checkpoint.fingerprint(own, "", base, "") | {"Model.REVISION": revision}
    checkpoint.refuse_mismatch(checkpoint.kept(stored), checkpoint.fingerprint(own, "", base, ""))
    with pytest.raises(UserError, match=f"base model revision = '{'a' * 40}' in the run, '{LATER}' now"):
        checkpoint.refuse_mismatch(stored, checkpoint.fingerprint(own, "", replace(base, revision=LATER), ""))


def test_a_run_without_a_commit_in_its_record_goes_on_as_it_did(tmp_path: Path) -> None:
    assert resume.settings_of(old_run(tmp_path / "a", "org/good", "main", None), Arguments()).model.revision == "main"
    run = old_run(tmp_path / "b", "org/good", None, "a" * 40)
    (run.path / runs.CHECKPOINTS / gathering.PLANNED).write_text("{")
    assert resume.settings_of(run, Arguments()).model.revision is None


def test_a_revision_in_a_file_of_settings_is_refused_for_a_name_as_ollama_has_it() -> None:
    with pytest.raises(UserError, match="only models on the Hub or ModelScope have revisions"):
        a_settings(BASE_MODEL_NAME="qwen3:0.6b", REVISION="main")


@pytest.mark.parametrize("name", NAMES)
def test_a_commit_that_is_here_is_not_asked_for_again(name: str, hubs: tuple[Hub, ModelScope]) -> None:
    hub, scope = hubs
    settings, _ = located(a_settings(BASE_MODEL_NAME=name))
    hub.requests.clear()
    scope.requests.clear()
    located(settings)
    assert sources.peek(settings.model).parameters == 15 or name.startswith("ms:")
    assert (hub.requests, scope.requests) == ([], [])
