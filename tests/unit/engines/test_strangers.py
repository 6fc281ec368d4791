"""Artifacts of strangers: loading one runs nothing of theirs and reads nothing outside of its folder, or it is refused
in a sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import main_here
from support.shelf import Shelf
from support.videos import numbered_frames, write_video

from qray.engines.registry import load_artifact
from qray.errors import QrayError


class _Marks:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What is there as soon as anything of a stranger's has run."""
    return tmp_path / "ran"


@pytest.fixture
def taken(shelf: Shelf, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an artifact, to be changed by a stranger."""
    return lambda name: Path(shutil.copytree(shelf[name].folder, tmp_path / "artifact"))


def described(folder: Path, **changes: Any) -> Path:
    """Change what artifact.json says at these dotted keys (__ for a dot)."""
    path = folder / "artifact.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *within, last = key.split("__")
        place = record
        for part in within:
            place = place[part]
        place[last] = value
    path.write_text(json.dumps(record), encoding="utf-8")
    return folder


def rezipped(path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> None:
    """Write an archive anew, each entry as `change` makes it, and more of them (__ for a slash, ___ for a dot)."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(entries)).partition("/")[0]
    added = {f"{root}/{name.replace('___', '.').replace('__', '/')}": data for name, data in more.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (entries | added).items():
            archive.writestr(name, change(name, data))


def pickled_weight(name: str, data: bytes) -> bytes:
    """The archive's list of weights, which says that the first is a pickle."""
    if not name.endswith("model_weights_config.json"):
        return data
    config = json.loads(data)
    next(iter(config["config"].values()))["use_pickle"] = True
    return json.dumps(config).encode()


def opaque_constant(name: str, data: bytes) -> bytes:
    """The archive's list of constants, which names a Python object."""
    if not name.endswith("model_constants_config.json"):
        return data
    return json.dumps({"config": {"x": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True,
                                        "tensor_meta": None}}}).encode()  # fmt: skip


@pytest.mark.parametrize("how", ["inputs", "weight", "constant", "legacy weights", "checkpoint", "pickle"])
def test_a_hostile_pickle_in_an_exported_program_is_not_run(
    taken: Callable[[str], Path], marker: Path, how: str
) -> None:
    folder, evil = taken("fp32"), pickle.dumps(_Marks(marker))
    model = folder / "model.pt2"
    if how == "inputs":
        rezipped(model, lambda name, data: evil if "sample_inputs" in name else data)
    elif how == "weight":
        with zipfile.ZipFile(model) as archive:
            first = next(n for n in archive.namelist() if n.endswith("/weight_0"))
        rezipped(model, lambda name, data: evil if name == first else pickled_weight(name, data))
    elif how == "constant":
        rezipped(model, opaque_constant, data__constants__opaque_obj_0=evil)
    elif how == "legacy weights":
        rezipped(model, lambda name, data: data, data__weights__model___pt=evil, data__constants__model___pt=evil)
    elif how == "checkpoint":
        torch.save({"model": _Marks(marker)}, model)
    else:
        model.write_bytes(evil)
    if how in ("inputs", "legacy weights"):
        # What is not needed is left out.
        load_artifact(folder)
    else:
        with pytest.raises(QrayError, match=r"model\.pt2: "):
            load_artifact(folder)
    assert not marker.exists()


def hostile_library(marker: Path) -> bytes:
    """A shared library that leaves a file behind as soon as it is loaded."""
    source, library = marker.with_name("evil.c"), marker.with_name("evil.so")
    made = f'__attribute__((constructor)) static void run(void) {{ mkdir("{marker}", 0700); }}\n'
    source.write_text(f"#include <sys/stat.h>\n{made}", encoding="utf-8")
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True)
    return library.read_bytes()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to make a hostile library with")
def test_native_code_is_run_only_where_it_is_allowed(taken: Callable[[str], Path], marker: Path) -> None:
    folder, library = described(taken("fp32"), variant__engine="inductor"), hostile_library(marker)
    with zipfile.ZipFile(folder / "model.pt2", "w") as package:
        package.writestr("model/archive_format", "pt2")
        package.writestr("model/data/aotinductor/model/x.wrapper_metadata.json", '{"AOTI_DEVICE_KEY": "cpu"}')
        package.writestr("model/data/aotinductor/model/x.wrapper.so", library)
    video = write_video(marker.with_name("v.avi"), numbered_frames(30))
    done = main_here("predict", folder, video)
    assert (done.code, "engine inductor is native code" in done.stderr, "--allow-code" in done.stderr) == (
        1,
        True,
        True,
    )
    assert not marker.exists()
    main_here("predict", "--allow-code", folder, video)
    assert marker.exists()


@pytest.mark.parametrize("where", ["../model.onnx", "/etc/hostname", "other.onnx", "model.onnx/../../model.onnx", ""])
def test_a_description_names_no_other_file(taken: Callable[[str], Path], tmp_path: Path, where: str) -> None:
    folder = described(taken("fp32-onnxruntime"), built__model_file=where)
    for copy in (tmp_path / "model.onnx", folder / "other.onnx"):
        shutil.copy(folder / "model.onnx", copy)
    with pytest.raises(QrayError, match=r"its model is called .*engine onnxruntime calls it model\.onnx"):
        load_artifact(folder)


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin"])
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_what_lies_elsewhere_or_is_no_file_is_not_opened(
    taken: Callable[[str], Path], tmp_path: Path, name: str, kind: str
) -> None:
    folder = taken("fp32-onnxruntime")
    shutil.copy(folder / "model.onnx", tmp_path / "elsewhere")
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(tmp_path / "elsewhere" if kind == "link" else "/dev/zero")
    with pytest.raises(QrayError, match=f"{name}: (a link out of the artifact's folder|not a file)"):
        load_artifact(folder)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "inside/secret"])
def test_weights_of_an_onnx_file_lie_in_its_folder(
    taken: Callable[[str], Path], tmp_path: Path, location: str, video: Path
) -> None:
    import onnx

    folder = taken("fp32-onnxruntime")
    model = onnx.load(str(folder / "model.onnx"))
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    length = len(weight.raw_data)
    (tmp_path / "secret").write_bytes(bytes(length))
    (folder / "inside").mkdir()
    (folder / "inside" / "secret").symlink_to(tmp_path / "secret")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    done = main_here("predict", folder, video)
    assert (done.code, "engine onnxruntime cannot load it" in done.stderr) == (1, True), done.stderr


def test_entities_of_an_openvino_file_are_not_expanded(
    taken: Callable[[str], Path], tmp_path: Path, video: Path
) -> None:
    """Were it expanded, the version would be a number and the file would load."""
    folder = taken("fp32-openvino")
    (tmp_path / "eleven").write_text("11", encoding="ascii")
    text = (folder / "model.xml").read_text(encoding="utf-8")
    assert ' version="11"' in text
    entity = f'<?xml version="1.0"?>\n<!DOCTYPE net [<!ENTITY v SYSTEM "file://{tmp_path}/eleven">]>\n'
    hostile = entity + text.partition("?>")[2].lstrip().replace(' version="11"', ' version="&v;"', 1)
    (folder / "model.xml").write_text(hostile, encoding="utf-8")
    done = main_here("predict", folder, video)
    assert (done.code, "engine openvino cannot load it" in done.stderr) == (1, True), done.stderr


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "v.avi", numbered_frames(30))


@pytest.mark.parametrize(
    "change",
    [
        {"built": []}, {"built__notes": "x"}, {"built__needs": 1}, {"built__model_file": None}, {"versions": [1]},
        {"clip__frames": 10**9}, {"clip__image_size": 10**8}, {"variant": None}, {"variant__name": "a|b"},
        {"built__int8_mac_share": "nan?"}, {"format": [2]},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_lies_is_refused_in_a_sentence(
    taken: Callable[[str], Path], change: dict[str, Any], video: Path
) -> None:
    folder = described(taken("fp32-onnxruntime"), **change)
    done = main_here("predict", folder, video)
    assert (done.code, str(folder) in done.stderr, "a fault of qray" in done.stderr) == (1, True, False), done.stderr


@pytest.mark.parametrize("what", ["deep", "pipe", "folder", "text", "nan"])
def test_a_description_that_is_none_is_refused_in_a_sentence(taken: Callable[[str], Path], what: str) -> None:
    folder = taken("fp32-onnxruntime")
    path = folder / "artifact.json"
    text = path.read_text(encoding="utf-8")
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.write_text({"deep": "[" * 200_000, "text": "{", "nan": text.replace("0.0", "NaN", 1)}[what], "utf-8")
    with pytest.raises(QrayError, match=r"artifact\.json"):
        load_artifact(folder)
