"""Against a real Ollama: tests/run.sh --ollama (`ollama` on the PATH, or OLLAMA=path, or several with colons between)."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import ollama_exchange
from tests.support.live_ollama import Live, programs
from tests.support.ollama_server import FakeOllama, running
from tests.support.paths import ROOT
from tests.support.session import once
from tests.support.settings import a_settings
from training import ollama
from training.base_model import load_tokenizer
from training.checks import on_blob, served, served_answers
from training.checks.served import Subject
from training.checks.served_prompts import Trained
from training.control import whois
from training.data import ChatTemplate, chat_template, serving, tool_form
from training.errors import RunError
from training.ollama import Server, asking, delivery, modelfile, tool_parts
from training.settings import command_line
from training.system import files
from training.to_gguf import adapter_gguf, conversion, reader_metadata
from training.to_gguf.chat import chat_of, functions_by_name
from training.to_gguf.job import Job

pytestmark = pytest.mark.ollama
TEMPLATES = Path(sys.prefix) / "llama.cpp/models/templates"
NUM_CTX = 2048


@pytest.fixture(scope="session", params=programs() or ["none"], ids=lambda path: path.replace("/", "_")[-24:])
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def live(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    one = Live(program, tmp_path_factory.mktemp("live"))
    yield one
    one.end()


@pytest.fixture
def own(program: str, tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """A server of this test alone, which it may kill."""
    made: list[Live] = []

    def start(**options: int) -> Live:
        (tmp_path / "own").mkdir(exist_ok=True)
        made.append(Live(program, tmp_path / "own", **options))
        return made[-1]

    yield start
    for one in made:
        one.end()


@pytest.fixture(scope="session")
def tiny_f16(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    def make(folder: Path) -> None:
        conversion.to_gguf(tiny_model, folder / "tiny.F16.gguf")

    return once(tmp_path_factory, "tiny f16", make)[0] / "tiny.F16.gguf"


def request_for(gguf: Path, folder: Path) -> ollama.CreateRequest:
    """A model of one file that is beside no Modelfile."""
    (folder / gguf.name).symlink_to(gguf)
    (folder / "Modelfile").write_text(f'FROM ./{gguf.name}\nTEMPLATE """{ollama_exchange.TEMPLATE}"""\n')
    return ollama.of_modelfile(folder / "Modelfile")


@pytest.fixture(scope="session")
def f16(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> Path:
    """The embedded model as GGUF: it knows where an answer ends."""

    def make(folder: Path) -> None:
        conversion.to_gguf(embedded, folder / "model.F16.gguf")

    return once(tmp_path_factory, "served f16", make)[0] / "model.F16.gguf"


@pytest.fixture
def subject(tmp_path: Path, embedded: Path, tiny_f16: Path) -> Callable[..., Subject]:
    """A model as it would be exported after a training with another family's chat template: a tiny one, whose tokenizer is
    the embedded model's, or `weights`."""

    def make(
        family: str | None,
        pairs: Mapping[str, object] | None = None,
        weights: Path | None = None,
        asked: int = 0,
        tools: str = "",
        thoughts: bool = False,
    ) -> Subject:
        tokenizer = load_tokenizer(embedded)
        values = {"Model.CHAT_TEMPLATE": str(TEMPLATES / f"{family}.jinja")} if family else {}
        template = chat_template.choose(None, a_settings(tmp_path, **values), tokenizer)
        if tools == tool_form.OLLAMA:
            template = functions_by_name(template)
        template, _, _ = serving.close(template, tokenizer, thoughts)
        gguf = tmp_path / "model.F16.gguf"
        with_pairs(weights or tiny_f16, gguf, {**reader_metadata.pairs(tokenizer, template), **(pairs or {})})
        one = made(gguf, template, tokenizer, asked)
        return replace(one, trained=replace(one.trained, tools=tools, thoughts=thoughts))

    return make


def made(gguf: Path, template: ChatTemplate, tokenizer: object, asked: int) -> Subject:
    chat = chat_of(template, adds_bos=False)
    stops = template.end_tokens or (template.eos,)
    path = gguf.with_name("Modelfile")
    path.write_text(ollama.compose(gguf.name, chat, stops=stops, num_ctx=NUM_CTX))
    return Subject(
        trained=Trained(template=template, tokenizer=tokenizer, num_ctx=NUM_CTX),
        request=ollama.of_modelfile(path),
        gguf=gguf,
        exceptions=ollama.verify(path, chat, stops).exceptions,
        questions=served_answers.questions(template, tokenizer, (), NUM_CTX)[:asked],
    )


def with_pairs(source: Path, target: Path, pairs: dict) -> None:
    """A copy of a GGUF file with other metadata, written by llama.cpp's own tool."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = GGUFReader(source)
    kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, str: GGUFValueType.STRING}
    details = {key: MetadataDetails(kinds[type(value)], value) for key, value in pairs.items()}
    writer = GGUFWriter(target, "llama")
    copy_with_new_metadata(reader, writer, details, [])


def proved(live: Live, one: Subject, name: str = "proved") -> served.Proof:
    server = live.server()
    with delivery.made(server, one.request, name, lambda line: None) as model:
        return served.prove(server, model.name, one)


FAMILIES = (
    None,
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3.5-4B",
    "HuggingFaceTB-SmolLM3-3B",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "microsoft-Phi-3.5-mini-instruct",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-4.1",
)

WIDE = {"llama.context_length": NUM_CTX}  # the tiny model has 512 tokens, more than that take some chats with functions
KNOW_TOOLS = ("Qwen", "meta-llama", "mistralai", "ibm")
BY_NAME = "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "ibm-granite-granite-4.1"  # whose functions TEMPLATE writes
THINK = ("Qwen-Qwen3-0.6B",)  # whose thoughts it writes, too
ONLY_THINK = "HuggingFaceTB-SmolLM3-3B", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B"  # whose thoughts it writes alone


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_served_is_what_was_trained(live: Live, subject, family: str | None, record_property) -> None:
    one = subject(family)
    if one.request.template is None and modelfile.is_before_native(live.version):
        pytest.skip(f"Ollama {live.version} has no way to run a model without TEMPLATE")
    proof = proved(live, one)
    print(f"\n{family}: {proof.line}", *proof.notes, *proof.failures, sep="\n    ")
    assert not proof.failures
    assert proof.served.rendered_differently == 0
    assert proof.served.counted_differently == 0
    assert proof.served.template in ("modelfile", "gguf")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family and family.startswith(KNOW_TOOLS)])
def test_functions_are_served_as_they_are_trained(live: Live, subject, family: str) -> None:
    one = subject(family, tools="ollama", pairs=WIDE)
    if one.request.template is None and modelfile.is_before_native(live.version):
        pytest.skip(f"Ollama {live.version} has no way to run a model without TEMPLATE")
    proof = proved(live, one)
    print(f"\n{family}: {proof.line}", *proof.notes, *proof.failures, sep="\n    ")
    assert not proof.failures
    assert one.trained.template.tools_by_name == (family in BY_NAME)
    if family in BY_NAME:
        assert (proof.served.tools, proof.served.template) == ("11 of 11", "modelfile")
    elif modelfile.is_before_native(live.version):
        assert proof.served.tools == "refused"
        assert any("this Ollama refuses requests with them" in note for note in proof.notes)
    else:
        # Llama's takes one call at once only.
        assert proof.served.tools in ("11 of 11", "10 of 10")


@pytest.mark.parametrize("tools", ["", "ollama"], ids=["alone", "with functions"])
@pytest.mark.parametrize("family", THINK)
def test_thoughts_are_served_as_they_are_trained(live: Live, subject, family: str, tools: str) -> None:
    proof = proved(live, subject(family, tools=tools, thoughts=True, pairs=WIDE))
    print(f"\n{family}: {proof.line}", *proof.notes, *proof.failures, sep="\n    ")
    assert not proof.failures
    assert not any("thoughts" in note for note in proof.notes)
    chats = 72 if tools else 16
    assert proof.line.endswith(f"with thoughts {chats} of {chats}")
    # Where TEMPLATE knows no functions, servers since 0.30 have a chat template that knows more.
    ours = tools or modelfile.is_before_native(live.version)
    assert proof.served.template == ("modelfile" if ours else "gguf")
    assert proof.served.tools == ("11 of 11" if tools else "")


@pytest.mark.parametrize("family", ONLY_THINK)
def test_thoughts_are_served_by_a_template_that_writes_no_functions(live: Live, subject, family: str) -> None:
    proof = proved(live, subject(family, thoughts=True, pairs=WIDE))
    print(f"\n{family}: {proof.line}", *proof.notes, *proof.failures, sep="\n    ")
    assert not proof.failures
    assert "with thoughts" in proof.line
    if proof.served.template == "modelfile":
        assert not any("otherwise than trained" in note for note in proof.notes)
    else:
        assert not modelfile.is_before_native(live.version) and "DeepSeek" in family


@pytest.mark.parametrize("family", THINK)
def test_a_model_that_was_trained_without_thoughts_is_asked_for_none(live: Live, subject, family: str) -> None:
    """Whatever a request says of thinking: the empty thought that stood before every answer stands in every prompt."""
    one = subject(family, tools="ollama", pairs=WIDE)
    server, chat = live.server(), [{"role": "user", "content": "x"}]
    with delivery.made(server, one.request, "proved", lambda line: None) as model:
        prompts = {asking.rendered(server, model.name, chat, think=think) for think in (None, True, False)}
    (prompt,) = prompts
    assert prompt.endswith("<|im_start|>assistant\n" + one.trained.template.opening)
    assert one.trained.template.opening.startswith("<think>\n\n</think>")


THOUGHTS, CALL = (
    "It is about the weather.",
    '<tool_call>\n{"name": "weather", "arguments": {"town": "Oslo"}}\n</tool_call>',
)
WEATHER = tool_parts.function("weather", town={"type": "string"})


def taught(folder: Path, tiny_model: Path, prompt: str, answer: str) -> Path:
    """The tiny model as GGUF that has learned one answer by heart."""
    import torch
    from transformers import AutoModelForCausalLM

    words = load_tokenizer(tiny_model)
    before, after = (words(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids, learned = torch.tensor([before + after]), torch.tensor(after)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        # The vocabulary is what costs: it is computed where something is learned.
        hidden = model.model(input_ids=ids).last_hidden_state[0, len(before) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), learned)
        if loss < 0.03:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.03
    shutil.copytree(tiny_model, folder / "taught")
    model.to(torch.bfloat16).save_pretrained(folder / "taught")
    conversion.to_gguf(folder / "taught", folder / "taught.F16.gguf")
    return folder / "taught.F16.gguf"


def streamed(server: ollama.Server, name: str, chat: list, **more: object) -> dict[str, object]:
    """The message that the parts of a streamed answer add up to."""
    body = {"model": name, "messages": chat, "options": {**asking.GREEDY, "num_predict": 200}, **more}
    message: dict[str, object] = {"role": "assistant", "content": "", "thinking": "", "tool_calls": []}
    for event in server.stream("/api/chat", body, "broke off"):
        for name in ("content", "thinking", "tool_calls"):
            message[name] += event["message"].get(name) or type(message[name])()
    return message


@pytest.mark.parametrize("thoughts", [True, False], ids=["thoughts", "no thoughts"])
@pytest.mark.parametrize("family", ["Qwen-Qwen2.5-7B-Instruct", *THINK])
def test_thoughts_and_calls_of_an_answer_come_in_their_fields(
    live: Live, subject, tiny_model: Path, tmp_path: Path, family: str, thoughts: bool
) -> None:
    if thoughts and family not in THINK:
        pytest.skip("it has no thoughts")
    template = subject(family, tools="ollama", thoughts=thoughts).trained.template
    chat: list = [{"role": "user", "content": "What is the weather in Oslo?"}]
    prompt = chat_of(template, False).with_functions(chat, [WEATHER], True)
    began = f"<think>\n{THOUGHTS}\n</think>\n\n" if thoughts else ""
    weights = taught(tmp_path, tiny_model, prompt, f"{began}{CALL}<|im_end|>")
    one = subject(family, tools="ollama", thoughts=thoughts, weights=weights)
    server = live.server()
    with delivery.made(server, one.request, "proved", lambda line: None) as model:
        said = streamed(server, model.name, chat, tools=[WEATHER])
        print(said)
        (called,) = said["tool_calls"]
        assert (called["function"]["name"], called["function"]["arguments"]) == ("weather", {"town": "Oslo"})
        assert said["content"].strip() == ""
        assert said["thinking"].strip() == (THOUGHTS if thoughts else "")
        # What came is handed back as it came.
        answered = [*chat, said, {"role": "tool", "content": "rain", "tool_name": "weather"}]
        written = asking.rendered(server, model.name, answered, [WEATHER])
        if family in THINK and not thoughts:  # as the Modelfile says of it
            form = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
            for think, begins in ((None, ""), (False, "{")):
                said = streamed(server, model.name, chat, tools=[WEATHER], format=form, think=think)
                assert said["content"].strip()[:1] == begins
    bare = prompt.removesuffix(template.opening)
    assert written.startswith(f"{bare}{began}{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\nrain\n")
    assert written.endswith(f"<|im_start|>assistant\n{template.opening}")


def test_functions_in_the_rows_own_order_are_seen_to_be_served_otherwise(live: Live, subject) -> None:
    if modelfile.is_before_native(live.version):
        pytest.skip(f"Ollama {live.version} takes no functions by a TEMPLATE that knows none")
    proof = proved(live, subject("Qwen-Qwen2.5-7B-Instruct", tools="own", pairs=WIDE))
    assert not proof.failures
    assert proof.served.tools == "0 of 11"
    assert any("as TOOL_FORM = own has it" in note for note in proof.notes)


def test_the_stand_in_answers_as_this_server_does(live: Live, tiny_f16: Path, tmp_path: Path) -> None:
    # One that no other test has left there.
    gguf = tmp_path / "own.gguf"
    with_pairs(tiny_f16, gguf, {"general.description": "sent by one test alone"})
    real = ollama_exchange.exchange("127.0.0.1", live.port, gguf)
    with running(FakeOllama(version=live.version)) as fake:
        assert ollama_exchange.exchange("127.0.0.1", fake.port, gguf) == real


@pytest.mark.parametrize("flag", ["add_bos_token", "add_eos_token"])
def test_a_flag_in_the_file_that_changes_prompts_is_caught(live: Live, subject, flag: str) -> None:
    proof = proved(live, subject(None, pairs={f"tokenizer.ggml.{flag}": True}))
    assert proof.served.counted_differently == 8
    assert "the server reads" in proof.failures[0]


def test_a_model_that_knows_where_to_end_answers_as_llama_cpp_does(live: Live, subject, f16: Path) -> None:
    proof = proved(live, subject(None, weights=f16, asked=2))
    print(proof.line, *proof.notes, *proof.failures, sep="\n    ")
    assert not proof.failures
    assert (proof.served.first_tokens_differently, proof.served.counted_differently) == (0, 0)


def test_another_file_under_the_same_name_is_caught(live: Live, subject, f16: Path, tiny_f16: Path) -> None:
    one = subject(None, weights=f16, asked=1)
    other = replace(one.request, gguf=tiny_f16)
    proof = proved(live, replace(one, request=other))
    assert proof.served.first_tokens_differently == 1
    assert "is not llama.cpp's on the same file" in proof.failures[-1]


def test_another_template_at_the_server_is_caught(live: Live, subject) -> None:
    proof = proved(live, replace(one := subject(None), request=with_template(one, "{{ .System }} {{ .Prompt }}")))
    assert proof.served.rendered_differently
    assert "does not serve what was trained" in proof.line


@pytest.fixture
def tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As servers of old: the field by which a prompt is asked for is unknown there, and an answer comes instead."""
    ask = Server.ask

    def without(
        self: Server, method: str, path: str, body: Mapping | None = None, patience: float | None = None
    ) -> dict:
        known = {key: value for key, value in (body or {}).items() if key != "_debug_render_only"}
        return ask(self, method, path, known or None, patience)

    monkeypatch.setattr(Server, "ask", without)


@pytest.mark.usefixtures("tells_nothing")
def test_what_breaks_is_caught_where_a_server_does_not_tell_how_it_writes(live: Live, subject) -> None:
    one = subject(None)
    proof = proved(live, one)
    assert (proof.failures, proof.served.rendered_differently, proof.served.counted_differently) == ((), None, 0)
    proof = proved(live, replace(one, request=with_template(one, "{{ .System }} {{ .Prompt }}")))
    assert proof.served.rendered_differently is None and proof.served.counted_differently
    assert "the server reads" in proof.failures[0]


def test_a_model_is_asked_whose_child_it_is(
    live: Live, undisturbed: Path, tiny_f16: Path, tmp_path: Path, monkeypatch
) -> None:
    """A file of this version says it through the server, too; one of before says nothing, and that is no failure."""
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{live.port}")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    told = {}
    for name, gguf in (("whose", undisturbed / "tiny.Q4_K_M.gguf"), ("before", tiny_f16)):
        (tmp_path / name).mkdir()
        with delivery.made(live.server(), request_for(gguf, tmp_path / name), name, print) as model:
            out = io.StringIO()
            assert whois.whois(command_line.parse(["--whois", model.name]), out) == 0
            told[name] = out.getvalue()
    assert f"run: {undisturbed.name}" in told["whose"]
    assert told["before"] == whois.NOTHING + "\n"


def with_template(one: Subject, template: str) -> ollama.CreateRequest:
    return replace(one.request, said={**one.request.said, "template": template})


def test_the_name_answers_through_a_switch_and_back(live: Live, tiny_f16: Path, tmp_path: Path) -> None:
    server, request = live.server(), request_for(tiny_f16, tmp_path)
    digests = []
    for system in ("one", "two"):
        with delivery.made(server, replace(request, said={**request.said, "system": system}), "swap", print) as model:
            delivery.put_in_place(server, model, keep=bool(digests))
        digests.append(server.digest("swap"))
    assert digests[0] != digests[1] and server.digest("swap-previous") == digests[0]
    delivery.roll_back(server, "swap")
    assert (server.digest("swap"), server.digest("swap-previous")) == tuple(digests)
    assert server.digest("swap-next") is None
    assert asking.answer(server, "swap", "Hi", 4).tokens


@pytest.mark.parametrize("at", ["upload", "create"])
def test_a_server_that_is_killed_leaves_the_old_model(own, tiny_f16: Path, f16: Path, tmp_path: Path, at: str) -> None:
    live = own()
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with delivery.made(live.server(), request_for(tiny_f16, tmp_path / "old"), "mine", print) as model:
        delivery.put_in_place(live.server(), model)
    before = live.server().digest("mine")
    server, new = live.server(), request_for(f16, tmp_path / "new")
    if at == "upload":
        with pytest.raises(RunError, match="the line broke after|broke off"):
            server.send_blob(f16, files.sha256(f16), lambda more: live.kill())
    else:
        server.send_blob(f16, files.sha256(f16), lambda more: None)
        # Quantising takes the server seconds: without it 0.24.0 has made the model before it can be killed.
        body = new.body("mine-next", {f16: files.sha256(f16)} | {new.gguf: files.sha256(f16)})
        with pytest.raises(RunError, match="broke off while it created the model"):
            server.create({**body, "quantize": "q4_K_M"}, 9, lambda s: live.kill())
    live.start()
    assert live.server().digest("mine") == before
    assert asking.answer(live.server(), "mine", "Hi", 4).tokens


def test_a_full_disk_at_the_server_is_told_in_one_message(own, f16: Path, tmp_path: Path) -> None:
    live = own(limit_blocks=40_000)
    request = request_for(f16, tmp_path)
    with (
        pytest.raises(RunError, match="file too large|no space|room on its disk") as error,
        delivery.made(live.server(), request, "mine", print),
    ):
        raise AssertionError("was made")
    assert "\n" not in str(error.value)


def test_a_server_that_hangs_is_given_up(own, tiny_f16: Path, tmp_path: Path) -> None:
    live = own()
    os.kill(live.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(RunError, match="nothing came in time"):
            live.server(patience=2).digest("mine")
    finally:
        os.kill(live.process.pid, signal.SIGCONT)


def test_the_command_creates_what_the_api_creates(live: Live, subject, f16: Path, tmp_path: Path) -> None:
    """As on a machine without the packages: the script, the run's two files, and the `ollama` command."""
    one = subject(None, weights=f16)
    place = tmp_path / "elsewhere"
    place.mkdir()
    shutil.copy(ROOT / "export_ollama.sh", place)
    env = {
        **live.environment,
        "PATH": f"{Path(live.program).parent}:{os.environ['PATH']}",
        "OLLAMA_ANSWER_TOKENS": "300",
    }
    command = ["bash", str(place / "export_ollama.sh"), str(one.request.modelfile.parent), "by-command"]
    (one.request.modelfile.parent / "report.json").write_text("{}")
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert (done.returncode, done.stdout) == (0, "by-command\n"), done.stderr
    assert "this Ollama uses the Modelfile's TEMPLATE" in done.stderr
    proof = served.prove(live.server(), "by-command", one)
    assert not proof.failures


def test_an_adapter_goes_onto_a_model_that_is_there(
    live: Live, undisturbed: Path, tiny_f16: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "base").mkdir()
    with delivery.made(live.server(), request_for(tiny_f16, tmp_path / "base"), "tiny-base", print) as model:
        delivery.put_in_place(live.server(), model)
    job = Job.of_run(run)
    request = ollama.of_modelfile(adapter_gguf.export(job, "tiny-base", run / "Modelfile.mine"))
    subject = served.of_job(live.server(), job, request)
    assert subject.gguf is not None, "the base's file, in the server's own store"
    cost = on_blob.adapter_on_blob(job, subject.gguf, request.adapter)
    print(cost.figures, cost.failure)
    assert cost.passed and not cost.skipped
    assert cost.figures["mean_kl"] < 0.01, "the base is not quantised here"
    proof = proved(live, subject, "adapted")
    assert proof.served.first_tokens_differently == 0
    print(proof.line, *proof.failures, sep="\n    ")
    assert not proof.failures
