"""Bad input never does harm: one line on standard error, exit code 2, nothing executed and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

import bad_inputs
import bad_meshes
from said import without_waits
from sdf_vqvae.codes.cache import CodeCache
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.fields.sparse_sdf import SparseSDF, collate_sparse_sdf
from sdf_vqvae.geometry.formats import mesh_file
from sdf_vqvae.geometry.mesh import load_mesh, normalize_mesh
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.utils.files import atomic_path
from vae_qwen3vl.commands.main import main
from vae_qwen3vl.projector_file import ProjectorDescription, load_projector, save_projector

GIGABYTE = 2**20  # of ru_maxrss, in KiB
SECONDS = 10
GOOD = ("-o out.safetensors", "-o out.glb", "--vae_ckpt vae/model.safetensors", "--vae_config vae/config.json")
"""What is right in the commands, and left out of the page's table."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tokenizer, a mesh, its field and its codes."""
    folder: Path = tmp_path_factory.mktemp("good")
    bad_inputs.write_good(folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where the program runs."""
    shutil.copytree(good, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def everything(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content (of a link, where it points)."""
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    links = {f: os.readlink(f).encode() for f in files if f.is_symlink()}
    return {str(f.relative_to(folder)): links.get(f) or (f.read_bytes() if f.is_file() else b"") for f in files}


@pytest.fixture(scope="module")
def page(repository: Path) -> list[str]:
    """The rows of the page's last table, which says what is printed."""
    text = (repository / "docs" / "bad-input.md").read_text(encoding="utf-8")
    return text.partition("| bad input | command | line |\n|---|---|---|\n")[2].partition("\n\n")[0].split("\n")


def row_of(case: Any, line: str) -> str:
    """Return a case's row: its name, what was typed but for what is right in it, and what was said."""
    command = " ".join(case.command)
    for good in GOOD:
        command = command.replace(f" {good}", "")
    said = line.strip("\n").split("error: ", 1)[-1].replace("|", "\\|")
    return f"| {case.name} | `{command}` | {said} |"


def test_the_page_has_a_row_for_each_case_and_no_other(page: list[str]) -> None:
    assert len(page) == len(bad_inputs.bad_inputs())


@pytest.mark.parametrize(
    "case", bad_inputs.bad_inputs(), ids=lambda case: f"{case.name}: {' '.join(case.command[:2])}"
)
def test_bad_input_is_one_line_and_nothing_else(
    folder: Path, capfd: pytest.CaptureFixture[str], case: Any, page: list[str]
) -> None:
    case.write(folder / case.file)
    before = everything(folder)
    capfd.readouterr()
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    code = main(list(case.command))
    seconds = time.perf_counter() - started
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith(f"vae-qwen3vl {case.command[0]}: error: ") and err.count("\n") == 1, err
    assert case.says in err and Path(case.file).name in err
    assert "Traceback" not in err and str(folder) not in err
    assert row_of(case, err) in page, "docs/bad-input.md does not say what is printed"
    assert everything(folder) == before, "something was written"
    assert seconds < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < GIGABYTE // 2


@pytest.mark.parametrize("name", ["text named .glb", "a pickle that runs a command"])
def test_the_same_holds_in_a_process_of_its_own(folder: Path, name: str, repository: Path) -> None:
    case = next(c for c in bad_inputs.bad_inputs() if c.name == name)
    case.write(folder / case.file)
    done = subprocess.run(
        [sys.executable, "-m", "vae_qwen3vl", *case.command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert without_waits(done.stderr).count("\n") == 1 and case.says in done.stderr
    assert not (folder / "executed").exists()


# -- what is opened ------------------------------------------------------------------------------------------------


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Names of all files that are opened, and addresses that are called, while a test runs."""
    names: list[str] = []
    listening = [True]

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event in ("open", "socket.connect", "socket.getaddrinfo", "urllib.Request"):
            names.append(str(arguments[0]))

    sys.addaudithook(listen)  # can't be taken away again, only told to stop
    yield names
    listening.clear()


@pytest.mark.parametrize(
    "uri",
    ["../secret.bin", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/a", "%2e%2e/secret.bin", "link.bin"],
)
def test_a_gltf_that_points_elsewhere_is_refused_before_anything_is_opened(
    tmp_path: Path, opened: list[str], uri: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(bad_meshes.TRIANGLE)
    model = tmp_path / "model" / "a.gltf"
    model.parent.mkdir()
    (model.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    # The other buffer is good: not even that is opened first.
    (model.parent / "box.bin").write_bytes(bad_meshes.TRIANGLE)
    document = json.loads(bad_meshes.gltf())
    document["buffers"].append({"byteLength": 36, "uri": uri})
    model.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="own folder"):
        load_mesh(model)  # a process's first one imports what it needs
    opened.clear()
    with pytest.raises(ValueError, match="own folder"):
        load_mesh(model)
    assert [name for name in opened if not name.endswith((".py", ".pyc"))] == [str(model)]


def test_a_gltf_with_buffers_and_pictures_beside_and_below_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "parts" / "more parts").mkdir(parents=True)
    (tmp_path / "parts" / "more parts" / "box.bin").write_bytes(bad_meshes.TRIANGLE)
    (tmp_path / "a.png").write_bytes(b"not even looked at")
    for uri in ("parts/more%20parts/box.bin", "parts/more parts/box.bin", "./parts/../parts/more parts/box.bin"):
        (tmp_path / "a.gltf").write_bytes(bad_meshes.gltf(uri, images=[{"uri": "a.png"}, {"uri": "parts/b.png"}]))
        assert load_mesh(tmp_path / "a.gltf").area == pytest.approx(0.5)


def test_materials_and_textures_of_other_formats_are_never_opened(tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd ../../etc/passwd\n")
    vertices = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
    body = bad_meshes.ply("ascii", 3, 1, b"0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    for plain, content in {"plain.obj": f"{vertices}f 1 2 3\n".encode(), "plain.ply": body}.items():
        (tmp_path / plain).write_bytes(content)
        load_mesh(tmp_path / plain)  # compiles its reader, where nobody has yet
    for name in ("a.mtl", "../../etc/passwd", "http://127.0.0.1:9/a.mtl"):
        (tmp_path / "a.obj").write_text(f"mtllib {name}\n{vertices}usemtl m\nf 1 2 3\n")
        opened.clear()
        assert len(load_mesh(tmp_path / "a.obj").faces) == 1
        assert [n for n in opened if not n.endswith((".py", ".pyc"))] == [str(tmp_path / "a.obj")]
    (tmp_path / "a.ply").write_bytes(body.replace(b"ascii 1.0\n", b"ascii 1.0\ncomment TextureFile /etc/passwd\n"))
    opened.clear()
    assert len(load_mesh(tmp_path / "a.ply").faces) == 1
    assert [n for n in opened if not n.endswith((".py", ".pyc"))] == [str(tmp_path / "a.ply")]


def test_a_link_to_a_mesh_is_followed(tmp_path: Path) -> None:
    trimesh.creation.box().export(tmp_path / "box.ply")
    (tmp_path / "link.ply").symlink_to("box.ply")
    assert len(load_mesh(tmp_path / "link.ply").faces) == 12


# -- time and memory ---------------------------------------------------------------------------------------------


def test_a_flat_mesh_is_an_open_sheet_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "flat.obj").write_text("v 0 0 5\nv 1 0 5\nv 1 2 5\nv 0 2 5\nf 1 2 3 4\n")
    field = SparseSDF.from_mesh(tmp_path / "flat.obj", 32, device="cpu")
    assert field.sign_method == "winding+shell" and len(field.sdf) > 0


def test_a_needle_has_an_area(tmp_path: Path) -> None:
    (tmp_path / "needle.obj").write_text("v 0 0 0\nv 1 0 0\nv 0.5 0.000001 0\nf 1 2 3\n")
    assert len(normalize_mesh(load_mesh(tmp_path / "needle.obj")).faces) == 1


@pytest.mark.slow
def test_a_face_of_a_million_vertices_is_read_as_a_fan(tmp_path: Path) -> None:
    count = 1_000_000
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    lines = [f"v {x:.6f} {y:.6f} 0" for x, y in zip(np.cos(turn), np.sin(turn), strict=True)]
    lines.append("f " + " ".join(map(str, range(1, count + 1))))
    (tmp_path / "face.obj").write_text("\n".join(lines))
    started = time.perf_counter()
    mesh = load_mesh(tmp_path / "face.obj")
    assert len(mesh.faces) == count - 2
    assert time.perf_counter() - started < 3 * SECONDS  # 7 s on one slow core


def test_solids_and_materials_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    facet = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
    (tmp_path / "solids.stl").write_text(f"SOLID a\n{facet}ENDSOLID a\n" * 20_000)
    vertices = "".join(f"v {i} {i % 7} {i % 5}\n" for i in range(30_000))
    materials = "".join(f"usemtl m{i}\nf {i + 1} {i + 2} {i + 3}\n" for i in range(20_000))
    (tmp_path / "materials.obj").write_text(vertices + materials)
    started = time.perf_counter()
    assert len(load_mesh(tmp_path / "solids.stl").faces) == 20_000
    assert len(load_mesh(tmp_path / "materials.obj").faces) == 20_000
    assert time.perf_counter() - started < SECONDS  # minutes, one by one


def test_instances_are_counted_before_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_file, "MAX_TRIANGLES", 99)
    (tmp_path / "box.bin").write_bytes(bad_meshes.TRIANGLE)
    for count, fits in ((99, True), (100, False)):
        (tmp_path / "a.gltf").write_bytes(bad_meshes.gltf(**bad_meshes.many_nodes(False, count)))
        if fits:
            assert len(load_mesh(tmp_path / "a.gltf").faces) == count
        else:
            with pytest.raises(ValueError, match="100 triangles"):
                load_mesh(tmp_path / "a.gltf")


# -- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 1])
def test_a_batch_with_a_missing_sample_is_refused(folder: Path, missing: int) -> None:
    vae = load_vae_from_config(None, "vae/model.safetensors", "cpu")
    batch = collate_sparse_sdf([SparseSDF.load("box.npz")] * 3)
    kept = batch["batch_idx"] != missing
    with pytest.raises(ValueError, match=rf"samples \[{missing}\] of the batch"):
        vae.Encode({name: values[kept] for name, values in batch.items()})


# -- files of the language branch --------------------------------------------------------------------------------


def projector(path: Path, **changes: Any) -> Path:
    """Write a small projector whose description claims something else."""
    description = ProjectorDescription(latent_dim=2, hidden_size=6, num_layers=1)
    built = description.build()
    for key, value in changes.items():
        object.__setattr__(description, key, value)
    save_projector(path, built, description)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 10**12}, "doesn't hold the projector it describes"),
        ({"num_layers": 10**9}, "1,000,000,000 layers"),
        ({"max_coord": 10**12, "use_3d_pos": True, "pos_mode": "learned"}, "projector"),
        ({"merge": 3}, "merge"),
        ({"hidden_size": -6}, "hidden_size is -6"),
        ({"hidden_size": "6"}, "hidden_size is '6'"),
        ({"hidden_size": 6.0}, "hidden_size is 6.0"),
        ({"merge": "2"}, "merge is '2'"),
        ({"num_layers": None}, "num_layers is None"),
        ({"prompt": 3}, "prompt is 3"),
        ({"pos_mode": "other"}, "pos_mode is 'other'"),
    ],
)
def test_a_projector_that_claims_what_it_is_not_allocates_nothing(
    tmp_path: Path, changes: dict[str, Any], says: str, suffix: str
) -> None:
    file = projector(tmp_path / f"a{suffix}", **changes)
    with pytest.raises(ValueError, match=says) as error:
        load_projector(file)
    assert file.name in str(error.value) and "\n" not in str(error.value)


class Allocation:
    """Unpickled, it asks for as many bytes as a disk has; PyTorch's own list of safe names lets it."""

    def __init__(self, name: Any, count: int) -> None:
        self.call = (name, (count,))

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "item",
    [
        bad_inputs.Payload(),
        Allocation(bytearray, 10**12),
        Allocation(torch.Tensor, 10**12),
        Allocation(torch.FloatStorage, 10**12),
        torch.ones(1).expand(10**6, 10**6),
    ],
    ids=["command", "bytearray", "tensor", "storage", "expanded"],
)
def test_a_pickle_in_disguise_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item: object, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": item}, "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"a\.pt is not a projector file that can be read safely"):
        load_projector("a.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt"]


def test_a_code_cache_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    good = {
        "codes": torch.tensor([1, 2, 3], dtype=torch.int32),
        "coords": torch.zeros(3, 3, dtype=torch.int16),
        "splits": torch.tensor([0, 2, 3]),
        "ids": ("a", "b"),
        "failures": {},
        "vae_hash": "0",
    }
    CodeCache(**good).save(tmp_path / "good.safetensors")
    assert CodeCache.load(tmp_path / "good.safetensors").ids == ("a", "b")
    for change in (
        {"splits": torch.tensor([0, 2, 10**12])},
        {"splits": torch.tensor([0, 3, 2])},
        {"splits": torch.tensor([0, 3])},
        {"ids": ("a", "a")},
        {"codes": torch.tensor([1, -2, 3], dtype=torch.int32)},
        {"codes": torch.tensor([1.0, 2.0, 3.0])},
        {"coords": torch.zeros(2, 3, dtype=torch.int16)},
    ):
        with pytest.raises(ValueError):
            CodeCache(**{**good, **change})


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"id": 1}', '{"id": "a", "split": "b", "offset": 0, "size": 1000000000000}', "[" * 100_000,
     '{"id": "a", "split": "b", "offset": -1, "size": 1}', '{"id": "a", "split": "b", "offset": "0", "size": 1}'],
    ids=range(7),
)  # fmt: skip
def test_a_bad_line_of_a_mesh_pack_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "meshes.bin").write_bytes(b"DRACO")
    (tmp_path / "meshes.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"meshes\.jsonl, line 1") as error:
        MeshPack(tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_mesh_of_a_pack_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("DracoPy")
    (tmp_path / "meshes.bin").write_bytes(b"DRACO\x02\x02\x01\x01" + b"\xff" * 60)
    (tmp_path / "meshes.jsonl").write_text('{"id": "a/1", "split": "b", "offset": 0, "size": 60}\n')
    pack = MeshPack(tmp_path)
    with pytest.raises(ValueError, match="a/1 is not a readable Draco mesh"):
        pack.mesh(pack.entries[0])


# -- writing -----------------------------------------------------------------------------------------------------


def test_a_link_at_the_output_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out.txt").symlink_to("precious")
    with atomic_path(tmp_path / "out.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "out.txt").is_symlink() and (tmp_path / "out.txt").read_text() == "new"


def test_a_temporary_file_is_new_and_its_name_cannot_be_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for _ in range(3):
        with atomic_path(tmp_path / "out.txt") as temporary:
            names.append(temporary.name)
            assert temporary.is_file()
    assert len(set(names)) == 3
    # Even a name that was foreseen is not written through.
    monkeypatch.setattr("secrets.token_hex", lambda size: "00")
    (tmp_path / ".out.00.tmp.txt").symlink_to("precious")
    with pytest.raises(OSError, match="cannot be written"), atomic_path(tmp_path / "out.txt"):
        pass
    assert not (tmp_path / "precious").exists()


def test_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    with atomic_path(tmp_path / ("x" * 245 + ".txt")) as temporary:
        temporary.write_text("x")
    assert len(list(tmp_path.iterdir())) == 1


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let files of this process grow to 100 bytes only, as a quota would.

    No fixture: pytest's own report may go to a file, and is written before a fixture ends.
    """
    before, written = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python keeps the first bytes of what doesn't fit, and reads them ever after
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = written


def _writers() -> dict[str, Any]:
    box = trimesh.creation.box()

    def mesh(path: Path) -> None:
        from sdf_vqvae.geometry.mesh import write_mesh

        write_mesh(path, box)

    found: dict[str, Any] = {f"box{suffix}": mesh for suffix in (".glb", ".obj", ".ply", ".stl", ".off")}
    found["projector.pt"] = found["projector.safetensors"] = projector
    found["codes.safetensors"] = lambda path: ShapeCodes.load("box.safetensors").save(path)
    found["field.npz"] = lambda path: SparseSDF.load("box.npz").save(path)
    return found


@pytest.mark.parametrize("name", _writers())
def test_a_full_disk_leaves_the_earlier_file_and_no_other(folder: Path, name: str) -> None:
    target = folder / "out" / name
    target.parent.mkdir()
    target.write_bytes(b"earlier")
    with pytest.raises(OSError, match="cannot be written") as error, full_disk():
        _writers()[name](target)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert everything(target.parent) == {name: b"earlier"}


def test_a_full_disk_is_one_line_of_the_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(folder)
    with full_disk():
        code = main(["encode", "box.ply", "-o", "out.safetensors", *bad_inputs.VAE])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "out.safetensors cannot be written" in err
    assert everything(folder) == before


def test_no_space_left_is_said(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    before = everything(folder)
    assert main(["encode", "box.ply", "-o", "out.safetensors", *bad_inputs.VAE]) == 2
    err = capfd.readouterr().err
    assert err == "vae-qwen3vl encode: error: out.safetensors cannot be written: No space left on device\n"
    assert everything(folder) == before
