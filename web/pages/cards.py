"""An artifact's card: its README.md, made safe, and the front matter above it as a table.

A card comes from anybody who may publish. What is rendered is text, tables and links: no scripts,
no styles or classes, no forms, and no images (an image's address would be fetched by everybody
who looks).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

import nh3
import yaml
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

from espalier.errors import InvalidInput
from espalier.refs import check_path

#: Bytes of a README that are rendered: text made to be slow takes a second at most.
MOST = 32 << 10
#: Characters of a front matter that is read, and of one of its values that are shown.
_FRONT, _VALUE = 8 << 10, 300

_TAGS = set(
    "a abbr b blockquote br center code dd del details div dl dt em h2 h3 h4 h5 h6 hr i ins kbd"
    " li ol p pre q s small span strong sub summary sup table tbody td tfoot th thead tr ul"
    " var".split()
)
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}, "td": {"align"}, "th": {"align"}}
_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)(?:\r?\n)?^(?:---|\.\.\.)[ \t]*$\r?\n?", re.S | re.M)


@dataclass(frozen=True, slots=True)
class Card:
    """``matter`` is the front matter's keys and values; ``cut``: the rest was left out."""

    html: Markup
    matter: tuple[tuple[str, str], ...]
    cut: bool


@lru_cache(maxsize=128)
def card(data: bytes, files: str, size: int) -> Card:
    """Return the card of a README of ``size`` bytes, of which ``data`` are the first.

    ``files`` is the address that the repository's own files are below: relative links lead there.
    """
    text = data.decode("utf-8", "replace")
    matter, body = _split(text)
    html = _markdown().render(body)
    clean = nh3.clean(
        html,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=lambda tag, name, value: _filtered(tag, name, value, files),
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow noopener noreferrer",
    )
    return Card(Markup(clean), matter, size > len(data))  # noqa: S704 - it was made clean


def _filtered(tag: str, name: str, value: str, files: str) -> str | None:
    """Return an attribute's value; a relative link's leads to the file, or nowhere."""
    if (tag, name) != ("a", "href"):
        return value
    try:
        parts = urlsplit(value.strip())
    except ValueError:
        return None
    if parts.scheme:
        return value
    if parts.netloc:
        return f"https:{value.strip()}"
    try:
        return files + check_path(unquote(parts.path).removeprefix("./").strip("/"))
    except InvalidInput:
        return None


# --- Markdown -----------------------------------------------------------------------------


def _markdown() -> MarkdownIt:
    """Return the renderer of CommonMark with tables; headings begin below the page's own."""
    found = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    found.add_render_rule("image", _image)
    found.add_render_rule("heading_open", _heading)
    found.add_render_rule("heading_close", _heading)
    return found


def _image(
    self: RendererProtocol, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType
) -> str:
    return f"<em>{Markup.escape(tokens[idx].content or 'image')}</em>"


def _heading(
    self: RendererProtocol, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType
) -> str:
    tag = f"h{min(6, int(tokens[idx].tag[1]) + 1)}"
    return f"<{tag}>" if tokens[idx].nesting == 1 else f"</{tag}>\n"


# --- Front matter -------------------------------------------------------------------------


class _Plain(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can mean gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def _split(text: str) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the front matter's (key, value) and the text below it."""
    found = _MATTER.match(text)
    if found is None:
        return (), text
    if len(found[1]) > _FRONT:
        return (("front matter", f"{len(found[1]):,} characters"),), text[found.end() :]
    try:
        value = yaml.load(found[1], _Plain)  # noqa: S506 - it is the safe loader, and less
    except (yaml.YAMLError, ValueError, RecursionError):
        return (), text
    if not isinstance(value, dict):
        return (), text[found.end() :]
    rows = tuple((_cut(str(key), 80), _told(entry)) for key, entry in value.items())
    return rows[:40], text[found.end() :]


def _told(value: Any) -> str:
    """Return a value of the front matter as one short text."""
    if isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
        return _cut(", ".join(map(str, value)))
    if isinstance(value, dict | list):
        text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=60)
        return _cut(text.strip(), 2 * _VALUE)
    return "–" if value is None else _cut(str(value))


def _cut(value: str, most: int = _VALUE) -> str:
    return value if len(value) <= most else f"{value[:most]}…"
