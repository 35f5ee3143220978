"""Texts that tell a wrong tokenizer from a right one."""

from __future__ import annotations

# What tokenisers disagree on when something went wrong: digits, white space, contractions, scripts, emoji with joiners,
# code, controls, long runs. All in NFC: llama.cpp applies no normalisation, and chats are nearly always NFC already.
HARD = (
    *("Hello, world!", " leading", "trailing ", "  two  spaces  ", "tab\there", "line\nfeed", "a\r\nb", "\n\n\n", " \n \n"),
    *("I'm you're he'll WE'VE", "don't DON'T", "1", "12", "123", "1234567890", "3.14159", "1,000,000", "2026-11-21", "½ ²"),
    *("The quick brown fox jumps over the lazy dog.", "naïve café Ærø ß ﬁ", "ÀÉÎÕÜ", "Привет, мир!", "Γειά σου Κόσμε"),
    *("你好，世界！", "用户：请问台北天气如何？", "助手：今天晴。", "繁體中文與简体中文", "日本語のテキスト、カタカナ", "한국어 문장"),
    *("العربية مرحبا", "שלום עולם", "हिन्दी में", "ภาษาไทย", "😀", "👩‍👩‍👧‍👦 🇹🇼 👍🏽", "∀x∈ℝ: x²≥0", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢"),
    *("def f(x):\n    return x ** 2  # comment", "<div class=\"a\">&amp;</div>", '{"key": [1, 2.5, null]}', "C:\\Users\\x"),
    *("a" * 70, "=" * 40, "." * 9, " " * 17, "\t\t\t", "https://example.org/a?b=c&d=%20", "user@example.org", "___init___"),
    *("\u00a0non-breaking\u3000wide", "zero\u200bwidth", "\ufeffmark", "\x01\x02", "\u0301", "<|not_special|>", "<s>", "</s>"),
)  # fmt: skip
# Texts that tokenizers disagree about. The special tokens of the vocabulary at hand are added to them.
HARD_TEXTS = (
    "Hello, world! It's 12345 o'clock; I'LL pay $1,234.56 (or 1/2 = 50 %).",
    "½ ¼ ² ³ ① Ⅷ ٣ ७ 一二三 1234567890 0x1F 3.14e-10",
    "😀 👩‍👩‍👧‍👦 🇹🇼 ✈️ e\u0301 é ﬁ ﬀ Å ー 한글 日本語テキスト",
    "你好，世界！今天天氣怎麼樣？「繁體」與『简体』混排123個字。　全形空格",
    "def f(x):\n\tif x is None:\n        return [i for i in range(10)]  # comment\n\n\n\nprint(f'{x!r}')\r\n",
    " leading", "  two", "   three\t\ttabs \t mixed", "trailing ", "trailing  \n", "\n", " \n ", "\n\n\n", "\r\n\r\n", "\t",
    "a\u00a0b\u2003c\u200bd\u3000e\ufefff", "don't DON'T we'Ve I'm they'll Ünïcödé straße ΑΒΓ абв العربية עברית हिन्दी ไทย",
    "http://example.com/a_b?c=d&e=%20#frag user@host.org C:\\path\\file.txt <b>html</b> &amp; {\"json\": [1, null]}",
    "aaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!! ======== ........ ________ ########", "'''\"\"\"```~~~^^^|||",
    "\x00\x01\x1f\x7f control", "\U0001f9d1\u200d\U0001f4bb \U000e0061 \ue000 \ufffd", "x" * 300, "1" * 50, "    " * 20 + "end",
)  # fmt: skip
