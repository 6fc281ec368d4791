"""What `qray submit` sends, what it refuses to send, and what the job says where the cluster lacks something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.imports import FRAMES, SIZE, TheirFrameNetwork, make_set
from support.runs import main_here

from qray import cli
from qray.errors import QrayError, UsageError
from qray.jobs import on_head
from qray.jobs.submit import Request, stage, submit

QUICK = Request("quickstart", None, None, ())
MOST_BYTES = 10 * 2**20


@pytest.fixture
def big_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with 600 MB of data, a past run, an environment and a study."""
    folder = tmp_path / "work"
    for name in ("data/big.avi", "runs/a/results.parquet", ".venv/lib/x.py", ".git/pack", "mine.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    os.truncate(folder / "data" / "big.avi", 620 * 2**20)
    (folder / "mine.yaml").write_text("name: mine\nvariants:\n  - {name: fp32, method: fp32, engine: eager}\n")
    monkeypatch.chdir(folder)
    return folder


def sent(request: Request, folder: Path) -> list[Path]:
    """The files that a job is sent, by their path in its folder."""
    folder.mkdir()
    stage(request, request.check(), folder)
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def test_qray_and_the_study_are_sent_and_nothing_else(big_folder: Path, tmp_path: Path) -> None:
    files = sent(Request("mine.yaml", Path("/data/x"), None, ()), tmp_path / "sent")
    assert {file.parts[0] for file in files} == {"qray", "study", "requirements.txt"}
    assert Path("study/mine.yaml") in files
    assert sum((tmp_path / "sent" / file).stat().st_size for file in files) < MOST_BYTES


def test_what_is_sent_runs_where_qray_is_not_installed(tmp_path: Path) -> None:
    sent(QUICK, tmp_path / "sent")
    code = "import qray; print(qray.__file__); from qray.study_files import named_studies; print(named_studies())"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "sent", env=environment, capture_output=True,
                          text=True, check=True)  # fmt: skip
    where, names = done.stdout.splitlines()
    assert (where, "'quickstart'" in names) == (str(tmp_path / "sent" / "qray" / "__init__.py"), True)


def test_the_studys_file_is_named_by_the_job_where_it_was_sent_to(big_folder: Path) -> None:
    assert Request("mine.yaml", Path("/d"), Path("/o"), ("seed=1",), ("--fresh",)).arguments() == [
        "run", "all", "--data", "/d", "--out", "/o", "--set", "seed=1", "--fresh"
    ]  # fmt: skip
    assert QUICK.arguments() == ["run", "all", "--study", "quickstart"]


@pytest.mark.parametrize(
    "request_", [Request("quickstart", Path("data/echo"), None, ()), Request("quickstart", None, None, ("data.dir=d",))]
)
def test_data_by_a_relative_path_is_a_sentence(request_: Request) -> None:
    with pytest.raises(UsageError, match="give the absolute path under which every node sees it"):
        request_.check()


def test_data_and_out_may_be_uris() -> None:
    request = Request("quickstart", "s3://lab/set", "s3://lab/out", ())
    assert request.check().data.dir is None
    assert request.arguments()[-4:] == ["--data", "s3://lab/set", "--out", "s3://lab/out"]


def test_a_bad_study_is_found_before_anything_is_sent(big_folder: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        submit("http://127.0.0.1:9", Request("other.yaml", None, None, ()))


def test_no_cluster_is_a_sentence_that_says_what_prints_its_address() -> None:
    with pytest.raises(QrayError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9 .*refused"):
        submit("127.0.0.1:9", QUICK)


def run_job(folder: Path, home: Path, *arguments: str, requirements: str | None = None) -> tuple[int, str]:
    """The job's own command in the folder that was sent, on a head whose HOME is `home`: (exit code, output)."""
    sent(QUICK, folder)
    if requirements is not None:
        (folder / on_head.REQUIREMENTS).write_text(requirements, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(home)}
    command = [sys.executable, "-m", "qray.jobs.on_head", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_head_that_lacks_packages_says_which_and_how_to_get_them(tmp_path: Path) -> None:
    code, text = run_job(tmp_path / "sent", tmp_path, "--version", requirements="numpy>=2\nno-such-thing[x]==1.2\n")
    assert code == 1
    assert f"{sys.executable} -m pip install 'no-such-thing[x]==1.2'" in text
    assert "numpy" not in text
    assert "Traceback" not in text


def test_a_head_that_lacks_nothing_runs_qray(tmp_path: Path) -> None:
    assert run_job(tmp_path / "sent", tmp_path, "--version")[0] == 0


def test_an_old_python_is_told_which_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_head, "PYTHON", (99, 0))
    assert "qray needs 99.0 or newer" in (on_head.fault(tmp_path) or "")


def test_the_jobs_folder_outlives_the_job(tmp_path: Path) -> None:
    code, text = run_job(tmp_path / "sent", tmp_path / "home", "data", "check", "nowhere")
    assert (code, (tmp_path / "home" / "qray-jobs").is_dir()) == (1, True)
    assert "nowhere" in text


def test_an_imported_model_is_sent_and_named_by_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its folder what is the model, and nothing else that lies there."""
    torch.manual_seed(0)
    program = torch.export.export(TheirFrameNetwork().eval(), (torch.zeros(2, 3, SIZE, SIZE),),
                                  dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))  # fmt: skip
    torch.export.save(program, tmp_path / "their.pt2")
    folder = tmp_path / "models" / "their network"
    done = main_here("import", tmp_path / "their.pt2", "--layout", "frames", "--data", make_set(tmp_path / "set"),
                     "--frames", FRAMES, "--size", SIZE, "--no-engines", "--out", folder)  # fmt: skip
    assert done.code == 0, done.stderr
    (folder / "notes.txt").touch()
    files = sent(Request("imported", Path("/data"), None, (), model=folder), tmp_path / "sent")
    model = {file.name for file in files if file.parts[0] == on_head.MODEL_FOLDER}
    assert model == {"model.yaml", "weights.safetensors", "network.pt2"}
    asked: list[str] = []
    monkeypatch.setattr(cli, "main", lambda: asked.extend(sys.argv))
    monkeypatch.setattr(on_head, "FOLDER", tmp_path / "home")
    monkeypatch.setattr(sys, "argv", ["qray.jobs.on_head", "run", "all", "--study", "imported"])
    monkeypatch.chdir(tmp_path / "sent")
    on_head.main()
    assert asked == ["qray", "run", "all", "--study", "imported", "--model", str(tmp_path / "sent" / "model")]
