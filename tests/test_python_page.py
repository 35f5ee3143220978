"""docs/python.md in a real Jupyter kernel: its lines as they stand, and the stop button."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import small
from tests.support.paths import ROOT

# Its runs need no real vocabulary.
tiny_model = small.tiny_model
PAGE = ROOT / "docs" / "python.md"


def executed(folder: Path, *cells: str) -> list[str]:
    """What each cell printed, run one after the other by a kernel that is started in a folder."""
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    # As the page says of a notebook that does not lie in the repository.
    first = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (first, *cells)])
    client = nbclient.NotebookClient(book, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute()
    return [
        "".join(out.get("text", "") for out in cell.outputs if out.output_type == "stream" and out.name == "stdout")
        for cell in book.cells[1:]
    ]


@pytest.mark.embedded
def test_the_lines_of_the_page_do_in_a_notebook_what_the_page_says(tmp_path: Path) -> None:
    cells = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(cells) == 6
    _, of_run, answer, refused, config, events = executed(tmp_path, *cells)
    path, state = of_run.splitlines()[0].split(" ")
    assert Path(path).parent == tmp_path / "results" and state == "completed"
    gguf, rows = of_run.splitlines()[1].split(" ", 1)
    assert Path(gguf).is_file() and rows == "{'training': 18, 'validation': 2}"
    assert answer.strip()
    assert refused.splitlines() == ["2", "lr= is not a setting; write learning_rate", "lora_r=0: must be at least 1"]
    assert "lora_r" not in config and (tmp_path / "notebook.ini").is_file()  # 16 is the default
    assert events.count(",") == 3


@pytest.mark.tiny
def test_the_stop_button_of_a_notebook_stops_after_a_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
    """Jupyter sends SIGINT to the kernel's whole group: the run must hear of it once, or it would end at once."""
    cell = f"""
import os, signal
from training import FineTuningConfig, FineTuningRun, Stopped, run_fine_tuning

def press(event):
    if event["event"] == "step" and event["step"] == 2:
        os.killpg(os.getpgid(0), signal.SIGINT)

rows = [{{"instruction": f"What is {{n}} and {{n}}?", "response": f"It is {{2 * n}}."}} for n in range(1, 17)]
config = FineTuningConfig(model_name={str(tiny_model)!r}, max_steps=4000, save_steps=0, eval_steps=0)
try:
    run_fine_tuning(rows, config, train_test_split=0, on_event=press)
except Stopped as error:
    stopped = FineTuningRun.open(error.run)
    print(error.exit_code, stopped.state, len(list((stopped.path / "checkpoints").glob("checkpoint-*"))))
"""
    (said,) = executed(tmp_path, cell)
    assert said == "130 interrupted 1\n"
