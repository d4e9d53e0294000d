"""A checkpoint as the harness's model answers like the harness's own model on the export."""

import json

import numpy as np
import pytest

from eval.harness.model import RatchetLM
from model.hf_format.convert import export_model
from storage.checkpoint_folder import weights_sha256
from tests.eval.tasks.test_lm_eval_agreement import texts, write
from tests.eval_subjects import TINY_MODERN, tiny_checkpoint
from tests.launching import python, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

CONTEXTS = texts(3, 40, 70)  # many do not fit 48 tokens
SHORT = texts(4, 200, 6)


def checkpoint_and_export(tmp_path_factory, shape=None):
    folder = tmp_path_factory.mktemp("adapter")
    checkpoint = tiny_checkpoint(folder / "checkpoint", shape=shape)
    export_model(checkpoint, folder / "exported")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint_and_export(tmp_path_factory)


@pytest.fixture(scope="module", params=[None, TINY_MODERN], ids=["gpt2", "modern"])
def both(tmp_path_factory, request):
    folder = checkpoint_and_export(tmp_path_factory, request.param)
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(str(folder / "exported"), device="cpu", dtype="float32", batch_size=4)
    return RatchetLM(folder / "checkpoint", device="cpu"), theirs


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def test_log_probabilities_and_greedy_flags_are_equal(both):
    ours, theirs = both
    pairs = [(c, f" {e}") for i, c in enumerate(CONTEXTS) for e in SHORT[4 * i : 4 * i + 4]]
    pairs += [("", e) for e in SHORT[160:170]] + [(c + "  ", e) for c in CONTEXTS[:5] for e in "ab"]
    greedy = theirs.generate_until(
        requests("generate_until", [(c, {"until": [], "max_gen_toks": 1}) for c in CONTEXTS])
    )
    pairs += list(zip(CONTEXTS, greedy, strict=False))
    asked = requests("loglikelihood", pairs)
    found, wanted = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    np.testing.assert_allclose([f[0] for f in found], [w[0] for w in wanted], atol=1e-4, rtol=1e-5)
    assert [f[1] for f in found] == [w[1] for w in wanted]
    assert sum(f[1] for f in found) > 3
    assert ours.truncated > 20


def test_rolling_log_probabilities_are_equal(both):
    ours, theirs = both
    asked = requests(
        "loglikelihood_rolling", [(text,) for text in [*CONTEXTS, "cat", " ".join(CONTEXTS)]]
    )
    found, wanted = (model.loglikelihood_rolling(asked) for model in (ours, theirs))
    np.testing.assert_allclose(found, wanted, atol=1e-3, rtol=1e-5)


def test_generated_text_is_equal_with_and_without_stop_strings(both):
    ours, theirs = both
    free = {"until": [], "max_gen_toks": 20}
    asked = requests("generate_until", [(c, free) for c in CONTEXTS])
    whole = ours.generate_until(asked)
    assert whole == theirs.generate_until(asked)
    assert len(set(whole)) > 5
    stops = [{**free, "until": [w[8:10] or "x", "never seen"]} for w in whole]
    asked = requests("generate_until", list(zip(CONTEXTS, stops, strict=True)))
    stopped = ours.generate_until(asked)
    assert stopped == theirs.generate_until(asked)
    assert sum(len(s) < len(w) for s, w in zip(stopped, whole, strict=True)) > 20


def test_sampling_is_reproducible_and_differs_from_greedy_decoding(both):
    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    asked = requests("generate_until", [(c, settings) for c in CONTEXTS[:4]])
    first = both[0].generate_until(asked)
    assert first == both[0].generate_until(asked)
    greedy = [(c, {**settings, "do_sample": False}) for c in CONTEXTS[:4]]
    assert first != both[0].generate_until(requests("generate_until", greedy))


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5},
        {"max_length": 30},
        {"top_k": None, "top_p": None, "num_beams": 1, "temperature": 0.0},
        {"do_sample": False, "temperature": 0.7},
    ],
)
def test_generation_settings_have_the_effect_that_they_have_in_transformers(folder, settings):
    from lm_eval.models.huggingface import HFLM

    ours = RatchetLM(folder / "checkpoint", device="cpu")
    theirs = HFLM(str(folder / "exported"), device="cpu", dtype="float32", batch_size=1)
    prompts = [context for context in CONTEXTS if context][:12]
    asked = requests(
        "generate_until", [(c, {"until": [], "max_gen_toks": 20} | settings) for c in prompts]
    )
    assert ours.generate_until(asked) == theirs.generate_until(asked)


MULTIPLE_CHOICE = {
    "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": 0,
    "doc_to_choice": "{{[a, b]}}", "metric_list": [{"metric": "acc"}],
}  # fmt: skip
GENERATING = {
    "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "x",
    "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip


def own_task(folder, name, rows, **more) -> str:
    data = write(folder / f"{name}.jsonl", rows)
    spec = {"task": name, "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(data)}}, **more}  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(spec))
    return name


def test_what_cannot_be_answered_costs_its_document_or_its_task_and_is_named(folder, tmp_path):
    good = [{"q": q, "a": " yes", "b": " no"} for q in ("the cat", "a dog", "the sun")]
    long, joined = (
        {"q": "x", "a": " no", "b": " word" * 60},
        {"q": "hello wor", "a": "ld", "b": "k"},
    )
    names = [
        own_task(tmp_path, "good", good, **MULTIPLE_CHOICE),
        own_task(tmp_path, "long", [*good, long], **MULTIPLE_CHOICE),
        own_task(tmp_path, "joined", [joined, joined], **MULTIPLE_CHOICE),
        own_task(tmp_path, "beams", good, **GENERATING,
                 generation_kwargs={"num_beams": 4, "max_gen_toks": 4}),
        own_task(tmp_path, "room", good, **GENERATING),
        own_task(tmp_path, "lost", [long, long], **MULTIPLE_CHOICE),
    ]  # fmt: skip
    out = tmp_path / "out.json"
    done = python(
        *("eval/lm_eval_model.py", "--checkpoint", str(folder / "checkpoint"), "--device", "cpu"),
        *("--include-path", str(tmp_path), "--json", str(out), "--tasks", ",".join(names)),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    for sentence in (
        "beams: generation setting num_beams=4 is not supported",
        "room: the task gen",
        "lost: no document can be scored; document 0: the ending",
    ):
        assert sentence in done.stderr.splitlines()[-1]
    assert "long: 1 of its documents left out, such as document 3: the ending" in done.stdout
    found = json.loads(out.read_text())
    assert found.keys() == {"good", "long", "joined", "checkpoint"}
    assert found["long"] == found["good"] | {
        "name": "long", "alias": "long", "samples_of_task": 4, "left_out": 1
    }  # fmt: skip
    assert (found["joined"]["left_out"], "acc,none" in found["joined"]) == (0, True)
    assert (found["good"]["few_shot"], found["good"]["samples"]) == (0, 3)
    assert found["checkpoint"]["weights_sha256"] == weights_sha256(folder / "checkpoint")


def test_the_harnesss_own_command_line_needs_no_device(folder, tmp_path):
    own_task(tmp_path, "good", [{"q": "a", "a": " b", "b": " c"}] * 2, **MULTIPLE_CHOICE)
    words = ["eval/lm_eval_model.py", "run", "--model", "ratchet", "--tasks", "good"]
    words += ["--include_path", str(tmp_path), "--model_args"]
    done = python(*words, f"checkpoint={folder / 'checkpoint'}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "good" in done.stdout
    for more, sentence in (
        ([f"checkpoint={folder / 'checkpoint'}", "--apply_chat_template"], "has no chat template"),
        ([f"pretrained={folder / 'exported'}"], "no checkpoint among the model's arguments"),
    ):
        done = python(*words, *more)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert sentence in done.stderr.splitlines()[-1]


def task_yaml(tmp_path) -> str:
    """A task of the harness that reads a local file."""
    rows = [{"q": c, "a": SHORT[4 * i : 4 * i + 2], "y": i % 2} for i, c in enumerate(CONTEXTS)]
    data = write(tmp_path / "rows.jsonl", rows)
    spec = {"task": "own_task", "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "y",
            "doc_to_choice": "a",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}  # fmt: skip
    (tmp_path / "own_task.yaml").write_text(json.dumps(spec))
    return str(tmp_path / "own_task.yaml")


def test_the_script_gives_the_numbers_of_the_harness_on_one_and_two_ranks(folder, tmp_path):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    task, out = task_yaml(tmp_path), tmp_path / "out.json"
    words = ["eval/lm_eval_model.py", "--checkpoint", str(folder / "checkpoint"), "--tasks", task]
    words += ["--device", "cpu", "--json", str(out)]
    theirs = HFLM(str(folder / "exported"), device="cpu", dtype="float32")
    wanted = simple_evaluate(theirs, tasks=[task])["results"]["own_task"]
    for run in (python, lambda *arguments: torchrun(2, *arguments)):
        done = run(*words)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("|own_task|") == 1
        found = json.loads(out.read_text())["own_task"]
        for key in ("acc,none", "acc_norm,none"):
            assert found[key] == pytest.approx(wanted[key])
        out.unlink()


def test_the_harness_knows_the_model_by_name(folder):
    from lm_eval.api.registry import get_model

    model = get_model("ratchet").create_from_arg_string(
        f"checkpoint={folder / 'checkpoint'},device=cpu", {"batch_size": 4}
    )
    assert isinstance(model, RatchetLM)
