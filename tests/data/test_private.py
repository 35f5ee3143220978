"""Private things in rows: what is found and what is not, and what ON_PRIVATE makes of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import BadRow, Record, Row, private, rows
from training.data.reading import Reading
from training.system import privacy

KEY = b"k" * 32
PRIVATE = [
    ("e-mail", "ann.o'neil+x@mail.company.co.uk", "neil+x@mail.company.co.uk"),
    ("e-mail", "write to 王@公司.cn or ann@company.de.", "ann@company.de"),
    ("iban", "IBAN: DE89 3704 0044 0532 0130 00 THANKS", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432", "GB82WEST12345698765432"),
    ("card", "4111 1111 1111 1111", "4111 1111 1111 1111"),
    ("card", "card 5500-0055-5555-5559, thanks", "5500-0055-5555-5559"),
    ("card", "378282246310005", "378282246310005"),
    ("id", "身份证11010519491231002X。", "11010519491231002X"),
    ("id", "身分證A123456789", "A123456789"),
    ("phone", "call +49 171 1234567 now", "+49 171 1234567"),
    ("phone", "我的手机是13912345678", "13912345678"),
    ("phone", "0912-345-678", "0912-345-678"),
    ("phone", "(555) 010-0199", "(555) 010-0199"),
    ("key", "use sk-abcdefghijklmnopqrstuvwx1234", "sk-abcdefghijklmnopqrstuvwx1234"),
    ("key", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "value"), PRIVATE, ids=[text[:30] for _, text, _ in PRIVATE])
def test_private_things_are_found_where_they_stand(kind: str, text: str, value: str) -> None:
    (found,) = private.find(text)
    assert (found.kind, text[found.start : found.end]) == (kind, value)
    assert private.kinds(["Hello.", text, ""]) == (kind,)
    assert private.kinds([], [json.dumps({"said": [text]})]) == (kind,)


def test_digits_of_one_text_and_of_the_next_make_no_number() -> None:
    assert private.kinds(["call 0171", "1234567 now"]) == ()


@given(st.from_regex(f"(?:{privacy._ANYWHERE}|{privacy._BEGINNING})", fullmatch=True))
def test_a_text_with_a_key_of_any_known_shape_is_looked_through(key: str) -> None:
    assert privacy.may_hold_keys(f"a {key} b") and list(privacy.keys(key))


@pytest.mark.parametrize(
    "text",
    [
        *("user@example.com", "a@b", "@ann", "someone@mail.test"),
        # A digit of each is wrong.
        *("DE88 3704 0044 0532 0130 00", "4111 1111 1111 1112", "110105194912310021", "A123456788"),
        *("on 2024-03-13 at 10:05:09", "1710324000", "3.14159265358979", "1,234,567,890", "v1.2.3-4567", "0 1 2 3 4 5 6 7 8 9"),
        *("order 123456789012345678", "192.168.100.200", "2019-2024", "10000000000000", "pages 100-200"),
    ],
)  # fmt: skip
def test_other_numbers_and_addresses_of_examples_are_nobodys(text: str) -> None:
    assert private.find(text) == []


# The same things as people write them.
WRITTEN = {
    ("phone", "+491711234567"): [
        "+49.171.1234567", "+49 (0)171 1234567", "+49 (0) 171 / 1234567", "0049 171 1234567", "+49-171-1234567",
        "+49\u00a0171\u00a01234567", "+49 171\u2011123\u20114567", "+49\u202f171 1234567", "＋４９ １７１ １２３４５６７",
    ],
    ("phone", "01711234567"): ["0171.1234567", "0171 123 45 67", "0171-123-4567", "01711234567", "0171/1234567", "(0171) 123 45 67"],
    ("phone", "0123456789"): ["01 23 45 67 89", "01.23.45.67.89", "01-23-45-67-89"],
    ("phone", "03012345678"): ["(030) 12345678", "030 - 12345678", "030/12345678"],
    ("phone", "02079460958"): ["020 7946 0958", "(020) 7946 0958"],
    ("phone", "5550100199"): ["555.010.0199", "555-010-0199", "(555) 010-0199"],
    ("phone", "13912345678"): ["139-1234-5678", "１３９１２３４５６７８", "139 1234 5678"],
    ("iban", "de89370400440532013000"): [
        "de89 3704 0044 0532 0130 00", "De89370400440532013000", "DE89-3704-0044-0532-0130-00", "DE 89 3704 0044 0532 0130 00",
        "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000", "DE89 3704\n0044 0532 0130 00", "DE89.3704.0044.0532.0130.00",
    ],
    ("card", "4111111111111111"): [
        "4111.1111.1111.1111", "4111\u00a01111\u00a01111\u00a01111", "4111–1111–1111–1111", "4111  1111  1111  1111",
    ],
    ("id", "11010519491231002x"): ["110105 19491231 002X", "110105-19491231-002x", "１１０１０５１９４９１２３１００２Ｘ"],
    ("id", "a123456789"): ["a123456789", "A 123456789", "A-123456789", "Ａ１２３４５６７８９"],
    ("e-mail", "ann@company.de"): ["ann＠company.de", "ann (at) company.de", "ann[at]company[dot]de", "Ann@Company.de", "Ann (AT) company (dot) de"],
    ("key", "sk-abcdefghijklmnopqrstuvwx1234"): ["sk-abcdefghijkl\nmnopqrstuvwx1234", "sk-abcdefghijklmnopqr\r\nstuvwx1234"],
    ("key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdef"): ["eyJhbGciOiJIUzI1NiJ9.\neyJzdWIiOiIxMjM0In0.\nabcdef"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), WRITTEN)
def test_the_same_thing_is_found_however_it_is_written_and_has_one_mask(kind: str, value: str) -> None:
    for text in WRITTEN[kind, value]:
        assert [(one.kind, one.value) for one in private.find(f"it is {text}, yes")] == [(kind, value)], text
        assert private.kinds([f"it is {text}, yes"]) == (kind,), text
        assert private.masked(f"it is {text}, yes", KEY) == f"it is {private.mask(kind, value, KEY)}, yes", text


@pytest.mark.parametrize(
    "text",
    [
        *("12.01.2026 13:45", "05.03.2026 10:30", "05-03-2026 10", "2026.01.12 0945", "1.234.567,89 EUR", "1 000 000 000"),
        *("05 12 23 34 41 49", "Version 01.23.45.67", "10.20.30.40:8080", "ISBN 978-3-16-148410-0", "GPS 52.520008, 13.404954"),
        *("at20 people and we had 15 plates", "we met (at) home", "the one [at] the end", "ann (at) example.com"),
        *("task-abcdefgh\n1234abcd5678", "sk-ip it\n12345678", "a\u00a0b\u00a01", "１２３、４５６。"),
    ],
)  # fmt: skip
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert private.find(text) == []


def test_what_stands_behind_a_number_does_not_hide_it() -> None:
    for behind in (" (2024)", " / 20241", ", 12345", " (20241)", " 2 pm", "\n12 people"):
        assert "1234567" not in private.masked(f"call +49 171 1234567{behind}", KEY), behind


@given(st.from_regex(r"4[0-9]{14}", fullmatch=True))
def test_of_ten_last_digits_one_makes_a_card(number: str) -> None:
    assert sum(private.is_card(f"{number}{last}") for last in range(10)) == 1


@given(st.from_regex(r"110105(19|20)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|1[0-9]|2[0-8])[0-9]{3}", fullmatch=True))
def test_of_eleven_last_signs_one_makes_a_chinese_number(number: str) -> None:
    assert sum(private.is_chinese_id(f"{number}{last}") for last in "0123456789X") == 1


@given(st.from_regex(r"[A-Z][12][0-9]{7}", fullmatch=True))
def test_of_ten_last_digits_one_makes_a_taiwanese_number(number: str) -> None:
    assert sum(private.is_taiwanese_id(f"{number}{last}") for last in range(10)) == 1


@given(st.text(), st.sampled_from([text for _, text, _ in PRIVATE]), st.text())
def test_a_masked_text_holds_no_private_thing_and_keeps_the_rest(before: str, held: str, behind: str) -> None:
    text = f"{before}\n{held}\n{behind}"
    made = private.masked(text, KEY)
    assert private.find(made) == []
    at = 0
    for one in private.find(text):
        assert text[one.start : one.end] not in made
        at = max(at, one.end)
    assert made.endswith(text[at:])


def test_masks_are_the_same_for_the_same_thing_and_others_for_others_and_with_other_data() -> None:
    first = private.masked("call +49 171 1234567 or (+49 171-1234567)", KEY)
    one, two = first.removeprefix("call ").replace("(", "").replace(")", "").split(" or ")
    assert one == two and one.startswith("[phone ")
    assert private.masked("Ann@Company.de", KEY) == private.masked("ann@company.de", KEY)
    assert private.masked("ann@company.de", KEY) != private.masked("ben@company.de", KEY)
    assert private.masked("ann@company.de", KEY) != private.masked("ann@company.de", b"other")


def test_time_grows_with_what_is_found_and_not_with_its_square() -> None:
    text = " ".join(f"ann{number}@company.de" for number in range(20_000))
    begun = time.process_time()
    assert len(private.find(text)) == 20_000
    # Each compared with each takes some 15 seconds.
    assert time.process_time() - begun < 5


def test_masks_of_thousands_of_addresses_differ() -> None:
    assert len({private.mask("e-mail", f"ann{number}@company.de", KEY) for number in range(5000)}) == 5000


def test_the_key_of_a_folder_is_of_what_its_files_hold_and_not_of_what_was_written_there(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one")
    first = private.key_of(tmp_path)
    (tmp_path / "my.jsonl").write_text("{}")
    assert private.key_of(tmp_path) == first
    (tmp_path / "a.md").write_text("two")
    assert private.key_of(tmp_path) != first


# ---- in rows -----------------------------------------------------------------------------------------------------


def row(on_private: str, **fields: object) -> Row | BadRow:
    held = fields or {"prompt": "Where is Ann?", "completion": "Ask ann@company.de or +49 171 1234567."}
    return rows.interpret(Record(3, held), Path("a.jsonl"), Reading(on_private=on_private, mask_key=KEY))


def test_stop_refuses_the_row_with_its_line_and_does_not_print_it() -> None:
    found = row("stop")
    assert str(found) == (
        "a.jsonl:3: holds an e-mail address and a phone number: ON_PRIVATE = mask writes a mask in its place, warn learns it"
    )


def test_warn_tells_the_kinds_and_learns_the_row() -> None:
    found = row("warn")
    assert isinstance(found, Row) and found.messages
    assert (found.private, found.messages[1].content) == (("e-mail", "phone"), "Ask ann@company.de or +49 171 1234567.")


def test_off_looks_for_nothing() -> None:
    found = row("off")
    assert isinstance(found, Row) and found.private == ()


def test_mask_writes_masks_wherever_the_row_has_text() -> None:
    call = {"name": "mail", "arguments": {"to": "ann@company.de"}}
    messages = [
        {"role": "system", "content": "You are ann@company.de."},
        {"role": "user", "content": "Who?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "ann@company.de?",
            "tool_calls": [{"function": call}],
        },
        {"role": "tool", "content": "sent to ann@company.de"},
        {"role": "assistant", "content": "ann@company.de"},
    ]
    found = row("mask", messages=messages)
    assert isinstance(found, Row) and found.messages
    assert "company.de" not in repr(found) and repr(found).count("[e-mail ") == 5
    assert "with an e-mail address, masked (ON_PRIVATE = mask)" in found.read_as
    text = row("mask", text="Ann is ann@company.de.")
    assert isinstance(text, Row) and text.text and text.text.startswith("Ann is [e-mail ")


@pytest.mark.parametrize(
    "held",
    [
        {"a": "x\n13912345678"}, {"a": "x\nann@company.de"}, {"a": "x\tann@company.de\n"}, {"a": 13912345678},
        {"a": [4111111111111111, {"b": "+49 171 1234567"}]}, {"ann@company.de": 1}, {"a": '{"b": "x\\n13912345678"}'},
        {"a": '{"b": 13912345678}'},
    ],
)  # fmt: skip
@pytest.mark.parametrize("on_private", ["mask", "stop"])
def test_calls_and_offers_are_looked_through_value_by_value_and_stay_json(held: dict, on_private: str) -> None:
    tools = [{"type": "function", "function": {"name": "save", "parameters": {"default": held}}}]
    call = {"id": "abc123def", "type": "function", "function": {"name": "save", "arguments": held}}
    messages = [{"role": "user", "content": "Do."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    messages += [{"role": "tool", "content": json.dumps(held)}, {"role": "assistant", "content": "Done."}]
    found = row(on_private, messages=messages, tools=tools)
    if on_private == "stop":
        assert isinstance(found, BadRow) and "holds a" in found.reason
        return
    assert isinstance(found, Row) and found.messages
    called, result = json.loads(found.messages[1].more), json.loads(found.messages[2].content)
    arguments = called["tool_calls"][0]["function"]["arguments"]
    assert arguments == result == json.loads(found.tools)[0]["function"]["parameters"]["default"]
    assert not any(sign in str(arguments) for sign in ("13912345678", "company", "4111111111111111", "1234567"))
    assert private.kinds([], [json.dumps(arguments)]) == ()
    if isinstance(held.get("a"), str) and held["a"].startswith("{"):
        json.loads(arguments["a"])
