"""How synthetic tasks are worded, by language. A {mark} is filled in by ``fill``, each as a piece of its own.

A value is encoded apart from the words around it, so that it has the same tokens where it stands in the text and where
it is the answer. ``space`` goes before every filled-in word: the word then begins as words inside a sentence do.
"""

import re
from dataclasses import dataclass

from farside.data.synthetic import words


@dataclass(frozen=True)
class Phrases:
    """keys, values: word lists as of needles. ends: what ends a sentence. The others: hidden sentences, and for each
    question a stem (``_ask``) and what completes it (``_answer``)."""

    keys: tuple[str, str]
    values: tuple[str, str]
    joint: str
    space: str
    ends: tuple[str, ...]
    comma: str
    list_open: str
    list_entry: str
    list_close: str
    list_ask: str
    list_answer: str
    track_set: str
    track_ask: str
    track_answer_end: str
    note: str
    note_ask: str
    note_answer: str
    most_ask: str
    document: str
    fact: str
    document_ask: str
    document_answer: str
    fact_ask: str
    fact_answer: str
    section: str
    sections_ask: str
    sections_answer: str
    shot: str
    shot_ask: str
    shot_answer: str


ENGLISH = Phrases(
    keys=words.ENGLISH_KEYS,
    values=words.ENGLISH_VALUES,
    joint=" ",
    space=" ",
    ends=(".", "!", "?", "\n"),
    comma=",",
    list_open="\nA list of names and things:\n",
    list_entry="-{key}:{value};\n",
    list_close="End of the list.\n",
    list_ask="\nIn the list is{key}:",
    list_answer="{value};",
    track_set=" Let{name} be{value}.",
    track_ask="\nEqual to{value}:",
    track_answer_end=".",
    note=" Noted:{word}.",
    note_ask="\nTimes that{word} was noted:",
    note_answer="{number}.",
    most_ask="\nNoted most often:",
    document="\nDocument{number}.\n",
    fact=" The{key} keeps the{value}.",
    document_ask="\nDocument that tells of the{key}:",
    document_answer="{number}.",
    fact_ask="\nThe{key} keeps the",
    fact_answer="{value}.",
    section=" Headline: the{key} finds the{value}.",
    sections_ask="\nAll headlines in order:",
    sections_answer=" The{key} finds the{value}.",
    shot="\n{input}{arrow}{label}.",
    shot_ask="\n{input}{arrow}",
    shot_answer="{label}.",
)
CHINESE = Phrases(
    keys=words.CHINESE_KEYS,
    values=words.CHINESE_VALUES,
    joint="",
    space="",
    ends=("。", "！", "？", "；", "\n"),
    comma="、",
    list_open="\n以下是名称与物品的清单：\n",
    list_entry="－{key}：{value}；\n",
    list_close="清单完。\n",
    list_ask="\n清单中有{key}：",
    list_answer="{value}；",
    track_set="令{name}为{value}。",
    track_ask="\n等于{value}的有：",
    track_answer_end="。",
    note="记下：{word}。",
    note_ask="\n{word}记下的次数：",
    note_answer="{number}。",
    most_ask="\n记下最多的是：",
    document="\n文件{number}。\n",
    fact="{key}保管着{value}。",
    document_ask="\n提到{key}的文件：",
    document_answer="{number}。",
    fact_ask="\n已知{key}保管着",
    fact_answer="{value}。",
    section="标题：{key}找到{value}。",
    sections_ask="\n依次列出所有标题：",
    sections_answer="{key}找到{value}。",
    shot="\n{input}{arrow}{label}。",
    shot_ask="\n{input}{arrow}",
    shot_answer="{label}。",
)
CODE = Phrases(
    keys=words.ENGLISH_KEYS,
    values=words.ENGLISH_VALUES,
    joint="_",
    space="",
    ends=("\n",),
    comma=", ",
    list_open="\nTABLE = {\n",
    list_entry='    "{key}": "{value}",\n',
    list_close="}\n",
    list_ask='\nassert TABLE["{key}"] == "',
    list_answer='{value}"',
    track_set="{name} = {value}\n",
    track_ask="\n# equal to {value}: ",
    track_answer_end="\n",
    note="# noted: {word}\n",
    note_ask="\n# times that {word} was noted: ",
    note_answer="{number}\n",
    most_ask="\n# noted most often: ",
    document="\n# file {number}\n",
    fact='{key} = "{value}"\n',
    document_ask="\n# file that sets {key}: ",
    document_answer="{number}\n",
    fact_ask='\nassert {key} == "',
    fact_answer='{value}"',
    section="# headline: {key} calls {value}\n",
    sections_ask="\n# all headlines in order:",
    sections_answer=" {key} calls {value};",
    shot="\n# {input}{arrow}{label};",
    shot_ask="\n# {input}{arrow}",
    shot_answer="{label};",
)
PHRASES = {"en": ENGLISH, "zh": CHINESE, "code": CODE}


def fill(template: str, space: str, **values: str) -> list[str]:
    """The template's literal parts and its values, in order, each a piece that is encoded by itself."""
    parts = re.split(r"\{(\w+)\}", template)
    return [part if place % 2 == 0 else space + values[part] for place, part in enumerate(parts) if part]
