"""How the command ends: signals, closed pipes, and messages with whatever is in them."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from time import sleep

import pytest

from experiments.questions import stripes
from experiments.setup import terminal
from zfnet import InputError

RUN = Path(__file__).resolve().parent.parent / "experiments" / "run.py"


@pytest.fixture
def signals():
    """The handlers that Python begins with, whatever the suite was started by; afterwards they are as they were."""
    begun = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in begun.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_order(number, status, run, monkeypatch, signals, tmp_path):
    terminal.understand(terminal.stop)
    monkeypatch.setattr(stripes, "two_filters", lambda kernel: os.kill(os.getpid(), number))
    assert run("experiment=stripes") == (status, ["run.py: interrupted; the same command resumes from what was saved"])
    assert not list(tmp_path.rglob("*.*"))


def test_a_signal_that_comes_in_a_destructor_is_not_lost(run, monkeypatch, signals):
    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(10))  # where Python calls the handler

    def draw(kernel):
        Dying()
        sleep(3)

    terminal.understand(terminal.stop)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(stripes, "two_filters", draw)
    with terminal.attended():
        told = run("experiment=stripes")
    assert told[0] == 130


def test_a_warning_is_one_line(monkeypatch, signals):
    with terminal.attended():
        assert warnings.formatwarning("two\nlines", UserWarning, "file.py", 3) == "run.py: two\\nlines\n"
    assert "file.py" in warnings.formatwarning("two\nlines", UserWarning, "file.py", 3)


def test_what_is_ignored_stays_so(signals):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminal.understand(terminal.stop)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN and signal.getsignal(signal.SIGTERM) == terminal.stop


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_imports(number, status, signals, tmp_path):
    (tmp_path / "hydra.py").write_text(f"import os\n\nos.kill(os.getpid(), {int(number)})\n")  # the first of them
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, RUN, "--help"], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (status, "run.py: interrupted\n")


def test_a_reader_that_has_gone(tmp_path):
    """As `run.py ... | head -1`: what was read stays, the results are written, and nothing else is said."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, RUN, "experiment=stripes", "out=here"]
    with open(writing, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "here" / "result.json").exists()


def test_output_that_cannot_be_written():
    with open("/dev/full", "wb", buffering=0) as full:
        pipe = terminal.Pipe(full.fileno(), "wb", closefd=False)
        with pytest.raises(InputError, match="cannot write what is printed: No space left"):
            pipe.write(b"some")
        assert pipe.write(b"more") == 4  # said once


def ended(error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as end, terminal.in_one_line():
        raise error
    return end.value.code, capsys.readouterr().err


def test_a_message_is_one_line_whatever_is_in_it(capsys):
    assert ended(InputError("a\nb\x1b[31m\udcff ü"), capsys) == (2, "run.py: a\\nb\\x1b[31m\\udcff ü\n")
    status, said = ended(InputError("x" * 10**5 + " the end"), capsys)
    assert status == 2 and len(said) < 1300 and said.endswith(" the end\n")


def test_the_command_line_has_its_own_spelling(capsys):
    assert ended(InputError("pass fresh=True"), capsys) == (2, "run.py: pass fresh=true\n")


def test_too_little_memory_is_a_mistake_of_the_settings(capsys):
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    assert ended(error, capsys) == (2, "run.py: not enough memory; give a smaller batch_size, or smaller images\n")
    status, said = ended(RuntimeError("a fault"), capsys)
    assert status == 1 and said.startswith("Traceback")


def test_a_current_folder_that_was_deleted(tmp_path):
    script = f"import os, runpy; os.rmdir(os.getcwd()); runpy.run_path({str(RUN)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "run.py: the current folder was deleted; change to another\n")


def test_a_notebooks_backend_is_not_needed(tmp_path):
    environment = os.environ | {"MPLBACKEND": "module://nowhere.backend"}
    words = [sys.executable, RUN, "experiment=stripes"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
