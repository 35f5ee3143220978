"""Small sample files in every format that is read:  python training/create_sample_data.py --output-dir DIR

Standard library only. Prints the paths of what was written, one a line; files of the same names are replaced.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.errors import FinetuneError, MachineError, UserError
from training.system import files, last_net, listeners, paths, privacy
from training.system.plain_parser import Parser

# Facts that stay true, and answers as one wants them from an assistant: the point first, in whole sentences.
INSTRUCTIONS = [
    ("把下面的句子翻译成英文。", "今天天气很好，我们去公园散步吧。", "The weather is lovely today. Let's go for a walk in the park."),
    ("用一句话说明什么是光合作用。", "", "光合作用是植物利用阳光，把二氧化碳和水变成糖并放出氧气的过程。"),
    (
        "概括下面这段话的主要意思。",
        "图书馆从下周一起延长开放时间，工作日开到晚上十点，周末开到晚上八点。借书的期限不变，仍是三十天。",
        "图书馆下周一起延长开放：工作日到晚上十点，周末到晚上八点；借书期限仍为三十天。",
    ),
    ("判断这条评论的情感是正面还是负面。", "包装很结实，送货也快，就是价格稍微贵了一点，总体很满意。", "正面。评论者虽然觉得价格偏高，但总体很满意。"),
    ("改正句子里的错别字。", "他以经把作业做完了，现再正在看书。", "他已经把作业做完了，现在正在看书。"),
    ("怎样煮一锅软硬适中的米饭？", "", "先把米淘洗一两遍，按一份米、一份多一点水的比例加水，浸泡二十分钟后煮熟，关火再焖十分钟。"),
    ("从下面的文字里找出时间和地点。", "家长会定于三月十五日下午两点，在学校礼堂举行。", "时间：三月十五日下午两点。地点：学校礼堂。"),
    ("写一封简短的请假邮件，理由是感冒。", "", "王经理：\n\n您好！我今天感冒发烧，需要在家休息一天，手头的工作已经交给小李。明天我会照常上班。\n\n谢谢！\n张敏"),
    ("用 Python 写一个函数，求一个列表的平均数。", "", "def average(numbers):\n    if not numbers:\n        raise ValueError(\"列表是空的\")\n    return sum(numbers) / len(numbers)"),
    ("解释成语“画蛇添足”的意思，并造一个句子。", "", "“画蛇添足”比喻做了多余的事，反而不好。例句：文章写到这里已经很完整，再加一段就是画蛇添足了。"),
]  # fmt: skip
ALPACA = [
    ("Translate the sentence into Chinese.", "The train leaves at half past seven.", "火车七点半开。"),
    ("把下面的单位换算成千克。", "2500 克", "2500 克等于 2.5 千克。"),
    ("给一家新开的面馆起三个名字。", "", "一碗春风、老街面坊、面面俱到。"),
    ("把这句话改成被动句。", "大风吹倒了院子里的树。", "院子里的树被大风吹倒了。"),
]
SYSTEM = "你是一家网上书店的客服，回答简短而有礼貌。"
CHATS = [
    [("system", SYSTEM), ("user", "我的订单什么时候能到？"), ("assistant", "您好！请告诉我订单号，我马上帮您查询。"),
     ("user", "订单号是 20260214。"), ("assistant", "谢谢！这个订单昨天已经发出，预计后天送到。")],
    [("system", SYSTEM), ("user", "书的封面破了，可以换吗？"), ("assistant", "很抱歉！收到后七天内都可以免费换，请拍一张封面的照片发给我们。")],
    [("user", "月亮为什么有圆有缺？"), ("assistant", "月亮自己不发光。它绕地球转动时，我们看到的被太阳照亮的部分有多有少，所以有圆有缺。"),
     ("user", "一个周期是多长？"), ("assistant", "从一次满月到下一次满月大约是二十九天半。")],
    [("user", "请推荐一种适合初学者的运动。"), ("assistant", "可以从快走开始：不需要器材，每天三十分钟，身体适应以后再慢慢加快。")],
]  # fmt: skip
CONVERSATIONS = [
    [("human", "你好，请问怎样去火车站？"), ("gpt", "您好！坐地铁二号线到终点站，从 A 口出来就是火车站。"),
     ("human", "大概要多长时间？"), ("gpt", "大约三十五分钟，上下班时间请再多留十分钟。")],
    [("human", "水在多少度会结冰？"), ("gpt", "在标准大气压下，纯水在零摄氏度结冰。")],
    [("human", "“海内存知己”的下一句是什么？"), ("gpt", "下一句是“天涯若比邻”，出自唐代诗人王勃的《送杜少府之任蜀州》。")],
]  # fmt: skip
PROMPTS = [
    ("我想学书法，应该先买什么？", "先准备一支中号毛笔、一瓶墨汁、一叠毛边纸和一本楷书字帖就够了。"),
    ("早上总是起不来，怎么办？", "试着每天提前半小时睡觉，把闹钟放在床以外的地方，起床后马上拉开窗帘。"),
    ("帮我想一句生日祝福。", "祝你生日快乐，愿新的一岁里，想做的事都有时间，想见的人都在身边。"),
    ("下雨天适合做什么？", "可以整理书架、煮一锅热汤，或者看一部一直想看的电影。"),
]
QUESTIONS = [
    ("中国最长的河流是哪一条？", "中国最长的河流是长江，全长约六千三百公里。"),
    ("一年有多少个节气？", "一年有二十四个节气，从立春开始，到大寒结束。"),
    ("“会议改到周五”用英语怎么说？", "可以说 “The meeting has been moved to Friday.”"),
    ("《红楼梦》的作者是谁？", "一般认为前八十回的作者是清代的曹雪芹。"),
    ("三角形的内角和是多少度？", "平面上任何三角形的内角和都是一百八十度。"),
]
TEXTS = [
    "清晨的集市最热闹，卖菜的人把刚摘下来的青菜摆得整整齐齐，叶子上还带着露水。",
    "茶要趁热喝。第一泡香气最浓，第二泡味道最厚，到了第三泡，就只剩下淡淡的回甘。",
    "铁路修到山里的那一年，村里的年轻人第一次看见了海。",
    "写日记不必求长，记下一件事、一句话、一点心情，日子久了就是一本书。",
    "冬至过后，白天一天比一天长，人们说这是“吃了冬至面，一天长一线”。",
    "老师傅修表的时候从不说话，屋子里只听得见滴答滴答的声音。",
]


def samples() -> dict[str, str]:
    """File name -> content."""
    alpaca = [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in INSTRUCTIONS]
    return {
        "sample_data.json": json.dumps(alpaca, ensure_ascii=False, indent=2) + "\n",
        "sample_alpaca.jsonl": _lines(
            dict(zip(("instruction", "input", "output"), row, strict=True)) for row in ALPACA
        ),
        "sample_chat.jsonl": _lines(
            {"messages": [{"role": role, "content": text} for role, text in chat]} for chat in CHATS
        ),
        "sample_conversations.jsonl": _lines(
            {"conversations": [{"from": role, "value": text} for role, text in chat]} for chat in CONVERSATIONS
        ),
        "sample_prompt_completion.jsonl": _lines(
            {"prompt": f"用户: {question}", "completion": f"助手: {answer}"} for question, answer in PROMPTS
        ),
        "sample_qa.csv": _csv([("input", "output"), *QUESTIONS]),
        "sample_text.txt": "".join(text + "\n" for text in TEXTS),
        "sample_text_turns.jsonl": _lines({"text": f"用户：{asked}\n助手：{answer}"} for asked, answer in PROMPTS),
    }


def _lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write(folder: Path) -> list[Path]:
    """Write every sample into `folder`, which is made if need be; gives the paths.

    UserError when `folder` is a file; MachineError when it cannot be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output-dir {folder}: is a file, not a folder")
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in samples().items():
            files.write_text(folder / name, content, shared=True)
    except OSError as error:
        raise MachineError(
            f"{folder} cannot be written: {error.strerror or error}; --output-dir names another"
        ) from None
    return [folder / name for name in samples()]


def main(argv: Sequence[str]) -> int:
    """The command line: paths on stdout, errors on stderr; returns the exit code."""
    parser = Parser(
        prog="create_sample_data.py", description=__doc__.splitlines()[0].partition(":")[0], allow_abbrev=False
    )
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="where to write; made if it is not there")
    try:
        for path in write(paths.expanded(parser.parse_args(argv).output_dir).absolute()):
            listeners.tell(sys.stdout, privacy.path_for(sys.stdout, path) + "\n")
    except FinetuneError as error:
        privacy.tell(error)
        return error.exit_code
    except Exception as error:
        told = last_net.caught(error)
        privacy.tell(told)
        return told.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
