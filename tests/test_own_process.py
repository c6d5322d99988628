import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tvmq import board_worker
from tvmq.own_process import answer

ROOT = Path(__file__).parents[1]


def asked(**request):
    return json.loads(answer(json.dumps(request)))


def test_a_machine_tells_what_it_is():
    value = asked(do="machine")["value"]
    assert set(value) == {"architecture", "cpu", "features", "threads", "gpus", "tvm", "tvm_ffi", "tvmq"}


def test_errors_are_answers(tmp_path):
    (tmp_path / "m").write_text("no artifact")
    assert asked(do="verify", artifact=str(tmp_path / "m"))["error"]["kind"] == "ArtifactError"
    assert "'dance' is unknown" in asked(do="dance")["error"]["message"]


@pytest.mark.parametrize(
    ("code", "how"), [("os.kill(os.getpid(), 4)", "SIGILL"), ("sys.exit('why')", "exit code 1: why")]
)
def test_a_crash_is_an_answer(monkeypatch, tmp_path, code, how):
    (tmp_path / "crash").write_text(f"#!{sys.executable}\nimport os, sys\n{code}\n")
    (tmp_path / "crash").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "crash"))
    assert how in asked(do="machine")["crash"]


def test_a_program_that_does_not_end_is_ended(monkeypatch, tmp_path):
    (tmp_path / "endless").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    (tmp_path / "endless").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "endless"))
    assert asked(do="machine", limit=0.3) == {"crash": "no end within 0.3 s"}


def test_it_ends_though_whoever_asked_is_gone(monkeypatch, capsys):
    alarms = []
    monkeypatch.setattr(board_worker.signal, "alarm", alarms.append)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"do": "dance", "limit": 7.2}'))
    board_worker.main()
    assert alarms == [8 + board_worker.GRACE]
    assert "unknown" in capsys.readouterr().out


def test_paths_of_the_caller_lead_to_the_same_places(tmp_path):
    code = "from tvmq.own_process import PATHS; print(PATHS)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(["vendor", str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "vendor") in done.stdout


def test_the_folder_is_where_a_request_finds_its_files(tmp_path):
    (tmp_path / "m").write_text("no artifact")
    found = json.loads(answer(json.dumps({"do": "verify", "artifact": "m"}), str(tmp_path)))
    assert found["error"]["kind"] == "ArtifactError"


def test_ctrl_c_does_not_reach_the_process(monkeypatch, tmp_path):
    (tmp_path / "other").write_text(
        f"#!{sys.executable}\nimport os, sys\nsys.exit(str(os.getsid(0) == os.getpid()))\n"
    )
    (tmp_path / "other").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "other"))
    assert asked(do="machine")["crash"] == "exit code 1: True"
