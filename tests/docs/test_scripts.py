"""The line counter counts code and nothing else."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def loc():
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location("loc", SCRIPTS / "loc.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["loc"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("fn a() {}\n", 1),
        ("// note\n\n/// doc\nfn a() {}\n", 1),
        ("/* a /* nested */ still\n a note */ fn a() {}\n", 1),
        ('let a = "// no note";\nlet b = "two\nlines";\n', 3),
        ('let a = r#"a "quote" // no note\n"#;\n', 2),
        ("let a = '\"'; // note\nlet b: &'static str = x;\n", 2),
        ("fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { [1; 2]; }\n}\nfn c() {}\n", 2),
        ("#[cfg(test)]\nuse x::y;\nfn a() {}\n", 1),
        ("#[cfg(test)]\nfn b(a: [u8; 2]) -> u8 { 1 }\nfn a() {}\n", 1),
    ],
)
def test_rust_lines_are_those_with_code(loc, source, lines):
    assert loc.count_rust(source) == lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("a = 1\n", 1),
        ('"""Doc."""\n\n# note\na = 1  # note\n', 1),
        ('def a():\n    """Doc.\n\n    More.\n    """\n    return 1\n', 2),
        ('a = """text\nof two lines"""\n', 2),
        ("a = [\n    # note\n    1,\n]\n", 3),
    ],
)
def test_python_lines_are_those_with_code(loc, source, lines):
    assert loc.count_python(source) == lines


def test_test_files_and_stubs_do_not_count(loc):
    assert not loc.is_counted("crates/dataplane/tests/http.rs")
    assert not loc.is_counted("python/lrai/_native.pyi")
    assert not loc.is_counted("tests/unit/test_a.py")
    assert loc.is_counted("python/lrai/server.py")


def test_a_large_file_is_refused(loc):
    assert loc.too_long({"python/lrai/a.py": "\n" * 500}) == []
    assert "501 lines" in loc.too_long({"python/lrai/a.py": "\n" * 501})[0]
