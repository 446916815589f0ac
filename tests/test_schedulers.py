"""The files in docs/ for clusters' schedulers, without a cluster."""

import os
import re
import shlex
import subprocess

import pytest
from conftest import ROOT

from config.settings import parse_arguments
from distributed.cluster import from_environment

SLURM = ROOT / 'docs' / 'slurm.sh'

# What Slurm has: the names of the nodes, and a program that runs a command once per task.
SCONTROL = """
case "$1" in
  show) for node in ${3//+/ }; do echo "$node"; done ;;
  *) echo "$@" > requeued ;;
esac
"""
SRUN = """
shift # --distribution=block
for ((index = 0; index < 4; index++)); do SLURM_PROCID=$index "$@" || status=$?; done
exit ${status:-0}
"""
TRAIN = """
echo "$TF_CONFIG" >> configs
printf '%s\\n' "$@" > arguments
exit $STATUS
"""


@pytest.fixture
def slurm(tmp_path):
    """A function that runs the job on two nodes with two tasks each, in tmp_path; it takes the status of training."""
    programs = {'bin/scontrol': SCONTROL, 'bin/srun': SRUN, '.venv/bin/python': TRAIN}
    for name, code in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash{code}')
        path.chmod(0o755)
    environment = {'SLURM_JOB_ID': '12345', 'SLURM_JOB_NODELIST': 'one+two', 'SLURM_NTASKS_PER_NODE': '2'}
    environment['PATH'] = f'{tmp_path / "bin"}:{os.environ["PATH"]}'

    def run(status, *flags, **more):
        variables = os.environ | environment | {'STATUS': str(status)} | more
        return subprocess.run(['bash', SLURM, *flags], cwd=tmp_path, env=variables, capture_output=True, text=True)

    return run


def test_each_task_of_a_slurm_job_is_one_worker_of_the_same_cluster(slurm, tmp_path, monkeypatch):
    result = slurm(0, '--run-dir', 'runs/with a space', '--batch-size', '256')
    assert (result.returncode, result.stderr) == (0, '')
    workers = []
    for config in (tmp_path / 'configs').read_text().splitlines():
        monkeypatch.setenv('TF_CONFIG', config)
        workers.append(from_environment(timeout=1))
    assert [worker.index for worker in workers] == [0, 1, 2, 3]
    assert workers[0].addresses == ['one:22345', 'one:22346', 'two:22345', 'two:22346']
    assert all(worker.addresses == workers[0].addresses for worker in workers)
    script, *flags = (tmp_path / 'arguments').read_text().splitlines()
    args = parse_arguments(flags)
    assert script == 'train.py' and args.resume and str(args.run_dir) == 'runs/with a space' and args.batch_size == 256


def test_a_slurm_job_of_one_task_is_one_process(slurm, tmp_path, monkeypatch):
    slurm(0, '--run-dir', 'runs/first', SLURM_JOB_NODELIST='one', SLURM_NTASKS_PER_NODE='1')
    monkeypatch.setenv('TF_CONFIG', (tmp_path / 'configs').read_text().splitlines()[0])
    assert from_environment(timeout=1).count == 1


@pytest.mark.parametrize(('status', 'requeued'), [(0, False), (2, False), (75, True)])
def test_a_slurm_job_that_was_stopped_before_its_end_is_queued_again(slurm, tmp_path, status, requeued):
    assert slurm(status, '--run-dir', 'runs/first').returncode == status
    assert (tmp_path / 'requeued').exists() == requeued
    assert not requeued or (tmp_path / 'requeued').read_text() == 'requeue 12345\n'


def test_the_documented_slurm_command_has_flags_of_train():
    (command,) = re.findall(r'^# +sbatch .*?slurm.sh (.*)$', SLURM.read_text(), re.MULTILINE)
    assert parse_arguments(shlex.split(command)).run_dir
