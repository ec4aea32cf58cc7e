"""Output folders: damaged pieces, two processes, links, Ctrl-C, a disk that is full."""

import errno
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from test_cli import assert_in_words, cli

import jaxunlearn
from jaxunlearn.cli import main
from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.folder import Kind, OutputFolder
from jaxunlearn.cli.images import FinishedBatches
from jaxunlearn.cli.interruptions import interruptions
from jaxunlearn.cli.places import Lock, disk_problem
from jaxunlearn.cli.sweep import SWEEP

ROOT = Path(jaxunlearn.__file__).parents[1]
WORK = Kind(
    name="work",
    settings=("request.json",),
    complete=("done.json",),
    written=("*.json", "*.bin"),
    beside=True,
)


def folder(place, kind=WORK, **options):
    return OutputFolder(place, {"seed": 0}, kind=kind, resume=True, **options)


def pieces(place, made):
    """Two pieces, the second with two files; `made` hears of each that is made."""
    with folder(place) as out:

        def one():
            made.append("one")
            return {"value": 0.1, "missing": float("nan")}

        def two():
            made.append("two")
            out.write("two.bin", lambda path: path.write_bytes(b"two"))
            out.write("more/two.bin", lambda path: path.write_bytes(b"more"))
            return [2, (3, None)]

        return [out.piece("pieces/one.json", one), out.piece("pieces/two.json", two)]


def test_pieces_are_made_once(tmp_path):
    made = []
    first = pieces(tmp_path / "a", made)
    assert first == [{"value": 0.1, "missing": None}, [2, [3, None]]]
    assert pieces(tmp_path / "a", made) == first
    assert made == ["one", "two"]


def flip(path):
    """One bit of the byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
@pytest.mark.parametrize("file", ["two.bin", "more/two.bin", "pieces/two.json"])
def test_a_damaged_piece_is_made_again_and_that_is_said(tmp_path, caplog, damage, file):
    made = []
    first = pieces(tmp_path / "a", made)
    damage(tmp_path / "a.partial" / file)
    assert pieces(tmp_path / "a", made) == first
    assert made == ["one", "two", "two"]
    there = (tmp_path / "a.partial" / file).exists()
    assert there
    if damage is not Path.unlink or not file.startswith("pieces"):
        said = f"{file} in {tmp_path}/a.partial is damaged or missing: it is made again"
        assert said in caplog.text
    caplog.clear()
    assert pieces(tmp_path / "a", made) == first
    assert not caplog.text


def test_every_byte_of_a_record_counts(tmp_path):
    pieces(tmp_path / "a", [])
    path = tmp_path / "a.partial" / "pieces" / "one.json"
    content = path.read_bytes()
    for place in range(len(content) - 1):  # but for the line break at its end
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        stored = folder(tmp_path / "a").intact("pieces/one.json")
        # A blank that became another one changes nothing that is read.
        assert stored is None or stored["record"]["value"] == 0.1


def test_a_damaged_batch_is_drawn_again(tmp_path, caplog):
    images = [np.full((2, 4, 4, 1), n, np.float32) for n in range(3)]
    with folder(tmp_path / "a") as out:
        batches = FinishedBatches(out)
        for batch in images:
            batches.append(batch)
        assert len(FinishedBatches(out)) == 3
        flip(out.work / "batches" / "1.npy")
        left = FinishedBatches(out)
        assert len(left) == 1
        assert "batches/1.npy" in caplog.text
        for batch in images[1:]:
            left.append(batch)
        np.testing.assert_array_equal(list(FinishedBatches(out)), images)


HOLDER = """
import sys, time
from pathlib import Path
from jaxunlearn.cli.places import Lock
with Lock(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds an output."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "a")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


@pytest.mark.long
def test_a_second_process_leaves_at_once_and_writes_nothing(
    tmp_path, holder, monkeypatch, capsys
):
    before = sorted(tmp_path.iterdir())
    who = f"Process {holder.pid} on {socket.gethostname()} is writing {tmp_path}/a: "
    for command in ("train", "run", "sweep"):
        assert cli(command, "--out", tmp_path / "a") == 2
        assert_in_words(f"{who}wait for it, or choose", capsys.readouterr().err)
    with pytest.raises(ValueError, match="is writing"):
        Lock(tmp_path / "a").acquire()
    assert sorted(tmp_path.iterdir()) == before
    # The claim of a killed process is stale, and goes with the next that ends.
    holder.kill()
    holder.wait()
    assert (tmp_path / ".a.lock").is_file()
    with folder(tmp_path / "a"):
        owner = json.loads((tmp_path / ".a.lock").read_text())
        assert owner == [socket.gethostname(), os.getpid()]
    assert not (tmp_path / ".a.lock").exists()


@pytest.mark.parametrize(
    ("owner", "refused"),
    [
        ([socket.gethostname(), os.getppid()], True),
        ([socket.gethostname(), 2**22 + 1], False),
        (["another-machine", 1], True),
        ("torn", False),
    ],
)
def test_without_locks_of_the_system_the_process_number_counts(
    tmp_path, monkeypatch, owner, refused
):
    def lockf(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("jaxunlearn.locking.fcntl.lockf", lockf)
    (tmp_path / ".a.lock").write_text(json.dumps(owner))
    if refused:
        with pytest.raises(ValueError, match=r"If there is no such process, remove .*"):
            folder(tmp_path / "a")
        assert json.loads((tmp_path / ".a.lock").read_text()) == owner
    else:
        with folder(tmp_path / "a"):
            pass
        assert not (tmp_path / ".a.lock").exists()


def test_a_lock_goes_with_whatever_ends_the_work(tmp_path):
    there = []

    def work(error):
        with folder(tmp_path / "a"):
            there.append((tmp_path / ".a.lock").exists())
            raise error

    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            work(error)
        assert there.pop()
        assert not (tmp_path / ".a.lock").exists()


def swept(place, text, **options):
    with OutputFolder(place, {"seed": 0}, kind=SWEEP, **options) as out:
        out.write_json("sweep.json", text)
        out.finish()


@pytest.mark.parametrize("at", [1, 2])
def test_a_sweep_killed_between_its_renames_is_recovered(
    tmp_path, monkeypatch, capsys, at
):
    swept(tmp_path / "a", "old")
    rename, count = Path.rename, []

    def killed(self, target):
        count.append(self)
        if len(count) == at:
            raise KeyboardInterrupt
        return rename(self, target)

    new = OutputFolder(tmp_path / "a", {"seed": 0}, kind=SWEEP, overwrite=True)
    new.__enter__()
    new.write_json("sweep.json", "new")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            new.finish()
    # Nobody leaves the `with` statement after a kill.
    with pytest.raises(ValueError, match="already holds a sweep"):
        OutputFolder(tmp_path / "a", {"seed": 0}, kind=SWEEP)
    assert json.loads((tmp_path / "a" / "sweep.json").read_text()) == "old"
    again = OutputFolder(tmp_path / "a", {"seed": 0}, kind=SWEEP, overwrite=True)
    assert again.is_done(consoles()[0])
    said = f"The sweep in {tmp_path}/a is finished: there is nothing to do.\n"
    assert capsys.readouterr().out == said
    assert json.loads((tmp_path / "a" / "sweep.json").read_text()) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_rest_of_an_earlier_replacement_is_cleaned_up(tmp_path):
    swept(tmp_path / "a", "new")
    (tmp_path / ".a.replaced").mkdir()
    with pytest.raises(ValueError, match="already holds a sweep"):
        OutputFolder(tmp_path / "a", {"seed": 0}, kind=SWEEP)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_to_a_sweep_is_replaced_and_no_other_left(tmp_path):
    swept(tmp_path / "elsewhere", "old")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    swept(tmp_path / "a", "new", overwrite=True)
    assert json.loads((tmp_path / "a" / "sweep.json").read_text()) == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "elsewhere"]


def test_places_without_a_name_are_told_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\. is there and is no work"):
        folder(Path("."))
    with pytest.raises(OSError, match="it is the root of the file system"):
        folder(Path("/"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "run", "sweep"])
def test_places_where_nothing_can_be_are_refused_before_any_data(
    tmp_path, monkeypatch, capsys, command
):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.iterdir())
    for name, words in {
        "dangling": "it is a link to .*nowhere, which leads nowhere",
        "dangling/a": "it is a link to .*nowhere, which leads nowhere",
        "circle": "it is a link to .*circle, which leads nowhere",
        "file/a": "file is a file",
        "x" * 300: "File name too long",
    }.items():
        monkeypatch.setattr("jaxunlearn.training.fit", pytest.fail)
        assert cli(command, "--out", tmp_path / name) == 2
        said = capsys.readouterr().err
        assert_in_words(f"cannot be made .*{words}.*another place with --out", said)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_said_in_a_sentence(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "x.npy")

    for resume, rest in (
        (True, "What is done lies in"),
        (False, "Nothing was written"),
    ):
        with (
            pytest.raises(OSError, match=f"^The disk is full, .* {rest}"),
            OutputFolder(tmp_path / "a", {}, kind=WORK, resume=resume) as out,
        ):
            out.write("x.npy", full)
    with pytest.raises(OSError, match="other"), folder(tmp_path / "a", overwrite=True):
        raise OSError("other")
    monkeypatch.setattr("jaxunlearn.cli.saved.read_card", full)
    assert main(["evaluate", "--checkpoint", "a.safetensors"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxunlearn: The disk is full, or a quota")
    assert said.count("\n") == 1


def test_a_full_disk_is_recognised_in_what_others_say():
    inner = ValueError("RESOURCE_EXHAUSTED: No space left on device")
    outer = RuntimeError("orbax")
    outer.__cause__ = inner
    assert disk_problem(outer)
    assert disk_problem(OSError("64 requested and 12 written"))
    assert disk_problem(OSError(errno.EDQUOT, "quota"))
    assert disk_problem(OSError(errno.ENOENT, "No such file")) is None
    assert disk_problem(ValueError("what was requested and what was given")) is None
    assert disk_problem(None) is None


@pytest.mark.long
def test_a_limit_of_file_sizes_is_a_full_disk(tmp_path):
    """A real one: written with `ulimit -f`."""
    done = subprocess.run(
        f"ulimit -f 2; {sys.executable} -m jaxunlearn train --out {tmp_path}/a "
        "--options width=4 --recipe.epochs 1",
        shell=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("jaxunlearn: The disk is full, or a quota or limit")
    assert "Traceback" not in done.stderr


def press():
    os.kill(os.getpid(), signal.SIGINT)


def wait(seconds=5.0):
    """Until something is raised here."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


def heard(act):
    """What is interrupted for five seconds at most."""
    with interruptions():
        act()
        wait()


def test_an_interruption_is_not_lost_where_python_swallows_it():
    """In callbacks of the garbage collector and of weak references."""

    class Thing:
        pass

    def collecting():
        gc.callbacks.append(collected)
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(collected)

    def collected(phase, info):
        if phase == "start":
            press()

    def dropping():
        thing = Thing()
        reference = weakref.ref(thing, lambda _: press())
        del thing
        assert reference() is None

    for act in (collecting, dropping):
        with pytest.raises(KeyboardInterrupt):
            heard(act)
    # And none comes after.
    wait(0.2)


def test_elsewhere_an_interruption_comes_at_once_and_the_old_handler_is_back():
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    done = []

    def act():
        press()
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        heard(act)
    assert not done
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before
    # A command in a thread of a notebook leaves the handlers alone.
    inside = []

    def work():
        with interruptions():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before[0]]


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.4, 1.0, 2.0, 4.0, 7.0])
def test_ctrl_c_at_any_time_is_one_sentence_and_130(tmp_path, seconds):
    flags = ("--options", "width=4", "--recipe.epochs", "50", "--out", tmp_path / "a")
    child = subprocess.Popen(
        [sys.executable, "-m", "jaxunlearn", "train", *map(str, flags)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    child.send_signal(signal.SIGINT)
    printed, said = child.communicate(timeout=120)
    assert child.returncode == 130
    assert printed == ""
    assert said.count("jaxunlearn: interrupted.") == 1
    assert "Traceback" not in said
    assert "ignored" not in said
    assert not list(tmp_path.glob(".*"))


@pytest.mark.long
@pytest.mark.parametrize("platform", ["foo", "cuda"])
def test_a_platform_that_is_not_there_is_named(tmp_path, platform):
    if platform == "cuda" and Path("/proc/driver/nvidia").exists():
        pytest.skip("there is one")
    done = subprocess.run(
        [sys.executable, "-m", "jaxunlearn", "train", "--out", str(tmp_path / "a")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"jaxunlearn: JAX cannot start on the platform '{platform}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())
