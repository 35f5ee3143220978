"""The reader of settings files: what it takes from a file, with line numbers, and how it fails."""

import configparser
import os
import time
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import UserError
from training.settings import ini_file

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def values(text):
    """{(section, key): value} of a text that is all right."""
    found = ini_file.parse(text)
    assert not found.problems
    return {(entry.section, entry.key): entry.value for entry in found.entries}


def value(written):
    return values(f"[S]\nK = {written}\n")["S", "K"]


def problems(text):
    return ini_file.parse(text).problems


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("plain", "plain"),
        ("  two words  ", "two words"),
        ("100% #1;x", "100%"),
        ("100%#1;x", "100%#1;x"),
        ("a ; comment", "a"),
        ("a\t# comment", "a"),
        ("# comment", ""),
        ("", ""),
        ("a = b", "a = b"),
        ("%(home)s", "%(home)s"),
        ("$HOME", "$HOME"),
        ('" a # b "', " a # b "),
        ('"a" ; comment', "a"),
        ('"say \\"hi\\"\\n\\t\\\\n"', 'say "hi"\n\t\\n'),
        ('""', ""),
        ("'a'", "'a'"),
        ('a "b" c', 'a "b" c'),
        ("back\\nslash", "back\\nslash"),
        ("U+2028\u2028stays", "U+2028\u2028stays"),
        ("\u3000全角空白\u3000", "全角空白"),
    ],
)
def test_a_value_is_what_stands_there(written, read):
    assert value(written) == read


def test_an_equals_sign_and_a_hash_without_white_space_are_text():
    assert values("[S]\nK=#fff\nL==") == {("S", "K"): "#fff", ("S", "L"): "="}


def test_keys_keep_their_case_and_sections_their_name():
    assert values("[ LoRA ] ; the adapter\n  r = 1\nR = 2") == {("LoRA", "r"): "1", ("LoRA", "R"): "2"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path, end, mark):
    path = tmp_path / "c.ini"
    path.write_bytes((mark + end.join(["# head", "[S]", "", "K = 值", "L = 2"])).encode())
    assert [(e.key, e.value, e.line) for e in ini_file.read(path).entries] == [("K", "值", 4), ("L", "2", 5)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("K = 1\n[S]", [(1, "K stands before any [Section]")]),
        ("[S]\nK = 1\nK = 2", [(3, "[S] K is given twice (first in line 2)")]),
        ("[S]\nK = 1\n[T]\n[S]\nK = 2", [
            (4, "section [S] appears twice (first in line 1)"), (5, "[S] K is given twice (first in line 2)")]),
        ("[S]\nhello", [(2, "hello is neither [Section] nor KEY = value")]),
        ("[S]\nK: 1", [(2, "K: 1 is neither [Section] nor KEY = value")]),
        ("[S]\n= 1", [(2, "= 1 is neither [Section] nor KEY = value")]),
        ("[S]\nK = one\n   two", [
            (3, "two: a value ends with its line; write \\n for a line break, or @file to take the value from a file")]),
        ("[S\nK = 1", [(1, "[S is not a section; write it as [Section]")]),
        ("[]\nK = 1", [(1, "[] is not a section; write it as [Section]")]),
        ("[S] x\nK = 1", [(1, "[S] x is not a section; write it as [Section]")]),
        ('[S]\nK = "one" two', [
            (2, '[S] K: the value begins with a quotation mark but does not end with one; write \\" inside')]),
        ('[S]\nK = "one', [
            (2, '[S] K: the value begins with a quotation mark but does not end with one; write \\" inside')]),
        ("[S]\n\x1b[31mred", [(2, "\\x1b[31mred is neither [Section] nor KEY = value")]),
        ("[S]\n" + "x" * 100, [(2, "x" * 57 + "... is neither [Section] nor KEY = value")]),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_named(text, found):
    assert problems(text) == found


def test_a_file_of_other_lines_is_not_read_to_its_end():
    found = problems("[S]\n" + '{"prompt": "a"}\n' * 100_000)
    assert len(found) == ini_file.MOST_PROBLEMS + 1
    assert found[-1] == (102, "the rest was not read; is this a settings file?")


def refused(path):
    with pytest.raises(UserError) as error:
        ini_file.read(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": the file is empty; a settings file needs at least a line such as [Model]"),
        (b"\xef\xbb\xbf \r\n", ": the file is empty; a settings file needs at least a line such as [Model]"),
        ("[S]\nK = 1".encode("utf-16"), ": is UTF-16; save it as UTF-8"),
        (b"[S]\nK = a\0b", ":2: holds a NUL byte: this is not a text file"),
        ("[S]\r\nK = 1\r\nL = 助手".encode("gb18030"), ":3: is not UTF-8 (byte 0xd6); save it as UTF-8"),
        ("\ufeff[S]\nK = é".encode() + b"\xff", ":2: is not UTF-8 (byte 0xff); save it as UTF-8"),
        (b"\x7fELF\x02\x01\x01\0", ":1: holds a NUL byte: this is not a text file"),
        (b"#" * (ini_file.LARGEST + 1), ": larger than 1 MiB; is this the right file?"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused(tmp_path, content, message):
    path = tmp_path / "c.ini"
    path.write_bytes(content)
    assert refused(path) == f"{path}{message}"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refused(tmp_path) == f"{tmp_path}: is a folder; a file is expected"
    assert refused(tmp_path / "none") == f"{tmp_path / 'none'}: no such file"
    assert refused(tmp_path / "pipe") == f"{tmp_path / 'pipe'}: is not a regular file"
    assert refused(tmp_path / "loop").startswith(f"{tmp_path / 'loop'}: ")
    assert refused(tmp_path / ("x" * 300)) == f"{tmp_path / ('x' * 300)}: cannot be read (File name too long)"


@contextmanager
def as_nobody():
    """Run as a user without rights where the tests run as root, whom no permission stops."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path = tmp_path / "c.ini"
    path.write_text("[S]\n")
    path.chmod(0)
    with as_nobody():
        assert refused(path) == f"{path}: permission denied"


@given(TEXT)
def test_a_quoted_value_reads_back_the_same(text):
    found = ini_file.parse(f"[S]\nK = {ini_file.quote(text)}  # comment")
    assert not found.problems
    (entry,) = found.entries
    # what stands without quotes has no meaning to settings/loading.py beyond its characters
    assert entry.value == text and (entry.quoted or "\\" not in text and not text.startswith("@"))


@given(TEXT)
def test_no_text_breaks_the_reader(text):
    found = ini_file.parse(text)
    assert all(1 <= line <= len(text) + 1 and "\n" not in reason for line, reason in found.problems)


LINE = st.one_of(
    st.sampled_from(["", "# note", "; note", "[S]", "[T]", "[Sü]"]),
    st.tuples(
        st.sampled_from(["K", "k", "L_2", "键"]),
        st.sampled_from([" = ", "=", " ="]),
        st.text(st.sampled_from("ab1 %=#;:[]助\u2028"), max_size=12),
    ).map("".join),
)


@pytest.mark.slow
@given(st.lists(LINE).map("\n".join))
def test_it_agrees_with_configparser_where_both_know_the_format(text):
    oracle = configparser.ConfigParser(
        interpolation=None, delimiters="=", comment_prefixes=("#", ";"), inline_comment_prefixes=("#", ";"),
        default_section="\0", empty_lines_in_values=False,
    )  # fmt: skip
    oracle.optionxform = str
    found = ini_file.parse(text)
    try:
        oracle.read_file(text.split("\n"))
    except configparser.Error:
        assert found.problems
        return
    assert not found.problems
    theirs = {(section, key): value for section in oracle.sections() for key, value in oracle[section].items()}
    assert {(entry.section, entry.key): entry.value for entry in found.entries} == theirs
    assert list(found.sections) == oracle.sections()


@pytest.mark.slow
@pytest.mark.parametrize("unit", [" ", '"', "\\", "[", "=", "a #", " #", "\r", "x\n", '\\"', "# ", "\t;"])
def test_a_megabyte_of_anything_is_read_at_once(unit):
    start = time.process_time()
    ini_file.parse("[S]\nK = " + unit * (ini_file.LARGEST // len(unit)))
    ini_file.parse('[S]\nK = "' + unit * (ini_file.LARGEST // len(unit)))
    assert time.process_time() - start < 5
