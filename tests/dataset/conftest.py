"""Fixtures for the tests of dataset/."""

import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', folder], stderr=subprocess.PIPE)
    if mounted.returncode:
        pytest.skip('mounting a file system needs root')
    yield folder
    subprocess.run(['umount', '--lazy', folder], check=True)
