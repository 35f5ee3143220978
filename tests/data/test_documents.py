"""Documents as rows of plain text: cut at headings, nothing lost, none of two documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import documents
from training.errors import UserError

GUIDE = "Intro.\n\n# One\n\nFirst.\n\n```sh\n# no heading\n```\n\n## Two\n\nSecond.\n\nThree\n=====\n\nThird.\n"


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1000, [GUIDE.rstrip("\n")]),
        (45, ["Intro.\n\n# One\n\nFirst.\n\n```sh\n# no heading\n```", "## Two\n\nSecond.\n\nThree\n=====\n\nThird."]),
        (1, None),
    ],
)
def test_sections_are_cut_at_headings_and_joined_as_far_as_they_fit(most: int, expected: list[str] | None) -> None:
    found = list(documents.pieces(GUIDE, most))
    assert expected is None or found == expected
    assert all(len(one) <= most for one in found)


def test_a_long_section_is_cut_between_paragraphs_then_lines_then_words() -> None:
    assert list(documents.pieces("aaaa bbbb\ncccc\n\ndddd", 16)) == ["aaaa bbbb\ncccc", "dddd"]
    assert list(documents.pieces("aaaa bbbb\ncccc", 10)) == ["aaaa bbbb", "cccc"]
    assert list(documents.pieces("aaaa bbbb", 5)) == ["aaaa", "bbbb"]
    assert list(documents.pieces("字" * 12, 5)) == ["字" * 5, "字" * 5, "字" * 2]


@given(st.text(st.sampled_from("ab#`~=- \n字"), max_size=120), st.integers(1, 30))
def test_nothing_is_lost_but_white_space_and_no_piece_is_too_long(text: str, most: int) -> None:
    found = list(documents.pieces(text, most))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(one.strip() and len(one) <= most for one in found)


def test_a_folder_is_read_in_the_order_of_names_without_what_is_hidden_or_linked(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b/2.md", "b/1.TXT", "a.rst", ".git/x.md", "c.py", "~.md"):
        (tmp_path / name).write_text(f"text of {name}\n", "utf-8")
    (tmp_path / "link.md").symlink_to("/etc/hostname")
    found = [record.fields["text"] for record in documents.records(tmp_path)]
    assert found == ["text of a.rst", "text of b/1.TXT", "text of b/2.md", "text of ~.md"]


def test_front_matter_is_no_part_of_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\ntitle: A\ntags:\n  - b\n---\n# A\n\nText.\n\n---\n\nMore: text.\n", "utf-8")
    assert [record.fields["text"] for record in documents.records(tmp_path)] == ["# A\n\nText.\n\n---\n\nMore: text."]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"a\nb\0c", "a.md:2: holds a NUL character: is it a text?"), (b"caf\xe9 and more of it", "a.md:1: not UTF-8")],
)
def test_what_is_no_text_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(content)
    with pytest.raises(UserError) as raised:
        list(documents.records(tmp_path))
    assert str(raised.value).startswith(f"{tmp_path}/{reason}")


def test_a_folder_without_documents_and_one_with_too_much_are_told(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UserError, match="is a folder without documents .*, and not the export of a chat program"):
        list(documents.records(tmp_path))
    (tmp_path / "a.md").write_text("abc", "utf-8")
    (tmp_path / "b.md").write_text("abc", "utf-8")
    monkeypatch.setattr(documents, "MOST_BYTES", 2)
    with pytest.raises(UserError, match=r"a.md: is larger than 2 B: cut it into several documents"):
        list(documents.records(tmp_path))
    monkeypatch.setattr(documents, "MOST_FILES", 1)
    with pytest.raises(UserError, match="holds more than 1 documents: name a folder in it"):
        list(documents.records(tmp_path))


def test_front_matter_of_any_length_is_left_out_and_takes_no_time() -> None:
    front = "---\ntitle: a: b\n" + "key: value\n  - inner: x\n- a: b\n\n" * 40
    assert documents.FRONT.sub("", f"{front}---\nText.\n") == "Text.\n"
    # It never ends, and no line of it may be tried in two ways.
    assert documents.FRONT.sub("", f"{front}no more\n") == f"{front}no more\n"
