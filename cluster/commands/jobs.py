"""`maetrain jobs`: what runs on a cluster, its logs, and its end."""

import sys

import click

from cluster.arguments import JOB_SERVER, examples


@click.group()
def jobs() -> None:
    """Look after jobs that `maetrain submit` has started."""


@jobs.command("list", epilog=examples("maetrain jobs list --address http://head:8265"))
@JOB_SERVER
def jobs_list(address: str) -> None:
    """One line a job, oldest first."""
    from cluster.jobs import all_jobs, connect, in_words

    for job in all_jobs(connect(address), address):
        click.echo(in_words(job))


@jobs.command("status", epilog=examples("maetrain jobs status mae-1 --address http://head:8265"))
@click.argument("job")
@JOB_SERVER
def jobs_status(job: str, address: str) -> None:
    """State and command of JOB; exit 0 while it runs or after success, else 1 or the job's own code."""
    from cluster.jobs import connect, exit_code, find, in_words

    found = find(connect(address), address, job)
    click.echo(in_words(found))
    click.echo(found.entrypoint)
    sys.exit(exit_code(found) if found.status.is_terminal() else 0)


@jobs.command("logs", epilog=examples("maetrain jobs logs mae-1 --address http://head:8265"))
@click.argument("job")
@JOB_SERVER
@click.option("--follow/--no-wait", default=True, show_default=True, help="Until the job ends.")
def jobs_logs(job: str, address: str, follow: bool) -> None:
    """Print the log of JOB; exit with the job's code. Ctrl-C leaves it alone."""
    from cluster.jobs import connect, exit_code, find, in_words, told
    from cluster.jobs import follow as follow_job

    client = connect(address)
    find(client, address, job)
    if not follow:
        with told(address):
            click.echo(client.get_job_logs(job), nl=False)
        return
    ended = follow_job(client, address, job)
    click.echo(in_words(ended))
    sys.exit(exit_code(ended))


@jobs.command("stop", epilog=examples("maetrain jobs stop mae-1 --address http://head:8265"))
@click.argument("job")
@JOB_SERVER
def jobs_stop(job: str, address: str) -> None:
    """Stop JOB and wait until it has ended. A pretraining stores a checkpoint first.

    Submitted again with the same --out, it goes on from there.
    """
    from cluster.jobs import connect, find, in_words, told, wait

    client = connect(address)
    if not find(client, address, job).status.is_terminal():
        with told(address):
            client.stop_job(job)
    click.echo(in_words(wait(client, address, job)))
