import os
import time
from pathlib import Path

import pytest

from cima_runc.doctor import ima_policy
from cima_runc.doctor.finding import UnfitError

WANTED = Path(__file__).resolve().parents[3] / "examples/ima-policy"
UUID = "b4e55ab0-0000-4000-8000-000000000001"
OWNER = 993


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """As install.sh writes it, some time ago."""
    made = tmp_path / "ima-policy"
    write(made, WANTED.read_text().replace("fowner=990", f"fowner={OWNER} fsuuid={UUID}"))
    return made


def write(file: Path, text: str) -> None:
    file.write_text(text)
    os.utime(file, (1, 1))


def look(file: Path, *, uuid: str = UUID, owner: int = OWNER) -> str:
    return ima_policy.look(file.parent / "ima", WANTED, owner, uuid, file)


def test_the_policy_that_was_installed(file: Path) -> None:
    assert look(file) == f"{len(RULES)} rules of ours are in {file}"


def test_one_that_says_no_file_system(file: Path) -> None:
    write(file, file.read_text().replace(f" fsuuid={UUID}", ""))
    assert look(file) and look(file, uuid="")


@pytest.mark.parametrize(
    ("owner", "uuid"), [(OWNER + 1, UUID), (OWNER, UUID.replace("1", "2")), (OWNER, "")]
)
def test_our_files_are_somebody_elses_by_now(file: Path, owner: int, uuid: str) -> None:
    with pytest.raises(UnfitError, match=f"lacks the rule: measure func=FILE_CHECK fowner={owner}"):
        look(file, owner=owner, uuid=uuid)


RULES = [line for line in WANTED.read_text().splitlines() if line and line[0] != "#"]


@pytest.mark.parametrize("line", RULES)
def test_each_rule_is_missed(file: Path, line: str) -> None:
    kept = line.replace("fowner=990", f"fowner={OWNER} fsuuid={UUID}")
    lines = file.read_text().splitlines()
    write(file, "\n".join(one for one in lines if one != kept))
    with pytest.raises(UnfitError, match="lacks the rule: ") as raised:
        look(file)
    assert str(file) in raised.value.hint and "reboot" in raised.value.hint


def test_an_earlier_rule_that_may_take_away(file: Path) -> None:
    write(file, "dont_measure obj_type=bin_t\n" + file.read_text())
    with pytest.raises(UnfitError, match="before rules of ours: dont_measure obj_type=bin_t"):
        look(file)
    write(file, file.read_text().partition("\n")[2] + "dont_measure obj_type=bin_t\n")
    assert look(file)
    write(file, "measure func=KEXEC_KERNEL_CHECK\n" + file.read_text())
    assert look(file)


def test_a_policy_that_the_kernel_has_not_read(file: Path) -> None:
    os.utime(file, (time.time(), time.time()))
    with pytest.raises(UnfitError, match="was changed since") as raised:
        look(file)
    assert "reboot" in raised.value.hint


def test_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match="is not there"):
        look(tmp_path / "ima-policy")


def test_what_the_kernel_shows_counts(file: Path) -> None:
    """Words in the kernel's order (ima_policy_show); the file says otherwise and does not count."""
    shown = file.read_text().replace(
        f"measure func=FILE_CHECK mask=^MAY_READ fowner={OWNER} fsuuid={UUID}",
        f"measure func=FILE_CHECK mask=^MAY_READ fsuuid={UUID} fowner={OWNER} ",
    )
    (file.parent / "ima").mkdir()
    (file.parent / "ima/policy").write_text(shown)
    write(file, "")
    assert look(file).endswith("in the kernel's policy")
    (file.parent / "ima/policy").write_text("measure func=BPRM_CHECK\n")
    with pytest.raises(UnfitError, match="the kernel's policy lacks"):
        look(file)
