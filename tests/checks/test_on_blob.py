"""An adapter on a model that Ollama has, held against base and adapter as trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import small
from tests.support.ollama_server import FakeOllama, Model, running
from training import llama
from training.checks import on_blob
from training.errors import RunError
from training.system import files
from training.to_gguf import adapter_gguf, conversion
from training.to_gguf.job import Job

pytestmark = [pytest.mark.tiny, pytest.mark.usefixtures("forks")]
undisturbed = small.undisturbed


@pytest.fixture(scope="module")
def job(undisturbed: Path) -> Job:
    return Job.of_run(undisturbed)


@pytest.fixture(scope="module")
def adapter(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "tiny.adapter.gguf"
    adapter_gguf.write(job.base, job.run.path / "adapter", path)
    return path


@pytest.fixture(scope="module")
def blob(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conversion.to_gguf(job.base, tmp_path_factory.mktemp("blob") / "base.F16.gguf")


def test_the_base_with_the_adapter_predicts_what_was_trained(job: Job, blob: Path, adapter: Path) -> None:
    check = on_blob.adapter_on_blob(job, blob, adapter)
    assert check.passed and not check.skipped, check.failure
    assert check.figures["mean_kl"] < 0.001
    with_it, without = (answered(blob, one, job) for one in (adapter, None))
    assert with_it != without, "the adapter is there"


def answered(blob: Path, adapter: Path | None, job: Job) -> float:
    with llama.opened(blob, adapter) as process:
        return float(llama.logits(process, [job.facts.sequences[0].ids])[0].sum())


def test_what_quantising_costs_is_reported_and_another_base_is_seen(
    job: Job, blob: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = tmp_path / "base.Q4_0.gguf"
    conversion.quantise(blob, coarse, "q4_0")
    check = on_blob.adapter_on_blob(job, coarse, adapter)
    assert check.passed
    assert check.figures["mean_kl"] > on_blob.adapter_on_blob(job, blob, adapter).figures["mean_kl"]
    monkeypatch.setattr(on_blob, "MOST_PERPLEXITY", 0.5)
    check = on_blob.adapter_on_blob(job, coarse, adapter)
    assert not check.passed
    assert "is it the model that was trained on?" in check.failure


@pytest.fixture
def own(job: Job, blob: Path, tmp_path: Path) -> Job:
    """The same run, as if its base had been unpacked from the file."""
    folder = tmp_path / f"base-1b-{files.sha256(blob)[:12]}"
    folder.symlink_to(job.base)
    return replace(job, facts=replace(job.facts, base=replace(job.facts.base, kind="ollama", path=folder, files={})))


def test_on_the_file_that_was_trained_on_an_adapter_is_held_to_what_a_merged_model_is(
    own: Job, job: Job, blob: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / f"sha256-{files.sha256(blob)}"
    stored.symlink_to(blob)
    made = on_blob.checks(own, stored, adapter)
    assert [check.name for check in made] == ["GGUF tokenizer", on_blob.NAME]
    assert all(check.passed and not check.skipped for check in made)
    assert made[-1].threshold.startswith("mean KL <= 0.02 nats")
    assert [check.name for check in on_blob.checks(job, stored, adapter)] == [on_blob.NAME]
    monkeypatch.setattr(on_blob, "KL", 0.0)
    broken = on_blob.adapter_on_blob(own, stored, adapter)
    assert not broken.passed
    assert broken.failure.startswith("the file that was trained on does not predict with the adapter on it")


def test_another_form_of_the_base_that_was_trained_on_is_not_taken_for_it(
    own: Job, blob: Path, adapter: Path, tmp_path: Path
) -> None:
    coarse = tmp_path / "base.Q4_0.gguf"
    conversion.quantise(blob, coarse, "q4_0")
    assert on_blob.is_own(own, blob) and not on_blob.is_own(own, coarse)
    assert "perplexity is finite" in on_blob.adapter_on_blob(own, coarse, adapter).threshold


def test_an_adapter_that_does_not_fit_is_told(job: Job, adapter: Path, embedded: Path, tmp_path: Path) -> None:
    other = conversion.vocabulary(embedded, tmp_path / "vocabulary.gguf")
    with pytest.raises(RunError), llama.opened(other, adapter) as process:
        llama.logits(process, [[1, 2, 3]])


def test_the_file_of_a_base_is_found_by_what_the_server_says_of_it(
    blob: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "ab" * 32
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"sha256-{digest}").symlink_to(blob)
    with running(FakeOllama()) as fake:
        fake.models["base:1b"] = Model({}, "one")
        assert on_blob.file_of(fake.server(), "base:1b") is None
        fake.breaks = {"file": f"/somewhere/else/blobs/sha256-{digest}"}
        monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
        assert on_blob.file_of(fake.server(), "base:1b") == tmp_path / "blobs" / f"sha256-{digest}"
        assert on_blob.file_of(fake.server(), "nothing") is None
