"""The codec: what goes in comes out, and what does not belong is refused by name."""

import json
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe import codec, documents
from lathe.errors import CodecError, ShapeError
from lathe.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    size: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    count: int
    on: bool
    kind: Literal["small", "large", 3]
    part: Part
    parts: tuple[Part, ...] = ()
    pair: tuple[int, str] = (0, "")
    table: dict[str, float] = field(default_factory=dict)
    maybe: Part | None = None
    either: int | str | float = 0
    names: list[str] = field(default_factory=list)


text = st.text(st.characters(codec="utf-8"), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
parts = st.builds(Part, name=text, size=finite)
wholes = st.builds(
    Whole,
    count=st.integers(),
    on=st.booleans(),
    kind=st.sampled_from(["small", "large", 3]),
    part=parts,
    parts=st.lists(parts, max_size=3).map(tuple),
    pair=st.tuples(st.integers(), text),
    table=st.dictionaries(text, finite, max_size=3),
    maybe=st.none() | parts,
    either=st.integers() | text | finite,
    names=st.lists(text, max_size=3),
)
GOOD: dict[str, Any] = {"count": 3, "on": True, "kind": "small", "part": {"name": "p"}}


@settings(deadline=None, max_examples=100)
@given(wholes)
def test_json_round_trip(whole):
    back = codec.decode(Whole, documents.parse_json(codec.dumps(whole)))
    assert back == whole
    assert type(back.either) is type(whole.either)
    assert codec.canonical_json(back) == codec.canonical_json(whole)


@settings(deadline=None, max_examples=100)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | text,
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(text, x, max_size=3)))  # fmt: skip
def test_any_document_is_read_or_refused(document):
    try:
        codec.decode(Whole, document, source="f.json")
        said = "f.json: "
    except CodecError as error:
        said = str(error)
    assert said.startswith("f.json: ")


def test_files_round_trip_and_carry_their_kind(tmp_path):
    whole = Whole(**{**GOOD, "part": Part(name="é\n\"'")})
    path = tmp_path / "whole.json"
    codec.save(whole, path, kind="whole", version=2)
    assert json.loads(path.read_text("utf-8"))["lathe"] == "whole"
    assert codec.load(Whole, path, kind="whole", version=2) == whole
    assert os.listdir(tmp_path) == ["whole.json"]


def test_toml_is_read(tmp_path):
    path = tmp_path / "whole.toml"
    path.write_text('count = 3\non = true\nkind = 3\npair = [1, "a"]\n[part]\nname = "p"\nsize = 2\n')
    whole = codec.load(Whole, path, kind="whole")
    assert whole == Whole(count=3, on=True, kind=3, pair=(1, "a"), part=Part(name="p", size=2.0))
    assert type(whole.part.size) is float


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cuont": 1}, r"unknown key 'cuont'; did you mean 'count'"),
        ({"part": {"nmae": "p"}}, r"unknown key 'part\.nmae'; did you mean 'name'"),
        ({"part": {}}, r"the key 'part\.name' of a Part is missing"),
        ({"part": None}, "part is null; it should be the keys of a Part"),
        ({"count": True}, "count is true; it should be a whole number"),
        ({"count": 3.0}, r"count is 3\.0; it should be a whole number"),
        ({"count": "3"}, 'count is "3"'),
        ({"count": None}, "count is null"),
        ({"on": 1}, "on is 1; it should be true or false"),
        ({"kind": "smal"}, "kind is \"smal\"; did you mean 'small'"),
        ({"kind": True}, "kind is true"),
        ({"kind": 3.0}, r"kind is 3\.0"),
        ({"part": {"name": "p", "size": True}}, r"part\.size is true; it should be a number"),
        ({"part": {"name": "p", "size": float("nan")}}, r"part\.size is nan; it must be finite"),
        ({"part": {"name": "p", "size": 2**60 + 1}}, r"part\.size"),
        ({"parts": [{"name": "p"}, {"name": 1}]}, r"parts\[1\]\.name is 1; it should be a string"),
        ({"parts": "pp"}, 'parts is "pp"; it should be a list'),
        ({"pair": [1]}, "pair should hold 2 items, and holds 1"),
        ({"table": {"a": "b"}}, r"table\.a is"),
        ({"table": []}, "table is a list of 0; it should be a table"),
        ({"maybe": 3}, "maybe is 3"),
        ({"either": []}, "either is a list of 0; it should be a whole number or a string or a number"),
    ],
)
def test_wrong_documents_are_refused(change, says):
    with pytest.raises(CodecError, match=says) as caught:
        codec.decode(Whole, {**GOOD, **change}, source="f.json")
    assert str(caught.value).startswith("f.json: ")


def test_missing_key_is_named():
    with pytest.raises(CodecError, match=r"the key 'on' of a Whole is missing"):
        codec.decode(Whole, {"count": 3})


def test_a_words_own_error_names_the_file():
    wrong = {
        **json.loads(codec.dumps(Shape.of(d_model=64, n_layers=2, n_heads=8, vocab_size=9))),
        "n_kv_heads": 3,
    }
    with pytest.raises(CodecError, match=r"f\.toml: n_heads=8 is not a multiple") as caught:
        codec.decode(Shape, wrong, source="f.toml")
    assert isinstance(caught.value.__cause__, ShapeError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(CodecError, match=r"part\.size is -?(nan|inf)"):
        codec.dumps(Whole(**{**GOOD, "part": Part(name="p", size=value)}))


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": {1, 2}}, b"x", "\ud800", {"\ud800": 1}])
def test_foreign_values_are_refused(value):
    with pytest.raises(CodecError):
        codec.dumps(value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", '{"count": 3,\n "on": tr', "line 2, column 8: not JSON"),
        ("a.json", '{"count": 3,\n "on": true', "line 2.*cut short"),
        ("a.json", "", "line 1.*cut short"),
        ("a.json", '{"count": NaN}', "NaN is not JSON"),
        ("a.json", '{"count": -Infinity}', "-Infinity is not JSON"),
        ("a.json", '{"count": 1, "count": 2}', "'count' stands there twice"),
        ("a.json", "[1]", "a list of 1; an object"),
        ("a.json", "[" * 100_000, "a.json: "),
        ("a.json", '{"count": ' + "9" * 5000 + "}", "a.json: .*digits"),
        ("a.json", b"\xff\xfe{}", "not a text file"),
        ("a.toml", "count = 3\non = tr", "not TOML.*line 2"),
        ("a.toml", "count = 1\ncount = 2\n", "not TOML.*line 2"),
        ("a.toml", '[part]\nsize = 1\nname = "p', "not TOML"),
        ("a.toml", "count = inf\n", "count is Infinity; it should be"),
        ("a.toml", "count = 1979-05-27\n", "count is .*1979"),
        ("a.yaml", "count: 3", r"should end in \.json or \.toml"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CodecError, match=says) as caught:
        codec.load(Whole, path, kind="whole")
    assert name in str(caught.value)


def test_absent_files_are_refused(tmp_path):
    with pytest.raises(CodecError, match="No such file"):
        documents.read_document(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(CodecError, match="cannot be read"):
        documents.read_document(tmp_path / "folder.json")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"lathe": "law", "version": 2}, r"newer Lathe \(law version 2; this one reads up to 1\)"),
        ({"lathe": "shape", "version": 1}, "holds a shape, and a law was wanted"),
        ({"lathe": "law"}, "version=None"),
        ({"lathe": "law", "version": "1"}, "version='1'"),
        ({"lathe": "law", "version": True}, "version=True"),
        ({"version": 1}, "not a Lathe law"),
    ],
)
def test_tags(document, says):
    with pytest.raises(CodecError, match=says):
        codec.untag(document, kind="law", source="law.json")


def test_tag_round_trip():
    body = {"members": [1]}
    assert codec.tag(body, kind="law") == {"lathe": "law", "version": 1, "members": [1]}
    assert codec.untag(codec.tag(body, kind="law"), kind="law") == body
    assert codec.untag(body, kind="law", required=False) == body


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    documents.write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(documents.os, "fsync", full)
    with pytest.raises(CodecError, match="No space left on device; nothing was changed"):
        documents.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(CodecError, match="cannot be written"):
        documents.write_atomic(tmp_path / "no" / "a.json", "new")
    with pytest.raises(CodecError, match=r"should end in \.json"):
        codec.save(Part(name="p"), tmp_path / "a.txt", kind="part")
