"""What lies on another machine, by the kernel's list of mounts."""

import os

import pytest

from logagg.platform.mounts import is_elsewhere, lies_elsewhere

ROOT = b"22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw"


def seen(path, *mounts):
    """Whether a path lies elsewhere, with these (point, kind, source) above the root."""
    lines = [ROOT]
    lines += [
        b"%d 22 0:%d / %b rw shared:7 - %b %b rw" % (number, number, *mount)
        for number, mount in enumerate(mounts, 30)
    ]
    return lies_elsewhere(b"\n".join(lines) + b"\n", path)


@pytest.mark.parametrize(
    ("kind", "source", "elsewhere"),
    [
        (b"nfs4", b"server:/export/home", True),
        (b"nfs", b"[fd00::1]:/home", True),
        (b"lustre", b"10.0.0.1@tcp:/scratch", True),
        (b"ceph", b"mon1,mon2:6789:/", True),
        (b"fuse.sshfs", b"me@host:", True),
        (b"fuse.glusterfs", b"host:/volume", True),
        (b"cifs", b"//server/homes", True),
        (b"beegfs", b"beegfs_nodev", True),
        (b"gpfs", b"gpfs0", True),
        (b"afs", b"AFS", True),
        (b"ext4", b"/dev/mapper/vg-home", False),
        (b"xfs", b"/dev/disk/by-path/pci-0000:00:1f.2-ata-1", False),
        (b"tmpfs", b"tmpfs", False),
        (b"overlay", b"overlay", False),
        (b"zfs", b"tank/home", False),
        (b"btrfs", b"/dev/nvme0n1p2", False),
    ],
)
def test_the_mount_tells_where_a_path_lies(kind, source, elsewhere):
    """A source that names a host, or a kind that has no other machine-less form."""
    for path in (b"/home", b"/home/", b"/home/u/.local/state", b"/home/not/there/yet"):
        assert seen(path, (b"/home", kind, source)) is elsewhere
    for path in (b"/", b"/homes", b"/hom", b"/var/home"):
        assert not seen(path, (b"/home", kind, source))


def test_the_nearest_mount_counts_and_of_several_the_last():
    """A disk below a share, a share below a disk, one mounted over the other."""
    share = (b"/home", b"nfs", b"server:/home")
    disk = (b"/home/u", b"ext4", b"/dev/sdb1")
    over = (b"/home", b"ext4", b"/dev/sdc1")
    waiting = (b"/home", b"autofs", b"/etc/auto.home")

    assert not seen(b"/home/u/state", share, disk)
    assert not seen(b"/home/u/state", disk, share)
    assert seen(b"/home/v/state", disk, share)
    assert not seen(b"/home/v/state", share, over)
    assert seen(b"/home/v/state", over, share)
    assert seen(b"/home/v/state", waiting, share)


def test_a_root_from_another_machine_is_one():
    """A machine without a disk."""
    root = b"22 1 0:1 / / rw - nfs server:/root rw\n"
    assert lies_elsewhere(root, b"/home/u")
    assert lies_elsewhere(root, b"/")


def test_names_with_spaces_are_found():
    """The kernel writes blanks, newlines and backslashes as octal numbers."""
    point = b"/my\\040home\\134x\\011y\\012z"
    assert seen(b"/my home\\x\ty\nz/state", (point, b"nfs", b"server:/x"))
    assert not seen(b"/my home/state", (point, b"nfs", b"server:/x"))


@pytest.mark.parametrize("text", [b"", b"\n", b"22 1 8:1 / /home", b" - nfs a:b", b"-"])
def test_lines_that_make_no_sense_are_passed_over(text):
    """Nothing known means: here."""
    assert not lies_elsewhere(text, b"/home")
    assert lies_elsewhere(text + b"\n1 1 0:1 / /home rw - nfs a:/b rw", b"/home")


def test_this_machine_has_its_temporary_files_itself(tmp_path):
    """The real list is read; a path that is not there is no error."""
    assert not is_elsewhere(str(tmp_path))
    assert not is_elsewhere(os.path.join(tmp_path, "not", "there"))
