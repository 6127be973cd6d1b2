"""Real servers on loopback for one test: nginx, vsftpd, tftpd-hpa."""

import os
import random
import socket
import subprocess
import time
from contextlib import contextmanager, suppress

NGINX = """
daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;
events {{}}
http {{
  access_log {dir}/access.log; client_body_temp_path {dir}/t; proxy_temp_path {dir}/t;
  fastcgi_temp_path {dir}/t; uwsgi_temp_path {dir}/t; scgi_temp_path {dir}/t;
  server {{
    listen 127.0.0.1:{port}{tls};
    root {root};
    location /plain/ {{ alias {root}/; max_ranges 0; }}
    location /moved/ {{ return 302 /again/; }}
    location = /there {{ return 302 /disk.raw; }}
    location = /loop {{ return 302 /loop; }}
    location = /busy {{ return 503; }}
    location /secret/ {{ alias {root}/; auth_basic x; auth_basic_user_file {dir}/users; }}
  }}
}}
"""

VSFTPD = """
listen=YES
listen_address=127.0.0.1
listen_port={port}
background=NO
anonymous_enable=YES
no_anon_password=YES
anon_root={root}
ftp_username={user}
secure_chroot_dir={empty}
run_as_launching_user={unprivileged}
pasv_address=127.0.0.1
seccomp_sandbox=NO
xferlog_enable=NO
"""

VSFTPD_TLS = """
ssl_enable=YES
allow_anon_ssl=YES
force_anon_data_ssl=YES
force_anon_logins_ssl=YES
require_ssl_reuse=YES
implicit_ssl={implicit}
rsa_cert_file={cert}
rsa_private_key_file={key}
"""


def free_port(kind=socket.SOCK_STREAM):
    """Return a port that nobody is given meanwhile: the kernel chooses from 32768 on.

    Other workers of this run look elsewhere.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = list(range(20_000 + worker, 32_000, workers))
    random.shuffle(ports)
    for port in ports:
        with socket.socket(socket.AF_INET, kind) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def certificate(directory):
    """Return (certificate, key) for localhost, made by openssl."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
            "-keyout", key, "-out", cert,
        ],
        check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    return cert, key


@contextmanager
def nginx(root, directory, *, tls=None, port=0):
    port = port or free_port()
    directory.mkdir(exist_ok=True)
    hashed = subprocess.run(
        ["openssl", "passwd", "-1", "word"], check=True, capture_output=True, text=True
    ).stdout
    (directory / "users").write_text(f"user:{hashed}")
    extra = f" ssl; ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]}" if tls else ""
    path = directory / "nginx.conf"
    path.write_text(NGINX.format(dir=directory, port=port, root=root, tls=extra))
    with running(["nginx", "-p", directory, "-c", path, "-e", directory / "error.log"], port):
        yield port


@contextmanager
def vsftpd(root, directory, *, tls=None, implicit=False):
    port = free_port()
    directory.mkdir(exist_ok=True)
    (directory / "empty").mkdir(exist_ok=True)
    text = VSFTPD.format(
        port=port, root=root, empty=directory / "empty", unprivileged="NO", user="daemon"
    )
    if tls:
        choice = "YES" if implicit else "NO"
        text += VSFTPD_TLS.format(cert=tls[0], key=tls[1], implicit=choice)
    path = directory / "vsftpd.conf"
    path.write_text(text)
    with running(["vsftpd", path], port):
        yield port


@contextmanager
def tftpd(root):
    port = free_port(socket.SOCK_DGRAM)
    command = ["in.tftpd", "--foreground", "--address", f"127.0.0.1:{port}", "--secure", root]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: port in udp_ports() or process.poll() is not None)
        assert process.poll() is None, "in.tftpd ended at once"
        yield port
    finally:
        end(process)


def udp_ports():
    with open("/proc/net/udp") as table:
        return {int(line.split()[1].split(":")[1], 16) for line in list(table)[1:]}


@contextmanager
def running(command, port):
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, f"{command[0]} ended at once"
        yield process
    finally:
        end(process)


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_until(true, seconds=120):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)


def end(process):
    """Kill the server and the children it has for connections."""
    for child in children(process.pid):
        with suppress(ProcessLookupError):  # its connection may end just now
            os.kill(child, 9)
    process.kill()
    process.wait()


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:  # it ended by itself
        return []
