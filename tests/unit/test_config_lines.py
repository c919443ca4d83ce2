"""Lines of keys in a TOML text."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.toml_lines import KeyPath, locate_keys


def keys_of(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    if isinstance(value, dict):
        return {path} | set().union(*(keys_of(item, (*path, key)) for key, item in value.items()), set())
    if isinstance(value, list):
        return {path} | set().union(*(keys_of(item, (*path, place)) for place, item in enumerate(value)), set())
    return {path}


def test_every_kind_of_key_has_its_line() -> None:
    text = '''# comment = 1
a = 1  # b = 2
"c.d" = "x # no comment"
e.f = [1,
  2, # three
  { g = 3 } ]
h = """
i = 4
"""
[j]
k = { l = "}", 'm' = [ "]" ] }
[j.n]
o = 'p\\'
[[q]]
r = 1
[[q]]
r = 2
[q.s]
t = 1979-05-27T07:32:00Z
"\\u0075" = """a\\""" b"""""
'''
    lines = locate_keys(text)
    expected = {
        ("a",): 2, ("c.d",): 3, ("e", "f"): 4, ("e", "f", 1): 5, ("e", "f", 2): 6, ("e", "f", 2, "g"): 6, ("h",): 7, ("j",): 10,
        ("j", "k"): 11, ("j", "k", "l"): 11, ("j", "k", "m", 0): 11, ("j", "n"): 12, ("j", "n", "o"): 13, ("q", 0): 14,
        ("q", 0, "r"): 15, ("q", 1): 16, ("q", 1, "r"): 17, ("q", 1, "s"): 18, ("q", 1, "s", "t"): 19, ("q", 1, "s", "u"): 20,
    }  # fmt: skip
    assert {key: lines.get(key) for key in expected} == expected
    assert ("b",) not in lines
    assert ("i",) not in lines


_SCALARS = st.sampled_from(["1", '"x"', "'#'", "true", "1.5e3", '"a\\"]"', "'''m\nl'''", '"""}\\"""m\n"""', "[]", "{}", "07:32:00"])
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + " ,\n #c\n".join(items) + "]"),
        st.lists(inner, max_size=3).map(lambda items: "[ " + ", ".join(items) + " ]"),
    ),
    max_leaves=6,
)
_HEADERS = st.sampled_from(["[a]", "[ b . c ]", "[[d]]", "[d.e]", "[[d.f]]", '["g h"]', "# c", ""])
_LINES = st.one_of(
    _HEADERS, st.tuples(st.sampled_from(["k", "l.m", '"n o"', " p "]), _VALUES).map(lambda pair: f"{pair[0]} = {pair[1]} # x")
)


@given(st.lists(_LINES, max_size=8))
def test_a_line_is_found_for_every_key_that_tomllib_sees(lines: list[str]) -> None:
    text = "\n".join(lines)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    located = locate_keys(text)
    assert {key for key in keys_of(table) if key} <= set(located)
    assert all(1 <= line <= text.count("\n") + 1 for line in located.values())


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment"])
def test_a_text_without_keys_has_no_lines(text: str) -> None:
    assert locate_keys(text) == {}
