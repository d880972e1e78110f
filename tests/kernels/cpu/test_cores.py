import pytest

from optpipe_kernels.cpu.cores import usable_cores


@pytest.fixture
def machine(tmp_path):
    """Four cores of two threads each; write adds a file."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    for cpu in range(8):
        siblings = f"{cpu % 4},{cpu % 4 + 4}\n"
        write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    write.root = tmp_path
    return write


def test_two_threads_of_a_core_count_once(machine):
    assert usable_cores(machine.root, range(8)) == 4
    assert usable_cores(machine.root, [0, 4]) == 1
    assert usable_cores(machine.root, [0, 1, 5]) == 2


def test_processors_of_unknown_cores_count_each(tmp_path):
    assert usable_cores(tmp_path, [0, 3]) == 2


@pytest.mark.parametrize(
    ("limit", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 4)]
)
def test_the_quota_of_a_group_or_of_one_above_it_limits(machine, limit, cores):
    machine("proc/self/cgroup", "0::/a/b\n")
    machine("sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    machine("sys/fs/cgroup/a/cpu.max", limit + "\n")
    assert usable_cores(machine.root, range(8)) == cores


def test_a_container_sees_its_group_as_the_root(machine):
    machine("proc/self/cgroup", "0::/docker/0123\n")
    machine("sys/fs/cgroup/cpu.max", "300000 100000\n")
    assert usable_cores(machine.root, range(8)) == 3


@pytest.mark.parametrize(("quota", "cores"), [("100000", 1), ("-1", 4)])
def test_the_older_control_groups(machine, quota, cores):
    machine("proc/self/cgroup", "3:cpuset:/\n1:cpu,cpuacct:/job\n0::/\n")
    machine("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", quota + "\n")
    machine("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
    assert usable_cores(machine.root, range(8)) == cores
