"""The pages: links, anchors, figures and commands exist, README is short, sentences are short."""

import importlib
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

from common.command import parse
from common.config import check
from common.run import ROOT
from common.scripts import SCRIPTS
from tools.claims import PART, anchor

import pytest

PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "experiments/*.md", "experiments/*/*.md", "results/gallery/README.md")
    for path in ROOT.glob(pattern)
)
MOST_BYTES, MOST_WORDS = 10_000, 1_600  # of README
FIRST_WORDS = 150  # of README, within which the first command stands
MOST_WORDS_OF_A_SENTENCE = 25
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\[\]]*(?:\[[^\]]*\][^\[\]]*)*)\]\(([^()\s]+)\)")
COMMAND = re.compile(r"(?:^|[/\s`])(python3?(?:\.\d+)? (?:-m )?[\w./]+[^`#&|;\n]*)")


def text_of(page: Path) -> str:
    return (ROOT / page).read_text()


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text_of(page))


def anchors(page: Path) -> list[str]:
    """The anchors of a page's headings; a heading that stands twice gets -1 the second time, as on a rendered page."""
    names = []
    for heading in re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE):
        name = anchor(LINK.sub(r"\2", heading).replace("`", "").replace("*", ""))
        names.append(name + f"-{names.count(name)}" * (name in names))
    return names


def links(page: Path) -> list[tuple[bool, str, str]]:
    """Of every link of a page: whether it shows a picture, its text, its target."""
    text = prose(page)
    inner = [match for match in LINK.finditer(text)]
    nested = [match for outer in inner for match in LINK.finditer(outer[2])]
    return [(bool(match[1]), match[2], match[3]) for match in inner + nested]


# Links


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page):
    broken = []
    for _, _, target in links(page):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, fragment = unquote(target).partition("#")
        file = (ROOT / page.parent / path).resolve() if path else ROOT / page
        exists = file.exists() and file.is_relative_to(ROOT)
        if not exists or (fragment and fragment not in anchors(file.relative_to(ROOT))):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_picture_has_words_for_those_who_do_not_see_it(page):
    pictures = [(words, target) for is_picture, words, target in links(page) if is_picture]
    assert all(len(words.split()) >= 4 for words, _ in pictures), pictures


def test_every_page_is_reached_from_readme():
    reached, waiting = set(), [Path("README.md")]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for _, _, target in links(page):
            path = ROOT / page.parent / target.partition("#")[0]
            if path.suffix == ".md" and path.resolve().relative_to(ROOT) in PAGES:
                waiting.append(path.resolve().relative_to(ROOT))
    assert reached == set(PAGES)


def test_every_file_of_the_gallery_is_shown_or_listed():
    gallery = ROOT / "results" / "gallery"
    listed = {target for _, _, target in links(Path("results/gallery/README.md"))}
    files = {path.relative_to(gallery).as_posix() for path in gallery.rglob("*") if path.is_file()}
    assert files - {"README.md", "claims.toml"} <= listed


# Commands


def commands(page: Path) -> list[str]:
    """The commands of a page: those in bash blocks, and those in the text between back quotes."""
    text = PART.sub("", text_of(page))  # records keep the commands of their commits
    blocks = [body.replace("\\\n", " ") for language, body in FENCE.findall(text) if language in ("bash", "sh")]
    quoted = re.findall(r"`((?:KERAS_BACKEND=\w+ )?python [^`]+)`", re.sub(r"\s*\n\s*", " ", FENCE.sub("", text)))
    lines = [line for block in blocks for line in block.splitlines()] + quoted
    return [found for line in lines for found in COMMAND.findall(line.partition("#")[0])]


def config_of(words: list[str]):
    """The Config class, and the arguments, of a command that runs a part of this project; None of another."""
    if words[1] == "-m":
        name, arguments = words[2], words[3:]
        if name.split(".")[0] not in ("tools", "experiments") or "GROUP" in name:
            return None
    else:
        path = Path(words[1])
        if path.suffix != ".py":
            return None
        assert (ROOT / path).is_file(), words
        name, arguments = ".".join(path.with_suffix("").parts), words[2:]
    return getattr(importlib.import_module(name), "Config", None), arguments


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_is_understood(page):
    for command in commands(page):
        command = re.sub(r"<[^<>]+>", "placeholder", re.sub(r" (>|2>).*", "", command)).strip().rstrip(".,:)")
        command = re.sub(r"\[(.*?)\]", r"\1", command)  # what may be left out
        parts = config_of(shlex.split(command))
        if parts and parts[0] and parts[1]:  # without arguments it is a name
            config = parse(parts[0], parts[1])
            if not getattr(config, "resume", ""):
                check(config)


def test_the_pages_have_commands():
    """Else the test above would say nothing."""
    everything = {command for page in PAGES for command in commands(page)}
    for name in [f"{script}.py" for script in SCRIPTS] + ["tools.evaluate", "tools.reproduce", "tools.claims"]:
        assert any(name in command for command in everything), name
    experiments = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in ROOT.glob("experiments/*/*.py")
        if "run_study(" in path.read_text() or "run_main(" in path.read_text()
    }
    assert len(experiments) >= 15
    assert {name for name in experiments if not any(name in command for command in everything)} == set()


# README, the front door


def test_readme_is_two_screens():
    text = text_of(Path("README.md"))
    assert len(text.encode()) <= MOST_BYTES
    assert len(text.split()) <= MOST_WORDS
    before, _, _ = text.partition("aae_deterministic.py\n```")
    assert len(before.split()) <= FIRST_WORDS


def test_readme_names_every_script_and_every_page():
    text = text_of(Path("README.md"))
    assert all(f"{script}.py" in text for script in SCRIPTS)
    assert all(f"({page})" in text or f"({page}#" in text for page in map(str, PAGES) if page.startswith("docs"))


# Plain English


def sentences(page: Path) -> list[str]:
    """The sentences of a page's prose: without code, tables, pictures and links' targets; `code` counts as a word."""
    text = re.sub(r"<!--.*?-->", "", prose(page), flags=re.DOTALL)
    text = LINK.sub(lambda match: "" if match[1] else match[2], re.sub(r"`[^`]+`", "code", text))
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*|>#]|\d+\.) )", text)
    blocks = [re.sub(r"^\s*(?:[-*>#]+|\d+\.)\s+", "", " ".join(block.split())) for block in blocks]
    blocks = [block for block in blocks if block and block[0] != "|"]
    return [part for block in blocks for part in re.split(r"(?<=[.!?])[*)\"]*\s+(?=\W*[A-Zα-ωΑ-Ω0-9z])", block)]


def long_sentences(page: Path) -> dict[str, int]:
    words = {part: sum(any(map(str.isalnum, word)) for word in part.split()) for part in sentences(page)}
    return {part: count for part, count in words.items() if count > MOST_WORDS_OF_A_SENTENCE}


@pytest.mark.parametrize("page", [page for page in PAGES if page.parts[0] != "results"], ids=str)
def test_no_sentence_is_long(page):
    assert long_sentences(page) == {}


@pytest.mark.parametrize(
    "text, count",
    [
        ("One two. Three four.", 2),
        ("- One two\n- three", 2),
        ("A [link to it](there.md) is text.", 1),
        ("It takes 1.5 seconds: no more. **Then** it ends.", 2),
        ("Run `python a.py. Now`.\n\n| a | table. Of | cells. |", 1),
    ],
)
def test_sentences_are_told_apart(text, count, tmp_path):
    (tmp_path / "page.md").write_text(text)
    assert len(sentences(tmp_path / "page.md")) == count
