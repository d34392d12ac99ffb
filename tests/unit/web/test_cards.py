"""Cards come from anybody: what is rendered is text, tables and links, whatever was written."""

import re

import pytest

from web.pages.cards import MOST, card

FILES = "/team/x/v/3/files/"


def html(text: str) -> str:
    data = text.encode()
    return str(card(data, FILES, len(data)).html)


def test_a_card_is_markdown_with_tables_below_the_pages_own_heading() -> None:
    found = html("# Title\n\n| a | b |\n|---|---|\n| 1 | ~~2~~ |\n\n```\n<b>\n```\n")
    assert "<h2>Title</h2>" in found
    assert "<td><s>2</s></td>" in found
    assert "&lt;b&gt;" in found


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![x](https://evil.example/pixel.png)",
        "[x](javascript:alert(1)) <a href='javascript:alert(1)'>x</a>",
        "<a href=' JaVaScRiPt:alert(1)' onclick='alert(1)'>x</a>",
        "[x](data:text/html;base64,PHNjcmlwdD4=)",
        "<svg onload=alert(1)><style>body{display:none}</style></svg>",
        "<form action=/logout method=post><button class='primary'>x</button></form>",
        "<iframe src=//evil.example></iframe><object data=x></object>",
        "<div style='position:fixed' class='note bad' id='main' hx-get='/jobs'>x</div>",
        "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
        "<base href=//evil.example><meta http-equiv=refresh content=0>",
    ],
)
def test_nothing_in_a_card_runs_loads_or_looks_like_ours(text: str) -> None:
    found = html(text)
    tags = set(re.findall(r"<([a-z0-9]+)", found))
    assert tags <= {"p", "a", "div", "em", "table", "h2"}, found
    attributes = set(re.findall(r"<[a-z0-9]+ ([a-z-]+)=", found))
    assert attributes <= {"href", "rel"}, found
    for address in re.findall(r'href="([^"]*)"', found):
        assert address.startswith(("https://", FILES)), address


def test_links_within_the_repository_lead_to_its_files() -> None:
    found = html("[a](./config.json) [b](docs/a%20b.md) [c](../../../etc) [d](//other.example/x)")
    assert f'href="{FILES}config.json"' in found
    assert f'href="{FILES}docs/a b.md"' in found
    assert "etc" not in found
    assert 'href="https://other.example/x"' in found


def test_front_matter_is_a_table_of_short_texts() -> None:
    text = "---\nlicense: mit\ntags: [a, b]\nmodel-index:\n- name: x\n---\n# T\n"
    found = card(text.encode(), FILES, len(text))
    told = (("license", "mit"), ("tags", "a, b"), ("model-index", "- name: x"))
    assert found.matter == told
    assert "license" not in found.html
    assert card(b"---\nno: [end\n", FILES, 13).matter == ()


def test_front_matter_cannot_unfold() -> None:
    bomb = "---\na: &a [x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    found = card(f"{bomb}---\nText\n".encode(), FILES, 1000)
    assert found.matter == ()
    assert len(found.html) < 2000


def test_a_card_that_is_longer_than_what_is_read_says_so() -> None:
    assert card(b"# T\n", FILES, MOST + 1).cut
    assert not card(b"# T\n", FILES, 4).cut
