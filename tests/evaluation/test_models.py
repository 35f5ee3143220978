"""A GGUF file that is asked: the first answers alone, which tell its speed, the others together."""

from __future__ import annotations

from types import SimpleNamespace

from training.evaluation import models


class Worker:
    """Answers ten tokens a prompt, a second each."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[list[int]]]] = []

    def ask(self, request):
        """As a worker process does."""
        self.asked.append((request["do"], request["prompts"]))
        text = lambda prompt: {"text": f" {prompt[0]}", "ids": [1] * 10, "stopped": True, "seconds": 10.0}  # noqa: E731
        return {"answers": [text(prompt) for prompt in request["prompts"]]}


def test_the_first_answers_of_a_file_tell_its_speed_and_the_others_are_given_together(tmp_path):
    worker = Worker()
    speaker = models.Gguf(name="a", path=tmp_path, process=worker, context=8)
    items = [SimpleNamespace(prompt=[number], most=10) for number in range(9)]
    answers = speaker.answers(items)
    assert [answer.text for answer in answers] == [str(number) for number in range(9)]
    alone = [("answer", [[number]]) for number in range(4)]  # the fourth makes models.TIMED tokens full
    assert worker.asked == [*alone, ("answer_together", [[number] for number in range(4, 9)])]
    assert speaker.speed == 1.0
    speaker.answers(items[:1])
    assert worker.asked[-1] == ("answer_together", [[0]])
    assert speaker.answers([]) == []


def test_a_long_first_answer_is_cut_off_for_the_speed_and_given_whole_with_the_others(tmp_path):
    class Long(Worker):
        def ask(self, request):
            most = request["max_tokens"]
            limits = most if isinstance(most, list) else [most]
            self.asked.append((request["do"], limits))
            return {
                "answers": [{"text": "", "ids": [1] * limit, "stopped": False, "seconds": limit} for limit in limits]
            }

    worker = Long()
    speaker = models.Gguf(name="a", path=tmp_path, process=worker, context=8)
    items = [SimpleNamespace(prompt=[number], most=100) for number in range(3)]
    assert [len(answer.ids) for answer in speaker.answers(items)] == [100] * 3
    assert worker.asked == [("answer", [models.TIMED]), ("answer_together", [100] * 3)]
    assert (speaker.tokens, speaker.speed) == (models.TIMED, 1.0)


def test_the_loss_of_a_row_is_that_of_its_answer_whatever_the_size_of_the_logits(tmp_path, monkeypatch):
    import numpy as np
    import pytest

    rows = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32) * 30 + 500
    monkeypatch.setattr(models.llama, "logits_each", lambda *_: iter([rows]))
    item = SimpleNamespace(ids=[3, 9, 1, 30, 31, 2], labels=[-100, 9, 1, -100, 31, 2])
    chances = models.llama.log_softmax(rows)
    expected = -np.mean([chances[at - 1, item.ids[at]] for at in (1, 2, 4, 5)])
    assert models.Gguf(name="a", path=tmp_path, process=None, context=8).losses([item]) == [
        pytest.approx(expected, rel=1e-6)
    ]
