"""Whatever a document, a help text or a message tells people to type, the programs take."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import subprocess
from functools import cache
from pathlib import Path

import pytest

from dataset_toolkits import process_m3d_seg_format, sdf_voxelize
from sdf_vqvae.commands.options import add_vae_options
from sdf_vqvae.utils.measurements import add_measuring_options
from sdf_vqvae.utils.programs import add_run_options, run_program
from sdf_vqvae.utils.settings import flag_of
from vae_qwen3vl import eval_3d_vl, run_smoke_test, train_finetune
from vae_qwen3vl.commands import main as cli
from vae_qwen3vl.commands.options import add_language_options
from vae_qwen3vl.config import AlignmentConfig, add_alignment_options, read_alignment_config

ROOT = Path(__file__).resolve().parents[1]
MAKERS = {
    "vae_qwen3vl/train_finetune": train_finetune.make_parser,
    "vae_qwen3vl/eval_3d_vl": eval_3d_vl.make_parser,
    "vae_qwen3vl/run_smoke_test": run_smoke_test.make_parser,
    "dataset_toolkits/sdf_voxelize": sdf_voxelize.make_parser,
    "dataset_toolkits/process_m3d_seg_format": process_m3d_seg_format.make_parser,
}
SCRIPTS = ("scripts/run_3d_align_train", "scripts/train_tokenizer")
"""Programs that are in no package and make their parser elsewhere."""
FOLDERS = ("sdf_vqvae", "vae_qwen3vl", "dataset_toolkits", "scripts", "examples")
FOREIGN = {
    *("--version", "--help", "--index-url", "--no-deps", "--no-input", "--disable-pip-version-check"),
    *("--only-binary", "--timeout", "--retries", "--dest", "--force-reinstall", "--num_processes"),
    *("--mixed_precision", "--config_file", "--fsdp_version", "--use_fsdp", "--multi_gpu", "--nproc_per_node"),
    *("--gpus", "--sparse", "--local-dir", "--short", "--model", "--model-path", "--enable-prompt-embeds"),
    *("--no-sandbox", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
}
"""Flags of other programs that our texts name: pip, accelerate, docker, cp, hf, git, vLLM, SGLang, Chromium."""
FLAG = re.compile(r"(?<![\w/.-])(--[a-z][\w-]*\w)(?![\w-])")
COMMAND = re.compile(
    r"(?:(?P<cli>(?:python -m vae_qwen3vl|vae-qwen3vl)(?= [a-z]))"
    r"|python (?:-m )?(?P<file>(?:vae_qwen3vl|dataset_toolkits|scripts|benchmarks|examples)(?:[/.]\w+?)+)(?:\.py)?"
    r"(?=[\s`]|$)|bash (?P<shell>scripts/run_3d_align_train)\.sh)(?P<rest>(?:(?!, )[^`|&;#\n])*)"
)


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {name for name in parser._option_string_actions if name.startswith("--")}


@cache
def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


@cache
def flags_in(program: str) -> frozenset[str]:
    """Return the flags of a file that is a program, by the name of the file without its suffix."""
    if program in MAKERS:
        return frozenset(flags_of(MAKERS[program]()))
    path = ROOT / f"{program}.py"
    if program in SCRIPTS:
        handed_on = flags_in("vae_qwen3vl/train_finetune") if program == "scripts/run_3d_align_train" else frozenset()
        return frozenset(flags_of(runpy.run_path(str(path))["make_parser"]())) | handed_on
    shared = argparse.ArgumentParser()
    add_run_options(shared)
    add_vae_options(shared)
    add_language_options(shared)
    add_measuring_options(shared, ROOT)
    flags = flags_of(shared)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            own = {str(a.value) for a in node.args if isinstance(a, ast.Constant) and str(a.value).startswith("--")}
            flags |= own | {flag.replace("--", "--no-", 1) for flag in own if "BooleanOptional" in ast.dump(node)}
    return frozenset(flags)


def texts() -> list[tuple[str, str]]:
    """Return every text that people read: documents, configs, and the strings of the programs with their help."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git working tree")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix == ".md" or name.startswith("configs/3d"):
            found.append((name, path.read_text(encoding="utf-8").replace("\\\n", " ")))
        elif path.suffix == ".py" and name.split("/")[0] in FOLDERS:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "--" in node.value:
                    found.append((f"{name}:{node.lineno}", node.value.replace("\\\n", " ")))
    return found


def program_of(match: re.Match[str]) -> tuple[str, frozenset[str]] | None:
    """Return the program that a command line starts, and its flags; None for none of ours."""
    if match["cli"]:
        name = match["rest"].split()[0]
        return (name, frozenset(flags_of(subcommands()[name]))) if name in subcommands() else None
    if match["shell"]:
        return match["shell"], flags_in(match["shell"])
    program = match["file"].replace(".", "/")
    return (program, flags_in(program)) if (ROOT / f"{program}.py").is_file() else None


def test_every_flag_of_a_command_line_is_one_of_its_program():
    wrong, seen = [], 0
    for where, text in texts():
        for match in COMMAND.finditer(text):
            program = program_of(match)
            if program is None:
                continue
            given = set(FLAG.findall(match["rest"])) - {"--help", "--version"}
            seen += len(given)
            wrong += [f"{where}: {program[0]} has no {flag}" for flag in sorted(given - program[1])]
    assert not wrong
    assert seen > 100


def test_every_flag_that_a_text_names_exists():
    known = set(FOREIGN)
    for program in (*MAKERS, *SCRIPTS):
        known |= flags_in(program)
    for parser in subcommands().values():
        known |= flags_of(parser)
    for path in [*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("examples/*.py")]:
        known |= flags_in(str(path.relative_to(ROOT).with_suffix("")))
    wrong = [f"{where}: {flag}" for where, text in texts() for flag in FLAG.findall(text) if flag not in known]
    assert not wrong


@pytest.mark.parametrize("name", ["use_3d_pos", "use_lora", "resume"])
@pytest.mark.parametrize("value", [True, False])
def test_a_setting_that_is_on_or_off_is_a_flag_in_every_form_that_a_hint_or_the_file_has(name, value):
    for words in ([flag_of(name, value)], [f"--{name}", str(value)], [f"--{name}", str(value).lower()]):
        parser = argparse.ArgumentParser()
        add_alignment_options(parser)
        assert getattr(read_alignment_config(parser.parse_args(words)), name) is value
    parser = argparse.ArgumentParser()
    add_alignment_options(parser)
    with pytest.raises(ValueError, match=f"--{name} must be true or false, got 'maybe'"):
        read_alignment_config(parser.parse_args([f"--{name}", "maybe"]))


def test_the_flag_of_a_setting_gives_its_value():
    for key, value in (("merge", 2), ("projector_layers", 3), ("lr", 5e-5), ("use_lora", True)):
        parser = argparse.ArgumentParser()
        add_alignment_options(parser)
        assert getattr(read_alignment_config(parser.parse_args(flag_of(key, value).split())), key) == value
    assert AlignmentConfig().use_3d_pos is False  # so --no-use_3d_pos is what a hint has to say


@pytest.mark.parametrize("maker", [*MAKERS.values(), cli.make_parser], ids=[*MAKERS, "vae-qwen3vl"])
def test_every_program_says_its_version(maker, capsys):
    with pytest.raises(SystemExit) as ended:
        maker().parse_args(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"vae-qwen3vl \S.*, torch \S+, Python \S+, .+\n", capsys.readouterr().out)


def test_warnings_of_libraries_stay_between_them(capsys):
    import warnings

    def work(options: argparse.Namespace) -> int:
        warnings.warn_explicit("use another name", FutureWarning, "a_library.py", 1)
        warnings.warn_explicit("soon gone", DeprecationWarning, "a_library.py", 2)
        return 0

    with warnings.catch_warnings(record=True) as heard:
        assert run_program("quiet", work, argparse.Namespace(verbose=False)) == 0
    assert heard == []
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert run_program("told", work, argparse.Namespace(verbose=True)) == 0
    assert len(heard) == 2
