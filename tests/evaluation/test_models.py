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
