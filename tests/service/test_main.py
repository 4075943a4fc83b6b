"""The command, as a process of its own where signals and exit codes matter."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn

from service.__main__ import Server, first_call
from service.app import create_app
from service.command_line import check_address, warn_of_unknown_variables
from tests.service.pictures import png, scene
from tests.service.server import read_until

ROOT = Path(__file__).parents[2]
SOON_S = 20.0


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command."""
    return subprocess.Popen(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(SOON_S)
    return connection


def read_log_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    for line in process.stderr:
        if found := re.search(pattern, line):
            return found
    raise AssertionError("the service ended")


def test_sigterm_answers_the_calls_under_way_and_exits_0(model_path):
    body = png(scene())
    head = (
        "POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    options = ("--engine", "onnxruntime", "--threads", "1", "--port", "0")
    with start("--model", str(model_path), *options) as process:
        port = int(read_log_until(process, r"running on http://127\.0\.0\.1:(\d+)")[1])
        with connect(port) as idle, connect(port) as busy:
            idle.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_until(idle, b'"ready"}').startswith(b"HTTP/1.1 200 ")
            busy.sendall(head.encode())
            go_on = read_until(busy, b"\r\n\r\n")  # the call is under way
            assert go_on.startswith(b"HTTP/1.1 100 ")
            process.send_signal(signal.SIGTERM)
            assert idle.recv(4096) == b""  # the shutdown has begun
            with pytest.raises(ConnectionRefusedError):
                connect(port)
            read_log_until(process, "Waiting for")  # what is under way may take its time
            busy.sendall(body)
            answer = read_until(busy, b"")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"embeddings":[[' in answer
        assert process.wait(SOON_S) == 0
        assert process.stdout.read() == ""


def test_a_bad_model_ends_the_process_with_3_and_one_line(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    process = start("--model", str(path), "--port", "0")
    stdout, stderr = process.communicate(timeout=SOON_S)
    assert process.returncode == 3
    assert stderr.startswith(f"model file {path} cannot be used: ")
    assert stderr.count("\n") == 1
    assert stdout == ""


def test_a_missing_model_is_3(run_main, capsys):
    assert run_main("--model", "nowhere.onnx") == 3
    assert capsys.readouterr().err.startswith("model file nowhere.onnx is not there")


def test_an_engine_that_cannot_be_had_is_3(run_main, capsys, model_path):
    arguments = ("--model", str(model_path), "--device", "cuda", "--engine", "openvino")
    assert run_main(*arguments) == 3
    assert "wants onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ESVIT_PORT", "eight", "setting port: "),
        ("ESVIT_PORT", "65536", "setting port: "),
        ("ESVIT_DEVICE", "tpu", "setting device: "),
        ("ESVIT_MAX_IMAGES", "0", "setting max_images: "),
        ("ESVIT_DEADLINE_S", "-1", "setting deadline_s: "),
        ("ESVIT_DEADLINE_S", "inf", "setting deadline_s: "),
        ("ESVIT_THREADS", "100000", "setting threads: "),
        ("ESVIT_IMAGE_FORMATS", "JPEG,EPS", "setting image_formats: "),
        ("ESVIT_CORS_ORIGINS", "https://a.example/", "setting cors_origins: expected origins"),
        ("ESVIT_CORS_ORIGINS", "a.example", "setting cors_origins: expected origins"),
        ("ESVIT_API_KEYS", "long-enough-to-be-one,too-short", "settings: api_keys, number 2: "),
        ("ESVIT_API_KEYS_FILE", "/nowhere/keys", "api_keys_file cannot be read"),
        ("ESVIT_URL_SCHEMES", "file", "setting url_schemes: "),
        ("ESVIT_URL_NETWORKS", "10.0.0.300", "setting url_networks"),
    ],
)
def test_a_bad_setting_is_2_and_named(run_main, monkeypatch, capsys, variable, value, words):
    monkeypatch.setenv(variable, value)
    assert run_main() == 2
    error = capsys.readouterr().err
    assert words in error
    assert "too-short" not in error
    assert error.count("\n") == 1


def test_a_bad_key_of_a_file_is_2_and_its_line_is_named(run_main, tmp_path, capsys):
    path = tmp_path / "keys.txt"
    path.write_text("  # these are ours, not theirs\n\n long-enough-to-be-one\ntoo-short\n")
    assert run_main("--api-keys-file", str(path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("settings: api_keys_file, line 4: ")
    assert "too-short" not in error


def test_a_port_that_is_taken_is_2_before_the_model_is_looked_at(run_main, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert run_main("--model", "nowhere.onnx", "--port", str(port)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"settings host, port: 127.0.0.1:{port} cannot be listened on: ")
    assert "ESVIT_PORT" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("host", ["192.0.2.1", "not..a.host", "nowhere.invalid"])
def test_a_host_that_is_not_here_is_2(run_main, capsys, host):
    assert run_main("--model", "nowhere.onnx", "--host", host, "--port", "0") == 2
    error = capsys.readouterr().err
    assert host in error
    assert error.count("\n") == 1


def test_every_address_of_a_host_can_be_listened_on():
    for host in ("localhost", "0.0.0.0", "127.0.0.1"):  # not for long
        check_address(host, 0)


def test_a_variable_that_is_no_setting_is_told_of(monkeypatch, caplog):
    monkeypatch.setenv("ESVIT_MAX_IMAGE", "3")
    monkeypatch.setenv("ESVIT_MAX_IMAGES", "3")
    warn_of_unknown_variables()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "the environment variable ESVIT_MAX_IMAGE is no setting of the service; "
        "is ESVIT_MAX_IMAGES meant?"
    )


@pytest.mark.parametrize("argument", ["--nonsense", "--max-image"])
def test_an_unknown_argument_is_2(run_main, capsys, argument):
    with pytest.raises(SystemExit) as caught:
        run_main(argument)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert argument in error
    assert error.count("\n") == 2


def test_the_first_call_can_be_typed(monkeypatch, tmp_path):
    call = "curl -F file=@service/photographs/cat.jpg http://127.0.0.1:8001/embed"
    assert first_call(8001, asks_for_key=False) == call
    monkeypatch.chdir(tmp_path)
    call = "curl -H 'Authorization: Bearer KEY' -F file=@picture.jpg http://127.0.0.1:80/embed"
    assert first_call(80, asks_for_key=True) == call


def test_help_is_for_people(run_main, capsys):
    with pytest.raises(SystemExit) as caught:
        run_main("--help")
    assert caught.value.code == 0
    help = capsys.readouterr().out
    assert help.startswith("usage: python -m service [--SETTING VALUE ...]\n")
    assert "ESVIT_MAX_IMAGES=16" in help
    assert "--max-images int" in help


def test_a_signal_makes_the_service_not_ready_and_is_not_raised_again(settings):
    app = create_app(settings)
    server = Server(uvicorn.Config(app))
    server.handle_exit(signal.SIGTERM, None)
    assert app.state.pipeline.is_draining
    assert server.should_exit
    assert not server._captured_signals
