"""The memory that is left, of the machine and of its control groups."""

import pytest

from optpipe.errors import CapacityError
from optpipe.machine import free_memory, group_memory

GIB = 1 << 30


def machine(root, *, available=8 * GIB, cgroup="0::/\n", files=()):
    """A root folder with what the kernel would say."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in dict(files).items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
    return root


def test_a_machine_without_control_groups(tmp_path):
    assert free_memory(machine(tmp_path)) == 8 * GIB


def test_version_2_the_narrowest_group_counts_and_its_file_cache_is_free(tmp_path):
    files = {
        "a/memory.max": 3 * GIB,
        "a/memory.current": 2 * GIB,
        "a/memory.stat": f"anon 1\ninactive_file {GIB // 2}\n",
        "a/b/memory.max": "max",
        "a/b/memory.current": 5,
        "memory.max": 9 * GIB,
        "memory.current": 1,
    }
    assert free_memory(machine(tmp_path, cgroup="0::/a/b\n", files=files)) == GIB + GIB // 2


def test_version_1(tmp_path):
    files = {
        "memory/x/memory.limit_in_bytes": 2 * GIB,
        "memory/x/memory.usage_in_bytes": GIB,
        "memory/x/memory.stat": "inactive_file 3\ntotal_inactive_file 7\n",
        "memory/memory.limit_in_bytes": 9223372036854771712,
        "memory/memory.usage_in_bytes": 1,
    }
    assert free_memory(machine(tmp_path, cgroup="4:memory:/x\n0::/\n", files=files)) == GIB + 7


def test_inside_a_container_the_mount_is_the_group(tmp_path):
    files = {"memory.max": GIB, "memory.current": 0}
    assert free_memory(machine(tmp_path, cgroup="0::/host/path/docker-7\n", files=files)) == GIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path):
    files = {"memory.max": GIB, "memory.current": 2 * GIB}
    assert free_memory(machine(tmp_path, files=files)) == 0


def test_without_a_limit_no_group_counts(tmp_path):
    assert group_memory(machine(tmp_path, cgroup="0::/a\n")) is None


def test_a_kernel_that_does_not_say(tmp_path):
    machine(tmp_path)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\n")
    with pytest.raises(CapacityError, match="does not say"):
        free_memory(tmp_path)
