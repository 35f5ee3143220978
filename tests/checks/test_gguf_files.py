"""The checks on a whole chain (base, adapter, merged, f16, quantised), then with each link broken on purpose."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.gguf import edit_end, edit_tensor
from training import llama
from training.base_model import load_tokenizer, lora_adapter
from training.checks import Check, gguf_files, require
from training.checks import logits as checks
from training.errors import RunError
from training.evaluation import divergence, reference
from training.evaluation.reference import TooLarge
from training.llama import hard_texts
from training.runs import Run
from training.to_gguf import conversion, merging
from training.to_gguf.job import Job

pytestmark = [pytest.mark.tiny, pytest.mark.usefixtures("forks")]


@dataclass(frozen=True)
class Chain:
    """The files of one run, and held-out material: token ids, where answers begin, prompts."""

    base: Path
    adapter: Path
    merged: Path
    f16: Path
    quantised: Path
    sequences: list[list[int]]
    starts: list[int]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Chain:
    """The tiny random Llama, and an adapter that changes it clearly."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("chain")
    base, adapter, merged = tiny_model, folder / "adapter", folder / "merged"
    settings = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "o_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(adapter)
    merging.merge(base, adapter, merged)
    conversion.to_gguf(merged, folder / "f16.gguf")
    conversion.quantise(folder / "f16.gguf", folder / "q8_0.gguf", "q8_0")
    tokenizer = AutoTokenizer.from_pretrained(base)
    sequences = [
        tokenizer.encode(text) for text in ("What is the answer to this? It is 42.", "one two three four five")
    ]
    starts = [len(ids) // 2 for ids in sequences]
    return Chain(base, adapter, merged, folder / "f16.gguf", folder / "q8_0.gguf", sequences, starts)


@pytest.fixture(scope="module")
def model(chain: Chain):
    """The merged model in transformers."""
    with reference.opened(chain.merged) as opened:
        yield opened


@pytest.fixture(scope="module")
def ending(chain: Chain, model) -> tuple[list[int], int, Path]:
    """A prompt, the token that the random model answers to it, and the GGUF with that token as its end."""
    from training.evaluation import generate

    prompt = chain.sequences[0][: chain.starts[0]]
    end = generate.answer(model.model, model.tokenizer, prompt, [0], 12).ids[0]
    gguf = chain.f16.with_name("ending.gguf")
    shutil.copyfile(chain.f16, gguf)
    edit_end(gguf, end)
    return prompt, end, gguf


def passes(check: Check) -> dict:
    assert check.passed, check.failure
    assert not check.failure
    assert not check.skipped
    json.dumps(check.figures, allow_nan=False)
    return check.figures


def fails(check: Check, *said: str) -> None:
    assert not check.passed
    for part in said:
        assert part in check.failure
    json.dumps(check.figures, allow_nan=False)
    with pytest.raises(RunError, match="^check '" + check.name):
        require([check])


# ---- the whole chain ----------------------------------------------------------------------------------------------


def test_every_check_passes_on_a_chain_that_holds(chain: Chain, model, ending) -> None:
    made = [
        gguf_files.merged_tensors(chain.base, chain.adapter, chain.merged),
        checks.merged_logits(chain.base, chain.adapter, chain.merged, chain.sequences, chain.starts),
        gguf_files.gguf_tokenizer(chain.f16, chain.merged, ["a rendered row<|endoftext|>"]),
        gguf_files.f16_agrees(chain.f16, model, chain.sequences, chain.starts),
        gguf_files.quantised(chain.f16, chain.quantised, chain.sequences, chain.starts),
        gguf_files.answers(model, ending[2], {"q8_0": chain.quantised}, [ending[0]], [ending[1]], [12]),
    ]
    tensors, logits, tokenizer, f16, quantised, answers = map(passes, made)
    require(made)
    assert tensors["changed"] == tensors["targeted"] == 6
    assert logits["mean_kl"] < logits["mean_kl_of_training"] / 10
    assert tokenizer["texts"] > len(hard_texts.HARD)
    assert f16["mean_kl"] < 1e-4
    assert f16["tokens"] == sum(len(ids) - start for ids, start in zip(chain.sequences, chain.starts, strict=True))
    assert 0 < quantised["mean_kl"] < 0.1
    assert 0.9 < quantised["perplexity_ratio"] < 1.1
    assert answers["stopped"]["merged"] == answers["stopped"]["f16"] == 1


# ---- links broken on purpose --------------------------------------------------------------------------------------


def test_an_untrained_adapter_fails_the_check_of_the_tensors(chain: Chain, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = shutil.copytree(chain.adapter, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({n: t * ("lora_A" in n) for n, t in tensors.items()}, adapter / "adapter_model.safetensors")
    merging.merge(chain.base, adapter, tmp_path / "merged")
    fails(gguf_files.merged_tensors(chain.base, adapter, tmp_path / "merged"), "the adapter changes nothing")


def test_a_half_trained_adapter_is_a_warning(chain: Chain, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = shutil.copytree(chain.adapter, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    kept = {n: t * ("layers.0" in n or "lora_A" in n) for n, t in tensors.items()}
    save_file(kept, adapter / "adapter_model.safetensors")
    merging.merge(chain.base, adapter, tmp_path / "merged")
    check = gguf_files.merged_tensors(chain.base, adapter, tmp_path / "merged")
    assert passes(check)["untrained"] == 3
    assert check.warnings == ("3 of 6 targeted tensors were not trained: their update is 0",)


def test_a_merge_that_is_not_the_trained_model_fails_the_check_of_the_logits(chain: Chain) -> None:
    check = checks.merged_logits(chain.base, chain.adapter, chain.base, chain.sequences, chain.starts)
    fails(check, "the merged model does not predict what base + adapter predict: mean KL", "that the training made; at")
    some = check.figures["mean_kl_of_training"]  # of every fourth row
    assert check.figures["mean_kl"] == pytest.approx(some, rel=0.2)


def trained_less(chain: Chain, folder: Path, share: float) -> tuple[Path, Path]:
    """The chain's adapter with that share of its update, and the two merged."""
    from safetensors.torch import load_file, save_file

    adapter, merged = shutil.copytree(chain.adapter, folder / "adapter"), folder / "merged"
    tensors = load_file(adapter / "adapter_model.safetensors")
    kept = {n: t * (share if "lora_B" in n else 1) for n, t in tensors.items()}
    save_file(kept, adapter / "adapter_model.safetensors")
    merging.merge(chain.base, adapter, merged)
    return adapter, merged


def test_a_short_training_that_was_not_merged_or_by_half_fails_the_check_of_the_logits(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:  # where merge and proof read the scaling, so that both take it for right
        scale = lora_adapter._scale
        patch.setattr(lora_adapter, "_scale", lambda *some: {**scale(*some), "alpha": scale(*some)["alpha"] / 2})
        adapter, halved = trained_less(chain, tmp_path, 0.15)
        rounding = passes(gguf_files.merged_tensors(chain.base, adapter, halved))["rounding_loss"]
    for merged in (halved, chain.base):
        made = checks.merged_logits(chain.base, adapter, merged, chain.sequences, chain.starts, None, rounding)
        fails(made, "the merged model does not predict what base + adapter predict: mean KL")
        assert 1e-3 < made.figures["mean_kl_of_training"] < 0.02
    merging.merge(chain.base, adapter, tmp_path / "whole")
    rounding = passes(gguf_files.merged_tensors(chain.base, adapter, tmp_path / "whole"))["rounding_loss"]
    made = checks.merged_logits(chain.base, adapter, tmp_path / "whole", chain.sequences, chain.starts, None, rounding)
    assert passes(made)["mean_kl"] < 1e-4
    assert (
        made.why == "proves the merge against PEFT's own forward pass; more than rounding to 16 bits costs is a mistake"
    )


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "; the training changed so little that this cannot tell a merge from none: merged tensors can"),
        (0.003, "; the training changed so little that this cannot tell a merge from none: merged tensors can"),
        (0.03, "; the training changed so little that this shows no wrong scaling, only that something was merged"),
    ],
)
def test_a_training_too_short_to_judge_the_merge_by_passes_and_says_so(
    chain: Chain, tmp_path: Path, share: float, said: str
) -> None:
    adapter, merged = trained_less(chain, tmp_path, share)
    check = checks.merged_logits(chain.base, adapter, merged, chain.sequences, chain.starts)
    passes(check)
    assert check.why.endswith(said)


def test_a_merge_that_holds_passes_in_bfloat16_and_where_one_side_ran_in_float32(chain: Chain, model) -> None:
    half = reference.needed(chain.merged, 2)
    for merged in (chain.merged, lambda: model):
        check = checks.merged_logits(chain.base, chain.adapter, merged, chain.sequences, chain.starts, half)
        assert passes(check)["dtype"] == "bfloat16"


def test_another_base_fails_both_checks_of_the_merge(chain: Chain, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(chain.base, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({n: t.flip(0).contiguous() for n, t in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    fails(gguf_files.merged_tensors(base, chain.adapter, chain.merged), "differs from the base")
    fails(checks.merged_logits(base, chain.adapter, chain.merged, chain.sequences, chain.starts), "mean KL")


def test_a_swapped_token_fails_the_check_of_the_tokenizer(chain: Chain, tmp_path: Path) -> None:
    folder = shutil.copytree(chain.merged, tmp_path / "merged")
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    fails(gguf_files.gguf_tokenizer(chain.f16, folder), "llama.cpp cuts", "texts otherwise than the tokenizer in")


def test_a_tensor_shuffled_by_the_converter_fails_the_check_of_f16(chain: Chain, model, tmp_path: Path) -> None:
    def shuffle(data) -> None:
        data[:] = data[::-1].copy()

    broken = edit_tensor(chain.f16, tmp_path / "broken.gguf", "blk.1.attn_output.weight", shuffle)
    check = gguf_files.f16_agrees(broken, model, chain.sequences, chain.starts)
    fails(check, "the f16 GGUF does not predict what the merged model predicts: mean KL")


def test_a_damaged_quantised_file_fails_its_check(chain: Chain, tmp_path: Path) -> None:
    def no_number(data) -> None:
        data[:, 0:2] = (0x00, 0x7E)  # the first block's scale of each row becomes NaN

    broken = edit_tensor(chain.quantised, tmp_path / "broken.gguf", "blk.0.ffn_down.weight", no_number)
    fails(
        gguf_files.quantised(chain.f16, broken, chain.sequences, chain.starts), "broken.gguf is damaged: perplexity nan"
    )


def test_a_perplexity_beyond_all_numbers_fails_with_figures_that_are_json(chain: Chain, tmp_path: Path) -> None:
    def explode(data) -> None:
        data *= 1e4

    f16, other = (
        edit_tensor(file, tmp_path / file.name, "output_norm.weight", explode) for file in (chain.f16, chain.quantised)
    )
    after = gguf_files.quantised(chain.f16, other, chain.sequences, chain.starts)
    fails(after, "q8_0.gguf is damaged: perplexity inf on held-out answers, ")
    before = gguf_files.quantised(f16, chain.quantised, chain.sequences, chain.starts)
    fails(before, "f16.gguf is damaged, and q8_0.gguf was made from it: perplexity inf")
    assert after.figures["perplexity_ratio"] is before.figures["perplexity_ratio"] is None
    assert after.figures["perplexity"] is before.figures["perplexity_reference"] is None


def test_a_wrong_end_token_fails_the_check_of_the_answers(chain: Chain, model, ending) -> None:
    prompt, end, _ = ending
    check = gguf_files.answers(model, chain.f16, {}, [prompt], [end], [12])
    fails(check, f"the merged model stops at token {end}, which the GGUF does not take for an end")


def test_a_gguf_that_goes_on_where_the_merged_model_ends_fails_the_check_of_the_answers(
    chain: Chain, model, ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, end, gguf = ending
    end_is_never_first = edit_end_scores(monkeypatch, end)
    check = gguf_files.answers(model, gguf, {}, [prompt], [end], [12])
    fails(check, f"after the merged model's own answer the GGUF goes on with token {end_is_never_first} instead of")
    assert check.figures["stopped"] == {"merged": 1, "f16": 0}


def edit_end_scores(monkeypatch: pytest.MonkeyPatch, end: int) -> int:
    """Have llama.cpp find another token likelier than the end, and answer without one; the token."""
    real, other = gguf_files.llama.logits, end + 1

    def logits(*given):
        found = [rows.copy() for rows in real(*given)]
        for rows in found:
            rows[:, other] = rows.max() + 1
        return found

    monkeypatch.setattr(gguf_files.llama, "logits", logits)
    monkeypatch.setattr(gguf_files.llama, "answer", lambda *_: [SimpleNamespace(stopped=False, ids=[])])
    return other


def test_a_gguf_that_a_near_tie_leads_elsewhere_passes_where_its_own_answer_ends(
    chain: Chain, model, ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, end, gguf = ending
    edit_end_scores(monkeypatch, end)
    monkeypatch.setattr(gguf_files.llama, "answer", lambda *_: [SimpleNamespace(stopped=True, ids=[])])
    assert passes(gguf_files.answers(model, gguf, {}, [prompt], [end], [12]))["stopped"] == {"merged": 1, "f16": 1}


def test_the_warning_has_the_limits_of_the_answers_that_did_not_stop(chain: Chain, model, ending) -> None:
    prompts = [ending[0], ending[0][:-1], ending[0]]
    check = gguf_files.answers(model, chain.f16, {}, prompts, [0], [3, 5, 4])
    assert check.warnings == tuple(
        f"{name} did not stop within 3 to 5 tokens on 3 of 3 prompts" for name in ("merged", "f16")
    )


def test_an_answer_that_is_cut_off_long_before_its_time_has_not_run_on(chain: Chain, model, ending) -> None:
    prompts, most = [ending[0]] * 3, [6, 6, 6]
    check = gguf_files.answers(
        model, chain.f16, {"q8_0": chain.quantised}, prompts, [0], most, ["a", "b", "c"], [4, 5, 400]
    )
    assert check.warnings == tuple(
        f"{name} did not stop within 6 tokens on 1 of 3 prompts: “a”" for name in ("merged", "q8_0")
    )


def test_an_answer_in_circles_has_run_on_however_long_the_trained_one_is(
    chain: Chain, model, ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_files.llama, "answer", lambda *_: [SimpleNamespace(stopped=False, ids=[1] * 5, text="")])
    check = gguf_files.answers(model, chain.f16, {"q8_0": chain.quantised}, [ending[0]], [0], [6], wanted=[400])
    assert check.warnings == ("q8_0 did not stop within 6 tokens on 1 of 1 prompts",)


def test_a_model_that_never_learned_to_stop_is_a_warning(chain: Chain, model, ending) -> None:
    check = gguf_files.answers(model, chain.f16, {"q8_0": chain.quantised}, [ending[0]], [0], [3])
    assert passes(check)["stopped"] == {"merged": 0, "f16": 0, "q8_0": 0}
    assert len(check.warnings) == 2
    assert check.warnings[1] == "q8_0 did not stop within 3 tokens on 1 of 1 prompts"
    assert check.warnings[0] == "merged did not stop within 3 tokens on 1 of 1 prompts"
    named = gguf_files.answers(model, chain.f16, {}, [ending[0]], [0], [3], ["Who are you?"])
    assert named.warnings[0] == "merged did not stop within 3 tokens on 1 of 1 prompts: “Who are you?”"


def test_llama_cpp_that_dies_is_a_failed_check_with_its_last_words(chain: Chain, model, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    fails(gguf_files.f16_agrees(tmp_path / "no.gguf", model, chain.sequences, chain.starts), "no.gguf")


@pytest.mark.parametrize(
    ("dtype", "tokens", "disagreements", "passed"),
    [("bfloat16", 9, 1, True), ("bfloat16", 40, 5, True), ("bfloat16", 40, 6, False), ("float32", 9, 1, False)],
)
def test_of_few_clear_cases_some_may_differ_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, dtype: str, tokens: int, disagreements: int, passed: bool
) -> None:
    import numpy as np

    ours = np.tile([0.25, 0.0], (tokens + 1, 1))  # the first choice leads by more than MARGIN; the KL of a swap is 0.03
    theirs = ours.copy()
    theirs[:disagreements] = [0.0, 0.001]
    monkeypatch.setattr(gguf_files, "_logits", lambda *_: iter([theirs]))
    model = SimpleNamespace(dtype=dtype, logits=lambda *_: iter([ours]))
    monkeypatch.setitem(
        gguf_files.MOST_KL, "float32", gguf_files.MOST_KL["bfloat16"]
    )  # it is the first choices that decide
    check = gguf_files.f16_agrees(Path("f16.gguf"), model, [[0] * (tokens + 1)], [1])
    if passed:
        assert passes(check)["sure"] == tokens
    else:
        share = 1 - disagreements / tokens
        fails(check, f"the f16 GGUF's first choice is the merged model's in only {share:.1%} of the clear cases")


# ---- left out, and told together -----------------------------------------------------------------------------------


def test_what_does_not_fit_into_memory_is_left_out_and_says_so(chain: Chain) -> None:
    check = checks.merged_logits(chain.base, chain.adapter, chain.merged, chain.sequences, chain.starts, memory=10**6)
    assert check.passed
    assert "base + adapter was not run: it takes 1.1 GB of memory in bfloat16, 0.0 GB are free" in check.skipped
    large = reference.fitting(chain.merged, 10**6)
    assert isinstance(large, TooLarge)
    assert gguf_files.f16_agrees(chain.f16, large, chain.sequences, chain.starts).skipped.startswith(
        "the merged model was"
    )
    assert gguf_files.answers(large, chain.f16, {}, [[1]], [2], [9]).skipped.startswith("the merged model was")


def test_the_dtype_of_the_reference_follows_from_the_memory(chain: Chain) -> None:
    full, half = (reference.needed(chain.merged, size) for size in (4, 2))
    assert reference.fitting(chain.merged, full) == "float32"
    assert reference.fitting(chain.merged, full - 1) == "bfloat16"
    assert reference.fitting(chain.merged, half) == "bfloat16"


def test_without_held_out_answers_nothing_is_compared(chain: Chain, model) -> None:
    for check in (
        checks.merged_logits(chain.base, chain.adapter, chain.merged, [], []),
        gguf_files.f16_agrees(chain.f16, model, [[1, 2]], [2]),
        gguf_files.quantised(chain.f16, chain.quantised, [], []),
    ):
        assert check.passed
        assert check.skipped == "there are no held-out answers"


def test_several_failures_are_told_together_the_first_link_first() -> None:
    made = [
        Check("a", True, {}, "", ""),
        Check("b", False, {}, "", "", failure="broke here"),
        Check("c", False, {}, "", "", failure="and so here"),
    ]
    with pytest.raises(RunError) as error:
        require(made, safe="merged/ is on disk")
    assert str(error.value) == "check 'b': broke here\nalso failed: c: and so here\nmerged/ is on disk"


# ---- the comparison itself -----------------------------------------------------------------------------------------


def test_divergence_and_perplexity_are_those_of_a_calculation_by_hand() -> None:
    import numpy as np

    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])
    unused = np.zeros((1, 3))  # predicts a token after the last
    found = divergence.compare(
        [np.log(np.vstack([p, unused + 1]))], [np.log(np.vstack([q, unused + 1]))], [[1, 0]], [0]
    )
    assert found.tokens == 1
    assert found.mean_kl == pytest.approx(0.5 * np.log(2) - 0.25 * np.log(2))
    assert (found.top1, found.top1_sure, found.sure) == (0, 0, 1)
    assert found.perplexity_reference == pytest.approx(2)
    assert found.perplexity == pytest.approx(4)


def test_only_so_many_tokens_of_an_answer_are_compared() -> None:
    rows, first = divergence.bounded([list(range(1000)), [1, 2, 3], [4]], [10, 3, 0])
    assert rows == [list(range(10 + divergence.SCORED))]
    assert first == [9]


def test_so_many_tokens_of_all_answers_are_compared_and_of_each_alike() -> None:
    rows, first = divergence.bounded([list(range(400)), list(range(30)), list(range(300)), list(range(500))], [10] * 4)
    scored = [len(ids) - start - 1 for ids, start in zip(rows, first, strict=True)]
    assert scored == [20, 164, 164, 164]
    assert sum(scored) == divergence.SCORED_IN_ALL
    assert rows[1] == list(range(174)), "the short ones first, so that neighbours are filled up little"


def test_of_many_rows_some_of_each_length_are_compared() -> None:
    lengths = [60, 20, 40, 80, 100, 30] * 20
    rows, first = divergence.bounded([list(range(length)) for length in lengths], [10] * len(lengths))
    taken = [len(ids) for ids in rows]
    assert divergence.LEAST < len(taken) < len(lengths) and sum(taken) <= divergence.READ
    assert taken == sorted(taken) and len(set(taken)) >= 4, "short and long ones"
    assert first == [9] * len(rows)
    long, _ = divergence.bounded([list(range(900 + number)) for number in range(40)], [890] * 40)
    assert [len(ids) for ids in long] == [909, 919, 929, 939], "but no fewer than so many"


def test_kept_logits_are_computed_once(tmp_path: Path) -> None:
    import numpy as np

    made = [np.full((2, 3), number, np.float32) for number in range(2)]
    for given in (made, ()):
        found = list(divergence.kept_logits(tmp_path / "kept", given, 2))
        assert [rows.tolist() for rows in found] == [rows.tolist() for rows in made]
    partly = divergence.kept_logits(tmp_path / "other", iter(made), 2)
    next(partly)
    partly.close()  # the other side broke; what is there is not taken for the whole
    with pytest.raises(ValueError, match="zip"):
        list(divergence.kept_logits(tmp_path / "other", (), 2))


def test_sequences_are_run_together_within_bounds() -> None:
    most = reference.TOKENS
    assert list(reference.groups([10, 12, 20], [1, 1, 1], 100)) == [[0, 1, 2]]
    assert list(reference.groups([most // 2, most // 2, 8], [1, 1, 1], 100)) == [[0, 1], [2]]
    assert list(reference.groups([2 * most, 3], [1, 1], 100)) == [[0], [1]], "one too long alone is run all the same"
    vocabulary = reference.LOGITS // 4 // 20
    assert list(reference.groups([11, 11, 11], [1, 1, 1], vocabulary)) == [[0, 1], [2]]
    assert list(reference.groups([], [], 100)) == []


def test_llama_cpp_answers_prompts_together_as_it_answers_each_alone(chain: Chain) -> None:
    prompts = [ids[:length] for ids, length in zip(chain.sequences * 2, (3, 9, 1, 5, 2), strict=False)]
    alone = [llama.answer(chain.f16, [prompt], 6)[0] for prompt in prompts]
    found = llama.answer(chain.f16, prompts, 6)
    assert [(one.text, one.ids, one.stopped) for one in found] == [(one.text, one.ids, one.stopped) for one in alone]
    streamed = llama.answer(chain.f16, prompts, 6, on_text=lambda number, piece: None)
    assert [one.ids for one in streamed] == [one.ids for one in alone]


def test_together_a_model_predicts_and_answers_as_alone(chain: Chain, model) -> None:
    import numpy as np

    sequences, first = [*chain.sequences, chain.sequences[0][:5]], [3, 1, 2]
    assert len(list(reference.groups([len(ids) for ids in sequences], first, 49152))) == 1
    together = list(model.logits(sequences, first))
    for ids, start, rows in zip(sequences, first, together, strict=True):
        (alone,) = model.logits([ids], [start])
        assert rows.shape == alone.shape == (len(ids) - start, 49152)
        np.testing.assert_allclose(rows, alone, atol=1e-4)
    prompts = [ids[:4] for ids in sequences]
    most = [6] * len(prompts)
    assert model.answers(prompts, [0], most) == [model.answers([prompt], [0], [6])[0] for prompt in prompts]
    found = model.answers(prompts, [0], most)
    ends = [answer.ids[2] for answer in found]
    for answer in model.answers(prompts, ends, most):  # one that has ended is filled up, and that is no part of it
        assert answer.stopped
        assert [token in ends for token in answer.ids] == [False] * (len(answer.ids) - 1) + [True]


def test_a_model_that_reads_a_draft_answers_as_without_one(
    chain: Chain, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.evaluation import generate

    prompts, most = [ids[:4] for ids in chain.sequences], [6] * len(chain.sequences)
    alone = model.answers(prompts, [0], most)
    ended = model.answers(prompts, [answer.ids[3] for answer in alone], most)
    whole = [answer.ids for answer in alone]
    wrong = [[*ids[:at], ids[at] + 1, *ids[at:]] for at, ids in enumerate(whole)]
    for drafts in (wrong, [[]] * len(prompts), [ids[:2] for ids in whole], [[*ids, 7, 7] for ids in whole]):
        assert model.answers(prompts, [0], most, drafts) == alone
    for drafts in (wrong, [[]] * len(prompts), [answer.ids[:-1] for answer in ended], whole):
        assert model.answers(prompts, [answer.ids[3] for answer in alone], most, drafts) == ended
    # What agrees is not written again.
    monkeypatch.setattr(generate, "_generate", None)
    assert model.answers(prompts, [0], most, whole) == alone
    ends = [answer.ids[3] for answer in alone]
    assert model.answers(prompts, ends, most, [answer.ids[:-1] for answer in ended]) == ended


def test_a_tokenizer_that_is_loaded_already_is_not_loaded_again(chain: Chain) -> None:
    words = load_tokenizer(chain.merged)
    with reference.opened(chain.merged, words=words) as opened:
        assert opened.tokenizer is words
    job = Job(run=Run(chain.merged.parent), settings=None, facts=None)
    assert job.merged == chain.merged and job.words is job.words


def test_a_draft_ends_where_the_models_positions_do(chain: Chain, model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = chain.sequences[0][:4]
    (alone,) = model.answers([prompt], [0], [6])
    monkeypatch.setattr(model.model.config, "max_position_embeddings", 7)
    (found,) = model.answers([prompt], [0], [6], [alone.ids])
    assert (found.ids, found.stopped) == (alone.ids[:3], False)


def test_transformers_gives_only_the_wanted_rows(chain: Chain, model) -> None:
    import numpy as np

    ids = chain.sequences[0]
    whole, part = next(model.logits([ids], [0])), next(model.logits([ids], [len(ids) - 2]))
    assert whole.shape[0] == len(ids)
    assert part.shape[0] == 2
    np.testing.assert_allclose(whole[-2:], part, atol=1e-5)
    assert len(next(llama.logits_each(chain.f16, [ids], [len(ids) - 2]))) == 2
