"""The page of the service in a real browser: all that it offers, by mouse and keyboard, wide and narrow, in two languages.

The pictures that it takes lie in $PAGE_PICTURES, where that is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import small
from tests.support.browser import BROWSER
from tests.support.driven import Driven, driven
from tests.support.service import Served, put_run, served
from tests.support.session import once
from tests.support.tiny import write_tiny_config

pytestmark = [pytest.mark.tiny, pytest.mark.skipif(not BROWSER, reason="no Chromium here: the page was not looked at")]
# Its runs need no real vocabulary.
tiny_model = small.tiny_model
TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Settings of runs on the tiny model."""
    return once(tmp_path_factory, "served_page", lambda folder: str(write_tiny_config(folder, tiny_model)))[0]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with served(folder / "config.ini", forked=True) as found:
        yield found


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Driven]:
    """A browser; in the end no error stands in its console, and it has asked nobody but the server."""
    with driven(tmp_path) as found:
        found.look(1100)
        yield found


def keep(page: Driven, name: str) -> None:
    if folder := os.environ.get("PAGE_PICTURES"):
        page.screenshot(Path(folder) / f"{name}.png")


def clean(page: Driven, server: Served) -> None:
    page.run("1")
    assert page.errors == []
    others = [
        url
        for url in page.requests
        if not url.startswith((f"http://127.0.0.1:{server.port}/", "data:", "about:", "blob:"))
    ]
    assert others == []


def fits(page: Driven) -> bool:
    """Whether nothing stands out to the right of the window."""
    return page.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_run_is_started_followed_read_and_talked_to(server, page):
    page.open(f"{server.address}/#new")
    page.wait("document.querySelector('#field-learning_rate')")
    assert page.run("document.querySelector('#field-max_steps').value") == "6"
    # A wrong value is told beside its field, in the program's words, and the field has the focus.
    page.fill("#field-learning_rate", "fast")
    page.fill("#field-r", "0")
    page.run("document.querySelector('#form [type=submit]').click()")
    page.wait("!document.querySelector('#field-learning_rate-problem').hidden")
    assert "expected a number such as 0.1" in page.run(
        "document.querySelector('#field-learning_rate-problem').textContent"
    )
    assert "at least 1" in page.run("document.querySelector('#field-r-problem').textContent")
    assert page.run("document.activeElement.getAttribute('aria-invalid')") == "true"
    keep(page, "form-problems")
    # A refused request shows in the console of every browser: that is its way to say so.
    page.errors = [error for error in page.errors if "422" not in error]
    page.fill("#field-learning_rate", "1e-3")
    page.fill("#field-r", "4")
    page.fill("#field-new_model_name", "from-the-page")
    page.run("document.querySelector('#check').click()")
    page.wait("document.querySelector('#plan').textContent.startsWith('ready')", 240)
    keep(page, "form-checked")
    page.run("document.querySelector('#form [type=submit]').click()")
    page.wait(
        "location.hash === '#runs' && document.querySelector('#run-name').textContent.startsWith('from-the-page')"
    )
    page.run("document.querySelector('#log-box').open = true")
    page.wait("document.querySelector('#run-state').textContent === 'running'", 240)
    page.wait("document.querySelector('#curve polyline.train')?.getAttribute('points').split(' ').length >= 3", 240)
    keep(page, "running")
    page.wait("document.querySelector('#run-state').textContent === 'completed'", 300)
    page.wait("document.querySelector('#log').textContent.includes('step 6/6')")
    assert page.run("document.querySelector('#curve').getAttribute('aria-label')").startswith("training loss: ")
    page.run("document.querySelector('#report-box').open = true")
    page.wait("document.querySelector('#report').srcdoc.includes('from-the-page')")
    assert page.run("document.querySelector('#report').getAttribute('sandbox')") == ""
    page.look(1100, height=1800)  # the frame of the report is painted only where it is in the window
    page.run("1")
    keep(page, "completed")
    page.run("document.querySelector('#ask').click()")
    page.wait("location.hash === '#talk'")
    page.run("document.querySelector('#question').focus()")
    page.type("What is 4 and 4?")
    page.key("Enter")
    page.wait("document.querySelectorAll('.answers div').length === 2")
    page.wait("!document.querySelector('#question-form [type=submit]').disabled", 240)
    told = page.run("[...document.querySelectorAll('.answers div')].map(e => e.textContent)")
    assert told[0].startswith("base") and told[1].startswith("tuned") and min(map(len, told)) > 8
    keep(page, "talk")
    clean(page, server)


def test_a_run_is_stopped_and_goes_on_by_keyboard_alone(server, page):
    task = server.post("/train", {"max_steps": 60, "save_steps": 50, "eval_steps": 0}).json()["task_id"]
    page.open(f"{server.address}/")
    page.wait("document.querySelector('#run-facts dd')?.textContent.match(/^[3-9] |^[1-9][0-9] /)", 240)
    with server.held(task):
        page.wait("document.querySelector('#run-state').textContent === 'running'")
        reach(page, "stop")
        page.key("Enter")
    page.wait("document.querySelector('#run-state').textContent === 'interrupted'", 120)
    reach(page, "resume")
    page.key("Enter")
    page.wait("['queued', 'running'].includes(document.querySelector('#run-state').textContent)")
    assert server.wait(task, "completed", "failed")["status"] == "completed"
    clean(page, server)


def reach(page: Driven, name: str) -> None:
    """Go with the Tab key to an element, and see that the focus shows."""
    page.run("document.activeElement.blur()")
    for _ in range(60):
        page.key("Tab")
        if page.run("document.activeElement.id") == name:
            assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            return
    raise AssertionError(f"{name} cannot be reached with the Tab key")


@pytest.mark.parametrize("part", ["runs", "new", "talk"])
def test_it_is_usable_in_chinese_dark_and_360_pixels_wide(server, page, part):
    if not server.get("/train/history").json()["tasks"]:  # else those of the tests above
        put_run(server.folder / "outputs")
    page.look(360, dark=True, languages="zh-CN", height=760)
    page.open(f"{server.address}/#{part}")
    page.wait("document.documentElement.lang === 'zh-CN'")
    page.wait("document.querySelector('#field-r-help')")
    assert page.run("document.querySelector('h1').textContent") == "微调聊天模型"
    assert page.run("/[\\u4e00-\\u9fff]/.test(document.querySelector('#field-r-help').textContent)")
    assert page.run(
        "[...document.querySelectorAll('[data-t]')].every(e => e.textContent && e.textContent !== 'undefined')"
    )
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    if part == "new":
        page.run("document.querySelector('#rest details').open = true")
    page.wait("document.querySelectorAll('#list li').length > 0")
    assert fits(page)
    if part == "runs":  # its figures are as large as other text
        page.wait("document.querySelector('#curve').viewBox.baseVal.width <= innerWidth")
    keep(page, f"narrow-{part}")
    clean(page, server)


def test_a_server_with_a_token_asks_for_it(folder, page, tmp_path):
    (folder / "token").write_text(TOKEN)
    with served(folder / "config.ini", "--set", "Service.TOKEN_FILE=" + str(folder / "token"), forked=True) as server:
        page.open(f"{server.address}/")
        page.wait("document.querySelector('#token-box').open")
        keep(page, "token")
        page.run("document.querySelector('#token').focus()")
        page.type(TOKEN)
        page.key("Enter")
        page.wait("document.querySelectorAll('#list li').length > 0")
        page.errors = [error for error in page.errors if "401" not in error]
        clean(page, server)


def test_what_nobody_changed_is_not_sent_and_texts_keep_their_lines(server, page):
    page.open(f"{server.address}/#new")
    page.wait("document.querySelector('#field-system_prompt')")
    assert page.run("wanted()") == {}
    page.run("document.querySelector('#rest details').open = true")
    page.fill("#field-system_prompt", "You are brief.\nAnswer in one line.")
    page.fill("#field-num_train_epochs", "2")
    assert page.run("wanted()") == {"system_prompt": "You are brief.\nAnswer in one line.", "num_train_epochs": "2"}
    clean(page, server)


def test_rows_of_this_computer_are_uploaded(server, page, tmp_path):
    rows = tmp_path / "mine.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 12)
    page.open(f"{server.address}/#new")
    page.wait("document.querySelector('#field-dataset_file')")
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=document, selector="#upload")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(rows)])
    page.wait("document.querySelector('#field-dataset_file').value.includes('/files/file-')")
    clean(page, server)
