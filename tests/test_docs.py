"""What the documents name exists: links, files, commands and options."""

import pathlib
import re
import shlex

import pytest

from grpo_jax.cli import make_parser

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "launch/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"^(?:grpo_jax|models|sharding|tests|benchmarks|launch|docs)/[\w./-]+$")


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def spans(page):
    """What stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", CODE.sub("", text_of(page)))


def commands(page):
    """Every whole `grpo-jax VERB ...` of a page, as words: in blocks, indented lines and between backticks."""
    text = text_of(page).replace("\\\n", " ")
    blocks = "\n".join(CODE.findall(text)) + "\n" + "\n".join(re.findall(r"^    (.+)$", text, re.MULTILINE))
    lines = [line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for line in blocks.splitlines()]
    found = [line for line in [*lines, *spans(page)] if re.match(r"grpo-jax [a-z]", line)]
    words = [shlex.split(line, comments=True)[1:] for line in found]
    mentions = [each for each in words if each[0] == "data" and len(each) == 2]  # the verb's name alone
    synopses = [
        each for each in words if any(word.startswith("[") or {"...", "|"} & {word, *word} for word in each)
    ]
    return [each for each in words if each not in (*mentions, *synopses)]


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_an_existing_file_and_heading(page):
    for link in LINK.findall(CODE.sub("", text_of(page))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.resolve().relative_to(ROOT)), link


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    assert [name for name in spans(page) if FILE.match(name) and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page):
    for words in commands(page):
        if words == ["VERB", "--help"] or words[-1] in ("--help", "--list"):
            continue
        _, extra = make_parser().parse_known_args(words)
        assert not extra, f"{words}: {extra}"


@pytest.mark.parametrize("page", [page for page in PAGES if page == "README.md" or page.startswith("docs/")])
def test_every_option_that_is_named_belongs_to_a_verb(page):
    parsers = next(a.choices for a in make_parser()._actions if a.choices).values()  # type: ignore[union-attr]
    known = {option for parser in parsers for option in parser._option_string_actions}
    data = next(a.choices for p in parsers for a in p._actions if isinstance(a.choices, dict))
    known |= {option for parser in data.values() for option in parser._option_string_actions}
    elsewhere = {"--setting", "--any", "--port"}  # a placeholder, and options of the sandbox's server
    ours = [span for span in spans(page) if not span.startswith(("launch/", "python ", "XLA_FLAGS"))]
    named = {match for span in ours for match in re.findall(r"(?<![\w=-])--[a-z_-]+", span)}
    assert named - known - elsewhere == set()


def test_the_commands_of_the_documents_are_found():
    assert sum(len(commands(page)) for page in PAGES) > 60
    assert ["train", "gsm8k", "--output_dir", "runs/gsm8k"] in commands("docs/resume.md")


def test_the_readme_has_at_most_150_lines():
    assert len(text_of("README.md").splitlines()) <= 150


def test_the_index_names_every_page_once():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    links = [link for link in LINK.findall(text_of("docs/README.md")) if "/" not in link]
    assert sorted(links) == sorted(pages)
