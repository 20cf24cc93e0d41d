"""Finds the code lines of a Rust file with a small lexer; test modules do not count."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# In this order: what begins like something else stands before it. Comments match but are dropped.
TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<line_comment>//[^\n]*)
    | (?P<block_comment>/\*)
    | (?P<raw>(?:b|c)?r(?P<hashes>\#*)")
    | (?P<text>(?:b|c)?"(?:[^"\\]|\\.)*")
    | (?P<char>b?'(?:[^'\\]|\\(?:u\{[^}]*\}|x..|.))')
    | (?P<word>[A-Za-z0-9_]+)
    | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Token:
    """A code token and the lines that it covers."""

    text: str
    first_line: int
    last_line: int


def block_comment_end(source: str, start: int) -> int:
    """Where the block comment that opens at `start` ends; they nest."""
    depth, position = 0, start
    for mark in re.finditer(r"/\*|\*/", source[start:]):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            position = start + mark.end()
            break
    else:
        position = len(source)
    return position


def tokens(source: str) -> Iterator[Token]:
    """The code tokens of a file, in order."""
    position = 0
    line = 1
    while position < len(source):
        match = TOKEN.match(source, position)
        if match is None:
            raise ValueError(f"no token at offset {position}")
        kind, end = match.lastgroup, match.end()
        if kind == "block_comment":
            end = block_comment_end(source, position)
        elif match.group("raw"):
            kind = "raw"
            closing = source.find('"' + match.group("hashes"), end)
            end = len(source) if closing < 0 else closing + 1 + len(match.group("hashes"))
        last = line + source.count("\n", position, end)
        if kind not in {"space", "line_comment", "block_comment"}:
            yield Token(source[position:end], line, last)
        position, line = end, last


def without_tests(stream: list[Token]) -> Iterator[Token]:
    """Leaves out each item that stands under `#[cfg(test)]`."""
    marker = ["#", "[", "cfg", "(", "test", ")", "]"]
    index = 0
    while index < len(stream):
        if [token.text for token in stream[index : index + len(marker)]] == marker:
            index = item_end(stream, index + len(marker))
        else:
            yield stream[index]
            index += 1


def item_end(stream: list[Token], start: int) -> int:
    """The index behind the item that begins at `start`: its closing brace, or its semicolon."""
    depth = 0
    for index in range(start, len(stream)):
        text = stream[index].text
        if text in {"{", "(", "["}:
            depth += 1
        elif text in {"}", ")", "]"}:
            depth -= 1
            if depth == 0 and text == "}":
                return index + 1
        elif text == ";" and depth == 0:
            return index + 1
    return len(stream)


def count_rust(source: str) -> int:
    """Lines that carry at least one code token outside test modules."""
    lines: set[int] = set()
    for token in without_tests(list(tokens(source))):
        lines.update(range(token.first_line, token.last_line + 1))
    return len(lines)
