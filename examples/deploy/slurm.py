"""A cluster on Slurm: the scheduler in this process, every worker a job of its own.

    aegis certs make certs --host $(hostname)
    python examples/deploy/slurm.py --certs certs --workers 8 --partition compute

Directory and environment must be the same on all nodes (a shared file system). It needs
``pip install dask-jobqueue``. ``--print`` shows the job script and submits nothing. In another
terminal: ``aegis run GRAPH --text TEXT --scheduler ADDRESS --tls certs --timeout 3600``, which
waits for the first worker.
"""

import argparse
import socket
import threading
from urllib.parse import urlsplit

import dask.config
from dask_jobqueue import SLURMCluster

from aegis_dask.runtime.adaptive import AdaptiveWorkers
from aegis_dask.runtime.security import load_security
from aegis_dask.runtime.settings import CONFIG


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--certs", required=True, help="directory of aegis certs make")
    parser.add_argument("--workers", type=int, default=1, help="number of jobs")
    parser.add_argument("--least", type=int, help="number of jobs while no run is under way")
    parser.add_argument("--cores", type=int, default=16, help="of each job")
    parser.add_argument("--memory", default="64GB", help="of each job")
    parser.add_argument("--walltime", default="04:00:00", help="of each job")
    parser.add_argument("--partition", help="Slurm's partition")
    parser.add_argument("--account", help="Slurm's account")
    parser.add_argument("--gpus", type=int, default=0, help="of each job: 0 or 1")
    parser.add_argument("--listen", default=socket.gethostname(), help="name or address of here")
    parser.add_argument("--print", action="store_true", help="only show the job script")
    return parser.parse_args(arguments)


def make_cluster(options: argparse.Namespace) -> SLURMCluster:
    """Start the scheduler; no job yet."""
    gpu = options.gpus > 0
    return SLURMCluster(
        cores=options.cores,
        processes=1,  # kernels have threads of their own
        memory=options.memory,
        walltime=options.walltime,
        queue=options.partition,
        account=options.account,
        job_extra_directives=[f"--gres=gpu:{options.gpus}"] if gpu else [],
        job_script_prologue=["export DASK_AEGIS__BACKEND=cuda"] if gpu else [],
        security=load_security(options.certs),
        protocol="tls://",
        scheduler_options={
            "host": options.listen,
            "dashboard_address": "127.0.0.1:0",  # it knows no passwords: use a tunnel of ssh
        },
        worker_extra_args=[
            *("--preload", "aegis_dask.runtime.preload"),
            *("--dashboard-address", "127.0.0.1:0"),
        ],
    )


def address_of(cluster: SLURMCluster, host: str) -> str:
    """Return the scheduler's address by the name that was given: certificates are for names."""
    port = urlsplit(cluster.scheduler_address).port
    return f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}"


def main() -> None:
    options = parse()
    dask.config.set(CONFIG)  # the scheduler is in this process
    with make_cluster(options) as cluster:
        if options.print:
            print(cluster.job_script())
            return
        if options.least is None:
            cluster.scale(jobs=options.workers)
        else:
            cluster.adapt(Adaptive=AdaptiveWorkers, minimum=options.least, maximum=options.workers)
        address = address_of(cluster, options.listen)
        print(f"scheduler: {address}, dashboard: {cluster.dashboard_link}")
        print("Ctrl-C ends the cluster and its jobs.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("Ending the jobs.")


if __name__ == "__main__":
    main()
