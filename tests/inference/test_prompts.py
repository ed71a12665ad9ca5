"""Files of prompts and questions: what is broken is named, and the rest is answered."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.inference import multiple_choice
from moe_jax.inference.dense_twins import twins
from moe_jax.inference.engine import Engine, Request
from moe_jax.inference.generate import generate
from moe_jax.inference.multiple_choice import Question, evaluate
from moe_jax.inference.prompts import read
from moe_jax.inference.sampling import Sampling
from moe_jax.inference.source import _stop_tokens, from_hf, places_problem
from moe_jax.inference.steps import Steps, cache_bytes, empty_caches
from moe_jax.inference.text import Text
from moe_jax.interop.loaded_model import load_hf
from moe_jax.moe.packed import Quantized

GOLDEN = Path(__file__).parents[1] / "interop" / "golden"
TEXT = Text(lambda text: [ord(c) - 97 for c in text], lambda ids: "".join(chr(97 + i) for i in ids), frozenset())
DEFAULTS = Request((), max_tokens=5, sampling=Sampling(temperature=0.5, seed=100))
LINES = {
    '{"prompt": "abc"}': None,
    '{"ids": [1, 2], "temperature": 0, "seed": 4, "name": "b", "max_tokens": 3, "stop": ["x"]}': None,
    "not JSON": "it is no JSON",
    "[1]": "it is no object",
    '{"prompt": "a", "promt": "b"}': "'promt' is no field of a prompt: use prompt, ids",
    '{"prompt": 3}': "prompt=3 is of another type",
    '{"prompt": "a", "max_tokens": true}': "max_tokens=True is of another type",
    '{"prompt": "a", "ids": [1]}': "give one of prompt and ids",
    "{}": "give one of prompt and ids",
    '{"prompt": "a", "top_p": 0}': "top_p=0.0: give more than 0",
    '{"ids": [1, "a"]}': "ids: give whole numbers",
    '{"prompt": "a", "stop": [""]}': "stop=['']: give texts",
    "[" * 100_000: "it is no JSON",
    '{"prompt": "a", "top_k": 4294967296}': "top_k=4294967296: give 0 or more, less than",
    r'{"prompt": "\ud800"}': "it has characters that UTF-8 cannot write",
    r'{"prompt": "a", "name": "\udfff"}': "it has characters that UTF-8 cannot write",
    '{"ids": [99]}': None,  # known to be wrong by the model alone
    '{"prompt": ""}': None,
}


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(LINES) + "\n\n")
    return path


def test_every_line_is_a_request_or_named(prompts):
    found = list(read(prompts, TEXT, DEFAULTS))
    for number, (one, reason) in enumerate(zip(found, LINES.values(), strict=True), 1):
        if reason is None:
            assert isinstance(one, Request)
        else:
            assert one.line == number and one.reason.startswith(reason)
    first, second = found[:2]
    assert (first.prompt, first.max_tokens, first.sampling) == ((0, 1, 2), 5, Sampling(0.5, seed=100))
    assert second == Request((1, 2), 3, Sampling(0.0, seed=4), ("x",), name="b", line=2)
    assert found[-2].sampling.seed == 116


def test_the_others_are_answered(prompts, tmp_path, caplog, capsys):
    run, mesh, weights, _ = from_hf(GOLDEN / "llama", {})
    engine = Engine(run, mesh, weights, TEXT, places=2, length=16)
    output = tmp_path / "answers.jsonl"
    code = generate(engine, list(read(prompts, TEXT, DEFAULTS)), output, log_probabilities=True)
    assert code == 2
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(len(one["tokens"]) for one in answers) == [3, 5]
    named = next(one for one in answers if one.get("name") == "b")
    assert named["prompt"] == "bc" and named["text"] == TEXT.decode(named["tokens"]) and named["finish"] == "length"
    assert len(named["log_probabilities"]) == 3 and all(one < 0 for one in named["log_probabilities"])
    said = caplog.text
    for number, part in ((3, "it is no JSON"), (17, "has the token 99"), (18, "a prompt is empty")):
        assert f"Line {number} of the prompts is left out" in said and part in said
    assert named["text"] in capsys.readouterr().out


def test_a_single_answer_is_shown_while_it_grows(monkeypatch):
    """Each part once, and nothing of a text that ends it."""
    run, mesh, weights, _ = from_hf(GOLDEN / "llama", {})
    engine = Engine(run, mesh, weights, TEXT, length=32)
    whole = next(iter(engine.answers([Request((1, 2), max_tokens=12)]))).text
    for stop in ((), (whole[6:9],), ("~~", whole[8:10])):
        written = []
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout.write", written.append)
            generate(engine, [Request((1, 2), max_tokens=12, stop=stop)], None)
        expected = whole[: min([whole.index(one) for one in stop if one in whole], default=len(whole))]
        shown = "".join(written).partition("\n--")[0].rstrip("\n")
        assert shown == expected, stop
        assert len([text for text in written if text and text in expected]) > 3 or len(expected) < 4


def test_the_tokens_of_a_choice_are_those_behind_its_context():
    assert multiple_choice._encoded(TEXT, "abc", "de", 32) == ([0, 1, 2, 3, 4], 3)
    merging = Text(lambda text: [ord(c) for c in text.replace("cd", "X")], lambda ids: "", frozenset())
    tokens, first = multiple_choice._encoded(merging, "abc", "de", 32)
    assert (tokens, first) == ([97, 98, ord("X"), 101], 2)  # the token that holds an end of the context is the choice's


def test_stop_tokens_of_a_folder(tmp_path):
    for named, expected in ((5, [5]), ([3, 4], [3, 4]), (None, []), ("x", [])):
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": named}))
        assert _stop_tokens(tmp_path / "config.json") == expected
    assert _stop_tokens(tmp_path / "none.json") == []


def test_twins_have_the_precision_of_the_model():
    run, mesh, weights, text = from_hf(GOLDEN / "mixtral", {}, form="int8")
    for twin in twins(Engine(run, mesh, weights, text, length=16)).values():
        assert isinstance(twin.steps.weights.head, Quantized)


def test_no_file_of_prompts(tmp_path):
    with pytest.raises(ConfigError, match=r"^--prompts=.* cannot be read \(.+\): give a file of JSON lines$"):
        list(read(tmp_path / "none", TEXT, DEFAULTS))


def test_places_that_do_not_fit_say_how_many_do():
    run = from_hf(GOLDEN / "llama", {}).run
    # Keys and values of 2 heads of 6 numbers a layer, in float32.
    each = run.model.num_layers * 2 * 2 * 6 * 4 * 100
    assert places_problem(run, 8, 100, 16, free=8.0 * each) is None
    problem = places_problem(run, 9, 100, 16, free=8.5 * each)
    assert problem is not None and problem.endswith("GB for their caches, and 8 fit: lower one of the two")


@pytest.mark.parametrize("family", ["deepseek_v3", "llama"])
def test_the_room_of_caches_is_what_devices_hold(family):
    sizes = {"fsdp": 2, "expert": 2, "tensor": 2}
    run, mesh, _, _ = from_hf(GOLDEN / family, sizes)
    caches = empty_caches(run, mesh, 8, 48, 16)
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(caches) for shard in leaf.addressable_shards)
    assert 8 * cache_bytes(run, 48, 16) == held


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x", "line 1 is no question"),
        ('{"context": "a", "choices": ["b", "c"]}', "line 1 is no question ('answer')"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "choices a list of two texts or more"),
        ('{"context": "a", "choices": ["b", ""], "answer": 0}', "choices a list of two texts or more"),
        ('{"context": "a", "choices": "bc", "answer": 0}', "choices a list of two texts or more"),
        (r'{"context": "\ud800", "choices": ["b", "c"], "answer": 0}', "line 1 has characters that UTF-8 cannot write"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "answer=2 is none of the 2 choices, counted from 0"),
        ('{"context": "a", "choices": ["b", "c"], "answer": true}', "answer=True is none of"),
        ("", "has no questions"),
    ],
)
def test_what_is_no_question(tmp_path, line, message):
    path = tmp_path / "questions.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError) as raised:
        multiple_choice.read(path)
    assert message in str(raised.value)


def test_accuracy_by_hand():
    """A model of four words whose log-probabilities are known; choices of one and of two tokens."""
    scores = {"ab": -1.0, "acc": -1.5, "bb": -3.0, "bcc": -2.0}  # by bytes of the choice: -1, -0.75, -3, -1
    questions = [Question("a", ("b", "cc"), 0), Question("b", ("b", "cc"), 1), Question("a", ("b", "cc"), 1)]
    found = multiple_choice.accuracy(questions, [[scores[q.context + c] for c in q.choices] for q in questions])
    assert found.questions == 3 and found.by_chance == 0.5
    assert found.accuracy == pytest.approx(2 / 3) and found.normalised == pytest.approx(2 / 3)
    assert found.standard_error == pytest.approx(np.sqrt(2 / 9 / 2))


def test_likelihoods_are_those_of_the_model():
    """The likeliest of two choices, each of which is more than a token, by the logits of the whole forward pass."""
    model, source = load_hf(GOLDEN / "mixtral"), from_hf(GOLDEN / "mixtral", {})
    steps = Steps(source.run, source.mesh, source.weights)
    sequences = [("hello", 2), ("xy", 1), ("abcdefghijklmnopqrst", 18)]
    found = list(multiple_choice.log_likelihoods(steps, [(TEXT.encode(text), at) for text, at in sequences]))
    for (text, at), value in zip(sequences, found, strict=True):
        ids = np.array([TEXT.encode(text)])
        logits = np.asarray(model(ids)[0], np.float64)
        of_next = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        assert value == pytest.approx(sum(of_next[i - 1, ids[0, i]] for i in range(at, ids.size)), abs=1e-4)
    choices = ("lo", "xy")
    of_choice = list(multiple_choice.log_likelihoods(steps, [(TEXT.encode("hel" + choice), 3) for choice in choices]))
    questions = [Question("hel", choices, answer) for answer in (0, 1)]
    right = [evaluate(steps, TEXT, [question], 32).accuracy for question in questions]
    assert right == [float(of_choice[0] > of_choice[1]), float(of_choice[1] > of_choice[0])]
    with pytest.raises(ConfigError, match="question 2: the context '' has no token of its own before 'lo'"):
        evaluate(steps, TEXT, [questions[0], Question("", choices, 0)], 32)
    with pytest.raises(ConfigError, match="question 1: context and choice have 5 tokens: raise --length, which is 4"):
        evaluate(steps, TEXT, questions, 4)


def test_what_cannot_be_answered_leaves_the_answers_before(tmp_path):
    run, mesh, weights, _ = from_hf(GOLDEN / "llama", {})
    engine, output = Engine(run, mesh, weights, TEXT, length=16), tmp_path / "answers.jsonl"
    output.write_text("kept")
    with pytest.raises(ConfigError, match="no prompt can be answered: a prompt is empty"):
        generate(engine, [Request(())], output)
    assert output.read_text() == "kept"
