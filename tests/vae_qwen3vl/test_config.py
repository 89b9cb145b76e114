"""The settings of alignment training: precedence, round trips, every refusal, and the names of run folders."""

from __future__ import annotations

import argparse
import json
import math
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from said import without_waits
from sdf_vqvae.utils.programs import run_program
from vae_qwen3vl.config import AlignmentConfig, add_alignment_options, read_alignment_config

yaml = pytest.importorskip("yaml")

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "3d_align_train.yaml"
DEFAULTS = AlignmentConfig()
# Characters that YAML can hold; it knows no lone surrogates, and no control characters unescaped.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
COUNTS = st.integers(1, 10**6)
VALUES = {
    "vl_model": TEXT,
    "data_dir": TEXT,
    "max_samples": st.integers(0, 10**6),
    "dummy_data": st.booleans(),
    "dummy_samples": COUNTS,
    "output_dir": TEXT,
    "output_run": TEXT,
    "prompt": TEXT,
    "max_3d_tokens": st.integers(-1, 10**5),
    "truncate_mode": st.sampled_from(["pool", "head"]),
    "use_3d_pos": st.booleans(),
    "projector_layers": COUNTS,
    "encoder_layers": st.integers(0, 12),
    "use_lora": st.booleans(),
    "lora_r": COUNTS,
    "lr": st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    "epochs": COUNTS,
    "batch_size": COUNTS,
}
SOME = st.fixed_dictionaries({}, optional=VALUES)


def parse(*arguments: str) -> AlignmentConfig:
    """What a program does: three lines."""
    parser = argparse.ArgumentParser(prog="train_finetune", allow_abbrev=False)
    add_alignment_options(parser)
    return read_alignment_config(parser.parse_args(arguments))


def as_flag(key: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no-{key}"
    return f"--{key}={value!r}" if isinstance(value, float) else f"--{key}={value}"


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("config")


# -- precedence ------------------------------------------------------------------------------------------------


@given(in_file=SOME, on_line=SOME, order=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(folder, in_file, on_line, order):
    config = f"--config={write(folder, yaml.safe_dump(in_file))}"
    flags = [as_flag(key, value) for key, value in on_line.items()]
    found = parse(*([config, *flags] if order else [*flags, config])).to_dict()
    assert found == {**DEFAULTS.to_dict(), **in_file, **on_line}


@pytest.mark.parametrize("flag", ["use_lora", "use_3d_pos", "dummy_data"])
def test_plain_flags_turn_on_and_off(tmp_path, flag):
    on = write(tmp_path, f"{flag}: true\n")
    assert getattr(parse(f"--{flag}"), flag) is True
    assert getattr(parse("--config", on), flag) is True
    assert getattr(parse("--config", on, f"--no-{flag}"), flag) is False


def test_the_shipped_file_reads(monkeypatch):
    config = AlignmentConfig.from_file(SHIPPED)
    assert (config.vl_model, config.vae_ckpt) == ("smollm2-135m", None)  # what a fresh clone has
    assert (config.lr, config.epochs, config.batch_size, config.lora_r) == (1e-4, 2, 4, 8)
    assert config.accelerate["num_processes"] == 4
    assert config.accelerate["downcast_bf16"] == "no"
    assert set(yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))) <= {f.name for f in fields(config)}


def test_the_documents_command_lines_read(user_document):
    """Every training command of the user's document, in our parser; the VAE files it names are placeholders."""
    joined = user_document.replace("\\\n", " ")
    commands = [
        line.split() for line in joined.splitlines() if line.startswith("python vae_qwen3vl/train_finetune.py")
    ]
    assert len(commands) == 3
    for words in commands:
        keep, skip = [], False
        for word in words[2:]:
            if skip or word in ("--vae_config", "--vae_ckpt"):
                skip = not skip
                continue
            keep.append(word)
        config = parse(*keep)
        assert config.output_dir in ("./out_3dvl", "./outputs_3d_vl")
        assert config.use_lora == ("--use_lora" in words)
        assert config.dummy_data == ("--dummy_data" in words)


def test_a_program_may_keep_a_flag_of_that_name_for_itself(tmp_path):
    parser = argparse.ArgumentParser()
    add_alignment_options(parser, leave_out=["output_dir"])
    parser.add_argument("--output_dir", default="eval_out")
    options = parser.parse_args(["--config", write(tmp_path, "output_dir: runs\n"), "--output_dir", "elsewhere"])
    assert options.output_dir == "elsewhere"
    assert read_alignment_config(options).output_dir == "runs"


def test_every_setting_has_a_flag_and_a_meaning():
    parser = argparse.ArgumentParser(prog="p")
    add_alignment_options(parser)
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]  # --no-... are the rest
    actions = {action.option_strings[0]: action.help for action in shown}
    assert set(actions) == {"-h", "--config"} | {f"--{f.name}" for f in fields(DEFAULTS) if f.name != "accelerate"}
    assert all(len(meaning or "") > 10 for meaning in actions.values())
    assert "current directory" in parser.format_help()


# -- round trips -----------------------------------------------------------------------------------------------


@given(values=SOME)
@settings(max_examples=30, deadline=None)
def test_what_is_written_reads_back(folder, values):
    config = replace(DEFAULTS, **values)
    config.save(folder / "train_args.json")
    assert AlignmentConfig.from_file(folder / "train_args.json") == config
    assert AlignmentConfig.from_file(write(folder, yaml.safe_dump(config.to_dict()))) == config


def test_the_accelerate_section_makes_the_round_trip(tmp_path):
    config = AlignmentConfig.from_file(SHIPPED)
    config.save(tmp_path / "train_args.json")
    assert AlignmentConfig.from_file(tmp_path / "train_args.json") == config


def test_changing_what_to_dict_gave_changes_nothing():
    config = AlignmentConfig.from_file(SHIPPED)
    config.to_dict()["accelerate"]["num_processes"] = 99
    assert config.accelerate["num_processes"] == 4


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "0.0001", "1.0e-4", '"1e-4"', "+1e-4"])
def test_a_rate_is_a_number_with_or_without_a_dot(tmp_path, written):
    assert AlignmentConfig.from_file(write(tmp_path, f"lr: {written}\n")).lr == 1e-4


def test_a_whole_number_is_a_rate_too(tmp_path):
    assert AlignmentConfig.from_file(write(tmp_path, "lr: 1\n")).lr == 1.0
    assert isinstance(AlignmentConfig.from_file(write(tmp_path, "lr: 1\n")).lr, float)


def test_an_unquoted_no_of_accelerate_is_the_word(tmp_path):
    pytest.importorskip("accelerate")
    path = write(tmp_path, "accelerate: {distributed_type: NO, downcast_bf16: no, mixed_precision: no}\n")
    expected = {"distributed_type": "NO", "downcast_bf16": "no", "mixed_precision": "no"}
    assert AlignmentConfig.from_file(path).accelerate == expected


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "accelerate:\n"])
def test_a_file_may_be_empty(tmp_path, text):
    assert AlignmentConfig.from_file(write(tmp_path, text)) == DEFAULTS


def test_a_hub_id_is_never_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "vl_model: Qwen/Qwen2-VL-2B-Instruct\n")
    assert parse("--config", path).vl_model == "Qwen/Qwen2-VL-2B-Instruct"
    Path("Qwen").mkdir()  # half of it exists
    assert parse("--config", path).vl_model == "Qwen/Qwen2-VL-2B-Instruct"


def test_paths_start_at_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "vae.json").write_text("{}")
    path = write(tmp_path / "configs", "vae_config: vae.json\n")
    monkeypatch.chdir(tmp_path)
    assert parse("--config", path).vae_config == "vae.json"
    monkeypatch.chdir(tmp_path / "configs")
    with pytest.raises(ValueError, match=r"vae_config: there is no file vae\.json in the current directory"):
        parse("--config", path)


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_rank: 8", "unknown key 'lora_rank'; did you mean 'lora_r'?"),
        ("max_3d_token: 8", "did you mean 'max_3d_tokens'?"),
        ("config: x.yaml", "unknown key 'config'"),
        ("training:\n  lr: 1e-4", "unknown key 'training'"),
        ("lr: fast", "lr must be a number above 0, got 'fast'"),
        ("lr: 0", "lr must be a number above 0, got 0"),
        ("lr: -1e-4", "lr must be a number above 0, got '-1e-4'"),
        ("lr: .nan", "lr must be a number above 0, got nan"),
        ("lr: .inf", "lr must be a number above 0, got inf"),
        ("lr: true", "lr must be a number above 0, got True"),
        ("lr:", "lr must be a number above 0, got None"),
        ("epochs: 2.5", "epochs must be an integer of at least 1, got 2.5"),
        ("epochs: '2'", "epochs must be an integer of at least 1, got '2'"),
        ("epochs: true", "epochs must be an integer of at least 1, got True"),
        ("batch_size: 0", "batch_size must be an integer of at least 1, got 0"),
        ("max_samples: -1", "max_samples must be an integer of at least 0, got -1"),
        ("use_lora: 'yes'", "use_lora must be true or false, got 'yes'"),
        ("use_lora: 1", "use_lora must be true or false, got 1"),
        ("prompt: no", "prompt must be a string (in quotes), got False"),
        ("prompt: ''", "prompt must be a string that is not empty, got ''"),
        ("vae_ckpt: ''", "vae_ckpt must be a string that is not empty"),
        ("vl_model: 2", "vl_model must be a string (in quotes), got 2"),
        ("output_run: 2026-01-01", "output_run is datetime.date(2026, 1, 1)"),
        ("data_format: pack", "data_format must be sdf_caption, got 'pack'"),
        ("truncate_mode: fps", "truncate_mode must be pool or head, got 'fps' (of later versions"),
        ("lr: 1e-4\nepochs: 1\nlr: 1e-5", "line 3: 'lr' is given twice"),
        ("lr: 1e-4\n'lr': 1e-5", "line 2: 'lr' is given twice"),
        ("accelerate:\n  debug: false\n  debug: true", "line 3: 'debug' is given twice"),
        ("accelerate: {num_process: 4, distributed_type: 'NO'}", "did you mean 'num_processes'?"),
        ("accelerate: {num_processes: many, distributed_type: 'NO'}", "accelerate.num_processes must be an integer"),
        ("accelerate: {use_cpu: 1, distributed_type: 'NO'}", "accelerate.use_cpu must be true or false, got 1"),
        ("accelerate: {distributed_type: MULTI}", "'MULTI' is not a valid DistributedType"),
        (
            "accelerate: {num_processes: 1, mixed_precision: half, distributed_type: 'NO'}",
            "mixed_precision must be one",
        ),
        ("accelerate: {num_processes: 4}", "`distributed_type` must be specified"),
        ("accelerate: [1]", "accelerate must be a mapping, got [1]"),
        ("use_lr_scheduler: true", "'use_lr_scheduler' is of later versions of the original system"),
        ("weight_decay: -1", "weight_decay must be a number of at least 0, got -1"),
        ("projector_share: 1.5", "projector_share must be a number from 0 to 1, got 1.5"),
        ("merge: 3", "merge must be 1, 2 or 4, got 3"),
        ("positions: sine", "positions must be mrope or sequential, got 'sine'"),
        ("use_discrete_3d_tokens: false", "the vocabulary is not extended"),
        ("training_stage: sft", "trained in one run"),
        ("debug_batch: true", "'debug_batch' is of later versions"),
        ("- lr", "expected `key: value` lines"),
        ("lr", "expected `key: value` lines"),
        ("lr: 1\n---\nlr: 2", "expected a single document"),
        ("lr: [1", "line 2: "),
        ("lr: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("1: 2", "the key 1 is no word"),
        ("prompt: &a [*a]", "nested too deeply"),
        ("prompt: \x07", "special characters are not allowed"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text, message):
    if "accelerate: {" in text:
        pytest.importorskip("accelerate")
    path = write(tmp_path, text + "\n")
    with pytest.raises(ValueError) as caught:
        parse("--config", path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["lr", "accelerate"])
def test_a_json_key_given_twice_is_refused(tmp_path, key):
    path = tmp_path / "train_args.json"
    path.write_text(f'{{"{key}": 1, "{key}": 2}}')
    with pytest.raises(ValueError, match=f"train_args.json: '{key}' is given twice"):
        AlignmentConfig.from_file(path)


def test_merged_mappings_are_not_taken_for_twins(tmp_path):
    text = (
        "accelerate:\n  dynamo_config: &d {a: 1}\n  fsdp_config: {<<: *d, a: 2, b: 3}\n"
        "  num_processes: 1\n  distributed_type: FSDP\n  mixed_precision: bf16\n"
    )
    assert AlignmentConfig.from_file(write(tmp_path, text)).accelerate["fsdp_config"] == {"a": 2, "b": 3}


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00lr")
    with pytest.raises(ValueError, match=r"mine\.yaml is no text file"):
        AlignmentConfig.from_file(path)
    with pytest.raises(ValueError, match="cannot read the config"):
        AlignmentConfig.from_file(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": math.nan}, "lr"),
        ({"epochs": 0}, "epochs"),
        ({"use_lora": "yes"}, "use_lora"),
        ({"prompt": " "}, "prompt"),
    ],
)
def test_values_are_checked_wherever_they_come_from(values, message):
    with pytest.raises(ValueError, match=f"{message} must be"):
        AlignmentConfig(**values)


PROGRAM = """
import argparse, sys
from sdf_vqvae.utils.programs import run_program
from vae_qwen3vl.config import add_alignment_options, read_alignment_config
parser = argparse.ArgumentParser(prog="train_finetune", allow_abbrev=False)
add_alignment_options(parser)
def work(options):
    print(read_alignment_config(options).run_name())
    return 0
sys.exit(run_program("train_finetune", work, parser.parse_args()))
"""


def test_a_program_ends_with_exit_code_2_and_one_line(tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.run(command, cwd=SHIPPED.parents[1], capture_output=True, text=True, timeout=60)

    wrong = run("--config", "configs/3d_align_train.yaml", "--vae_ckpt", "nowhere.pt")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert without_waits(wrong.stderr).startswith("train_finetune: error: vae_ckpt: there is no file nowhere.pt")
    assert without_waits(wrong.stderr).count("\n") == 1
    unknown = run("--lora_rank", "4")
    assert unknown.returncode == 2
    assert unknown.stderr.splitlines()[1:] == ["train_finetune: error: unrecognized arguments: --lora_rank 4"]
    right = run("--dummy_data", "--dummy_samples", "50", "--epochs", "1", "--batch_size", "2")
    assert (right.returncode, right.stdout, without_waits(right.stderr)) == (0, "ep1_lr1e-4_bs2_nd50_nolora\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "fast"], "--lr must be a number above 0, got 'fast'"),
        (["--epochs", "two"], "--epochs must be an integer of at least 1, got 'two'"),
        (["--epochs", "0"], "--epochs must be an integer of at least 1, got 0"),
        (["--data_format", "pack"], "--data_format must be sdf_caption, got 'pack'"),
        (["--prompt", ""], "--prompt must be a string that is not empty, got ''"),
        (["--config", "nowhere.yaml"], "cannot read the config nowhere.yaml: No such file"),
        (["--vae_config", "nowhere.json"], "vae_config: there is no file nowhere.json"),
        (["--vae_ckpt", "/nowhere.pt"], "vae_ckpt: there is no file /nowhere.pt; give --vae_ckpt"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(arguments, message, capsys):
    assert run_program("train_finetune", lambda _: parse(*arguments) and 0, argparse.Namespace()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"train_finetune: error: {message}")
    assert err.count("\n") == 1


# -- runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"max_samples": 500, "use_lora": True}, "ep2_lr1e-4_bs2_n500_lora8"),
        ({"lr": 1.5e-4}, "ep2_lr1.5e-4_bs2_nall_nolora"),
        ({"lr": 5e-5, "dummy_data": True, "max_samples": 9}, "ep2_lr5e-5_bs2_nd50_nolora"),
        ({"lr": 1.0}, "ep2_lr1e0_bs2_nall_nolora"),
        ({"lr": 120.0}, "ep2_lr1.2e2_bs2_nall_nolora"),
    ],
)
def test_a_run_is_named_by_its_settings(values, name):
    assert AlignmentConfig(**{"epochs": 2, **values}).run_name() == name


def test_a_run_is_named_by_the_objects_that_it_takes():
    assert AlignmentConfig(max_samples=5000).run_name(321) == "ep3_lr1e-4_bs2_n321_nolora"


@given(lr=VALUES["lr"])
@settings(max_examples=200, deadline=None)
def test_no_digit_of_the_rate_is_lost(lr):
    written = AlignmentConfig(lr=lr).run_name().split("_")[1].removeprefix("lr")
    assert float(written) == lr
    assert set(written) <= set(string.digits + ".e-")


def test_runs_of_the_same_settings_never_share_a_folder(tmp_path):
    config = AlignmentConfig(output_dir=str(tmp_path / "a" / "b"), dummy_data=True)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: config.make_run_folder(), range(24)))
    name = config.run_name()
    assert {p.name for p in folders} == {name} | {f"{name}_{number}" for number in range(2, 25)}
    assert all(p.is_dir() for p in folders)


def test_an_evaluation_finds_its_run(tmp_path):
    config = AlignmentConfig(output_dir=str(tmp_path))
    run = config.make_run_folder()
    assert replace(config, output_run=run.name).run_folder() == run
    with pytest.raises(ValueError, match=rf"output_run: 'ep9' is no run in .* \(there are {run.name}\)"):
        replace(config, output_run="ep9").run_folder()
    with pytest.raises(ValueError, match="output_run: None is no run"):
        config.run_folder()


def test_the_model_takes_the_settings():
    import inspect

    from vae_qwen3vl.model import Qwen3VLWith3DBranch

    assert set(DEFAULTS.model_settings()) <= set(inspect.signature(Qwen3VLWith3DBranch).parameters)


def test_train_args_are_plain_json(tmp_path):
    AlignmentConfig.from_file(SHIPPED).save(tmp_path / "train_args.json")
    values = json.loads((tmp_path / "train_args.json").read_text(encoding="utf-8"))
    assert list(values) == [f.name for f in fields(DEFAULTS)]
