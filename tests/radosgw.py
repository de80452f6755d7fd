"""Ceph's S3 server, which checks signatures as AWS does: a whole cluster in memory, on loopback, without privileges."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from object_store import ObjectStore, connect

_SECONDS = 60  # that any step may take; all of them take two on a desk
_ACCESS_KEY_ID = "RADOSGWEXAMPLE"
_SECRET_ACCESS_KEY = "radosgw/checks+this=secret"
_CLUSTER = "00000000-0000-4000-8000-000000000001"
_OSD = "00000000-0000-4000-8000-000000000002"
_CONF = """\
[global]
fsid = {cluster}
auth_client_required = none
auth_cluster_required = none
auth_service_required = none
ms_mon_client_mode = crc
ms_bind_msgr1 = false
public_addr = 127.0.0.1
mon_host = {monitor}
mon_data = {folder}/mon
mon_data_avail_crit = 0
mon_cluster_log_file =
mon_allow_pool_size_one = true
osd_data = {folder}/osd
osd_objectstore = memstore
osd_pool_default_size = 1
osd_pool_default_pg_num = 1
osd_crush_chooseleaf_type = 0
rgw_data = {folder}
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_thread_pool_size = 16
admin_socket =
run_dir = {folder}
log_file =
# By default a change of the cluster's map waits a second for others, and the start is a dozen changes.
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
"""


@contextmanager
def radosgw() -> Iterator[ObjectStore]:
    """Run a monitor, a store in memory and radosgw; errors of theirs go to stderr."""
    with TemporaryDirectory(prefix="radosgw-") as name, ExitStack() as daemons:
        folder = Path(name)
        mon_port, rgw_port = _free_ports(2)
        conf = folder / "ceph.conf"
        monitor = f"v2:127.0.0.1:{mon_port}"
        conf.write_text(_CONF.format(cluster=_CLUSTER, folder=folder, monitor=monitor, port=rgw_port))
        environment = {**os.environ, "CEPH_CONF": str(conf)}
        for data in ("mon", "osd"):
            (folder / data).mkdir()
        monmap = str(folder / "monmap")
        _run(environment, "monmaptool", "--create", "--fsid", _CLUSTER, "--addv", "a", f"[{monitor}]", monmap)
        _run(environment, "ceph-mon", "--id", "a", "--mkfs", "--monmap", monmap)
        daemons.enter_context(_daemon(environment, "ceph-mon", "--id", "a"))
        _run(environment, "ceph", "osd", "new", _OSD)
        _run(environment, "ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", _OSD)
        daemons.enter_context(_daemon(environment, "ceph-osd", "--id", "0"))
        keys = ("--access-key", _ACCESS_KEY_ID, "--secret-key", _SECRET_ACCESS_KEY)
        _run(environment, "radosgw-admin", "user", "create", "--uid", "tester", "--display-name", "Tester", *keys)
        gateway = daemons.enter_context(_daemon(environment, "radosgw", "--name", "client.admin"))
        _wait_until_it_listens(gateway, rgw_port)
        store = connect(f"http://127.0.0.1:{rgw_port}", _ACCESS_KEY_ID, _SECRET_ACCESS_KEY)
        daemons.callback(store.s3.close)
        yield store


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now: Ceph's daemons cannot choose and tell."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _run(environment: Mapping[str, str], *command: str) -> None:
    nothing = subprocess.DEVNULL
    subprocess.run(command, env=environment, check=True, timeout=_SECONDS, stdin=nothing, stdout=nothing)


@contextmanager
def _daemon(environment: Mapping[str, str], *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon that ends with the block, and with this process however it ends."""
    bound = ("setpriv", "--pdeathsig", "KILL", *command, "--foreground")
    with subprocess.Popen(bound, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=_SECONDS).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
