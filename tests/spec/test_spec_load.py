import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.errors import SpecError
from plimsoll.spec.deployment import Deployment, GatewaySpec, ParallelSpec, Slo, Spec
from plimsoll.spec.dump import dump_spec
from plimsoll.spec.load import load_spec, parse_spec
from plimsoll.spec.schema import spec_schema

WHOLE = """\
# A chat model and an embedding model on one machine.
models:
  - name: chat
    model: Qwen/Qwen2.5-7B-Instruct
    revision: 20240918            # digits only, and still text
    context: 32k
    concurrency: 16
    devices: [0, "1"]
    parallel: {tensor: 2}
    slo: {ttft: 1s, tpot: 50ms}
    extra_args: [--threads, 2]
    env: {OMP_NUM_THREADS: 2, SHOUT: no, ON: true}
  - name: embed
    model: ./bge.gguf
    task: embed
gateway: {port: 9000}
"""


def test_a_whole_spec_is_read() -> None:
    chat, embed = parse_spec(WHOLE, name="my.yaml").models
    assert (chat.context, chat.devices, chat.parallel.tensor) == (32768, (0, "1"), 2)
    assert (chat.slo.ttft, chat.slo.tpot, chat.revision) == (1.0, 0.05, "20240918")
    assert (chat.extra_args, chat.env) == (("--threads", "2"), {"OMP_NUM_THREADS": "2", "SHOUT": "no", "ON": "true"})
    assert embed.task == "embed"


ONE = "models:\n  - name: a\n    model: m\n"

FAULTS = [
    (ONE + "    contxt: 5\n", "my.yaml:4:5: models[0].contxt: unknown key; did you mean 'context'?"),
    (ONE + "    extra-args: []\n", "my.yaml:4:5: models[0].extra-args: unknown key; did you mean 'extra_args'?"),
    (ONE + "context: 5\n", "my.yaml:4:1: context: unknown key; it belongs under models[]"),
    (ONE + "    port: 5\n", "my.yaml:4:5: models[0].port: unknown key; it belongs under gateway"),
    (ONE + "zzz: 5\n", "my.yaml:4:1: zzz: unknown key; valid here: models, gateway, hosts"),
    ("models:\n  - name: a\n", "my.yaml:2:5: models[0]: 'model' is missing"),
    ("gateway: {}\n", "my.yaml:1:1: 'models' is missing"),
    ("models: []\n", "my.yaml:1:1: models: must be a list with at least one entry, not an empty list"),
    ("models: x\n", "my.yaml:1:1: models: must be a list, not 'x'"),
    ("models: [x]\n", "my.yaml:1:10: models[0]: must be a mapping of key: value, not 'x'"),
    (ONE + "    context: many\n", "my.yaml:4:5: models[0].context: must be a whole number, not 'many'"),
    (ONE + "    context: -1\n", "my.yaml:4:5: models[0].context: input should be greater than 0, not -1"),
    (ONE + "    task: chta\n", "my.yaml:4:5: models[0].task: 'chta' is not one of chat, completion, embed, rerank, "
     "classify; did you mean 'chat'?"),
    (ONE + "    slo: {ttft: fast}\n", "my.yaml:4:11: models[0].slo.ttft: 'fast' is not a time such as 500ms or 20m"),
    (ONE + "    devices: [1.5]\n", "my.yaml:4:15: models[0].devices[0]: must be text (in quotes if it looks like "
     "something else) or a whole number, not 1.5"),
    (ONE + "    env: [A]\n", "my.yaml:4:5: models[0].env: must be a mapping of key: value, not a list"),
    (ONE + "    trust_remote_code: maybe\n", "my.yaml:4:5: models[0].trust_remote_code: must be true or false, "
     "not 'maybe'"),
    (ONE + "  - name: a\n    model: n\n", "my.yaml:1:1: two models have the same name: a"),
    ("models:\n  - {name: a b, model: m}\n", "my.yaml:2:6: models[0].name: 'a b' is not a name: letters, digits and "
     ". _ : / - only, a letter or digit first"),
    (ONE + "    name: b\n", "my.yaml:4:5: models[0].name: written twice, first in line 2"),
    (ONE + "    env: &e {A: b}\n", "my.yaml:4:10: anchors (&) and aliases (*) are not part of a spec"),
    (ONE + "    env: !!python/object:os.system {}\n", "my.yaml:4:10: tags (tag:yaml.org,2002:python/object:os.system) "
     "are not part of a spec"),
    (ONE + "---\n" + ONE, "my.yaml:4:1: a second document (---) in one file"),
    (ONE + "\t  task: chat\n", "my.yaml:4:1: a tab where spaces are needed"),
    (ONE + "    {a: b}: c\n", "my.yaml:4:5: a key must be one word"),
    ("[" * 40, "my.yaml:1:17: nested more than 16 deep"),
    ("", "my.yaml is empty"),
    ("# nothing\n", "my.yaml is empty"),
    ("- a\n", "my.yaml:1:1: a spec is a mapping that starts with `models:`"),
    ("just words\n", "my.yaml:1:1: a spec is a mapping that starts with `models:`"),
    (ONE + "    model\x07: x\n", "my.yaml:4: a control character (code 0x7) is not allowed here"),
    (ONE + "    context: " + "9" * 5000, "my.yaml:4:5: models[0].context: must be a whole number, not '9999"),
    ("a: b\n" * 60000, "my.yaml is larger than 256 KiB: not a spec"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=[message[:60] for _, message in FAULTS])
def test_a_fault_is_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, name="my.yaml")
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 250


def test_all_faults_are_told_in_the_order_of_the_text() -> None:
    text = ONE + "    contxt: 5\n    replicas: 0\n  - name: b\ngatway: {}\n"
    with pytest.raises(SpecError) as caught:
        parse_spec(text, name="s")
    assert [line.split(": ")[1] for line in caught.value.message.splitlines()] == [
        "models[0].contxt", "models[0].replicas", "models[1]", "gatway",
    ]  # fmt: skip
    assert caught.value.source == "s:4:5"


def test_endless_faults_are_cut_short() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec("models: [" + "1," * 50 + "]", name="s")
    assert caught.value.message.splitlines()[-1] == "... and 30 more"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no spec at"),
        (b"GGUF\x03\0\0\0", "is a GGUF model"),
        (b"\x7fELF\0\0", "is a binary file"),
        ("models".encode("utf-16"), "is UTF-16"),
        (b"models:\n  - name: \xe9\n", ":2: not UTF-8 text (byte 0xe9)"),
        (b" " * 300_000, "is larger than 256 KiB"),
    ],
)
def test_a_file_that_is_no_spec(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "my.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=r"my\.yaml") as caught:
        load_spec(path)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_directory_is_no_spec_and_a_bom_does_no_harm(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is a directory"):
        load_spec(tmp_path)
    path = tmp_path / "my.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + ONE.encode())
    assert load_spec(path).models[0].model == "m"


words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12)
deployments = st.builds(
    Deployment,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,8}", fullmatch=True),
    model=words,
    revision=st.none() | words | st.sampled_from(["1e5", "007", "no", "null", "0x1f", "~", "1.5", "22:30"]),
    context=st.none() | st.integers(1, 1 << 27),
    devices=st.none() | st.lists(st.integers(0, 7) | words, max_size=3).map(tuple),
    parallel=st.builds(ParallelSpec, tensor=st.none() | st.integers(1, 8)),
    slo=st.builds(Slo, ttft=st.none() | st.floats(0.0625, 64, width=16)),
    extra_args=st.lists(words, max_size=3).map(tuple),
    env=st.dictionaries(words, words, max_size=2),
)
specs = st.builds(
    Spec,
    models=st.lists(deployments, min_size=1, max_size=2, unique_by=lambda model: model.name).map(tuple),
    gateway=st.builds(GatewaySpec, port=st.integers(0, 65535)),
)


@given(specs)
def test_a_written_spec_reads_back_the_same(spec: Spec) -> None:
    assert parse_spec(dump_spec(spec), name="written") == spec


@given(st.text(max_size=200) | st.text(alphabet="models:-[]{}&*!|>'\" \n\tname", max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        parse_spec(text, name="any")
    except SpecError as error:
        assert error.message.startswith("any")


def test_defaults_are_left_out_of_a_written_spec() -> None:
    spec = Spec(models=(Deployment(name="a", model="b"),))
    assert dump_spec(spec) == "models:\n- name: a\n  model: b\n"


def test_the_published_schema_is_current_and_accepts_what_the_reader_accepts() -> None:
    published = json.loads((Path(__file__).parents[2] / "docs" / "spec.schema.json").read_text())
    assert published == spec_schema(), "run: python -m plimsoll.spec.schema > docs/spec.schema.json"
    jsonschema.Draft202012Validator.check_schema(published)
    good = {"models": [{"name": "a", "model": "b", "context": "32k", "slo": {"ttft": "1s"}}]}
    jsonschema.validate(good, published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"models": [{"name": "a", "model": "b", "contxt": 1}]}, published)
