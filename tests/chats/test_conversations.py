"""From messages to conversations: where they are cut, whose turn is whose, and what is counted as left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.chats.conversations import GROUP_BEFORE, Conversation, Cutting, Unused, conversations
from training.chats.messages import Chat, Left, Message
from training.chats.picture import Picture
from training.chats.speakers import owner_of
from training.errors import UserError

ME = frozenset({"me"})


def chat(*said: tuple[str, str, float], **more: object) -> Chat:
    messages = [
        Message(who=who, text=text, time=60 * minute, line=number) for number, (who, text, minute) in enumerate(said, 1)
    ]
    return Chat(name="a", messages=messages, **more)


def rows(found: Chat, unused: Unused | None = None, **cutting: float) -> list[list[tuple[str, str]]]:
    made = conversations(found, ME, Cutting(**cutting), unused or Unused())
    return [list(one.turns) for one in made]


def test_silence_ends_a_conversation_and_less_does_not() -> None:
    found = chat(("Ann", "a", 0), ("me", "b", 30), ("Ann", "c", 60), ("me", "d", 91))
    assert len(rows(found, gap_minutes=31)) == 1
    # The last answer stands alone then.
    assert rows(found, gap_minutes=30) == [[("user", "a"), ("assistant", "b")]]


def test_what_one_side_says_in_a_row_is_one_turn() -> None:
    found = chat(("Ann", "a", 0), ("Ann", "b\nc", 0), ("me", "d", 1), ("me", "e", 2))
    assert rows(found) == [[("user", "a\nb\nc"), ("assistant", "d\ne")]]


def test_in_a_group_names_stand_in_front_and_only_the_last_words_before_an_answer_count() -> None:
    many = [("Ann" if n % 2 else "Cem", str(n), n) for n in range(GROUP_BEFORE + 3)]
    unused = Unused()
    ((asked, answer),) = rows(chat(*many, ("me", "ok", 99)), unused)
    assert answer == ("assistant", "ok")
    assert asked[1].split("\n")[0] == "Ann: 3" and asked[1].count("\n") == GROUP_BEFORE - 1
    assert unused.far == 3


def test_between_two_no_name_stands_in_front() -> None:
    assert rows(chat(("Ann", "a", 0), ("me", "b", 1))) == [[("user", "a"), ("assistant", "b")]]


def test_what_nobody_answers_and_what_only_the_owner_says_is_counted() -> None:
    found = chat(("Ann", "a", 0), ("me", "b", 1000), ("Ann", "c", 2000), ("me", "d", 2001), ("Ann", "e", 2002))
    unused = Unused()
    assert rows(found, unused) == [[("user", "c"), ("assistant", "d")]]
    assert (unused.unanswered, unused.only_mine, unused.after) == (1, 1, 2)


def test_a_whole_chat_is_not_cut_however_long_it_pauses() -> None:
    assert len(rows(chat(("Ann", "a", 0), ("me", "b", 99999), whole=True))) == 1


def test_a_long_conversation_is_cut_behind_answers() -> None:
    said = [("Ann" if n % 2 == 0 else "me", str(n), n) for n in range(11)]
    unused = Unused()
    made = rows(chat(*said), unused, most_turns=4)
    assert [[text for _, text in one] for one in made] == [list("0123"), list("4567"), ["8", "9"]]
    assert (unused.cut_long, unused.after) == (1, 1)
    assert len(rows(chat(*said), most_turns=0)) == 1


@given(
    st.lists(st.tuples(st.sampled_from(["Ann", "Cem", "me"]), st.integers(0, 400)), max_size=40),
    st.integers(1, 300),
    st.sampled_from([0, 2, 3, 5]),
)
def test_turns_alternate_end_with_an_answer_and_no_answer_is_learned_twice(said: list, gap: int, most: int) -> None:
    clock, messages = 0, []
    for number, (who, minutes) in enumerate(said):
        clock += minutes
        messages.append((who, str(number), clock))
    found = rows(chat(*messages), gap_minutes=gap, most_turns=most)
    learned = [line for one in found for role, text in one if role == "assistant" for line in text.split("\n")]
    assert len(learned) == len(set(learned)) and set(learned) <= {text for who, text, _ in messages if who == "me"}
    for one in found:
        roles = [role for role, _ in one]
        assert roles[-1] == "assistant" and "user" in roles
        assert all(before != after for before, after in zip(roles, roles[1:], strict=False))
        assert not most or len(roles) <= most


# ---- who is who --------------------------------------------------------------------------------------------------


def test_nobody_is_guessed_and_everybody_is_named() -> None:
    found = [chat(("Ann", "a", 0), ("Ben", "b", 1), ("Ann", "c", 2))]
    with pytest.raises(UserError) as raised:
        owner_of(found, (), "x.txt")
    assert str(raised.value) == (
        "x.txt: --my-name says whose answers are to be learned: Ann (2 messages) or Ben (1 message)"
    )


def test_a_name_that_nobody_has_is_refused_with_the_one_that_is_near_or_all() -> None:
    found = [chat(("Ann", "a", 0), ("Benjamin", "b", 1))]
    with pytest.raises(UserError, match="--my-name Benjamn: nobody of that name writes in x; did you mean Benjamin?"):
        owner_of(found, ["Benjamn"], "x")
    with pytest.raises(
        UserError, match=r"--my-name Zoe: nobody .*; there write Ann \(1 message\) or Benjamin \(1 message\)"
    ):
        owner_of(found, ["Zoe"], "x")


def test_several_names_of_one_person_are_one() -> None:
    found = [chat(("Ann", "a", 0), ("Ben", "b", 1), ("benny", "c", 2))]
    assert owner_of(found, ["ben", "@BENNY"], "x") == {"ben", "benny"}


def test_who_has_a_known_partner_is_the_other_one() -> None:
    assert owner_of([chat(("Ann", "a", 0), ("Ben", "b", 1), partner="Ann")], (), "x") == {"ben"}
    with pytest.raises(UserError, match="--my-name says"):
        owner_of([chat(("Ann", "a", 0), ("Ben", "b", 1), ("Cem", "c", 1), partner="Ann")], (), "x")


# ---- the picture -------------------------------------------------------------------------------------------------


def picture(found: Chat) -> Picture:
    made = Picture(path=Path("x"), program="X", chats=[found], owner=ME, left=Left(), cutting=Cutting())
    for one in conversations(found, ME, Cutting(), made.unused):
        made.add(one)
    return made


@pytest.mark.parametrize(
    ("question", "answer", "written"),
    [
        (
            "Wie geht es dir und wo bist du? Ich bin nicht da.",
            "Das ist gut, aber ich komme auch noch mit",
            "German 100%",
        ),
        ("你好，最近怎么样？", "还可以", "Chinese characters 100%"),
        ("こんにちは", "はい", "Japanese 100%"),
        ("Привет", "да", "Cyrillic 100%"),
        ("12:30?", "👍", "no letters"),
    ],
)
def test_the_picture_tells_in_what_is_written(question: str, answer: str, written: str) -> None:
    lines = list(picture(chat(("Ann", question, 0), ("me", answer, 1))).lines())
    assert lines[2].endswith(f"written in: {written}")


def test_the_picture_tells_how_much_there_is_and_when() -> None:
    lines = list(picture(chat(("Ann", "a", 0), ("me", "b", 1), ("Ann", "c", 3000), ("me", "d", 3001), ("Ann", "e", 9000))).lines())  # fmt: skip
    assert lines == [
        "x: read as an export of X: 1 chat; messages: Ann 3, me (you) 2",
        "  2 conversations, 4 turns, 2 answers to be learned, 1970-01-01 to 1970-01-03",
        "  longest: 2 turns, 2 characters; written in: Latin letters 100%",
        "  left out: 1 conversation without an answer; 1 message behind the last answer",
    ]


def test_a_conversation_is_written_as_messages() -> None:
    one = Conversation(turns=(("user", "a"), ("assistant", "b")), line=1, begun=None, ended=None)
    assert one.messages() == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
