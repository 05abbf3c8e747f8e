"""A fleet with something for each view of the page, by those who choose names to do harm."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import insert

from cima_runc.evidence import owner as owners
from cima_runc.fleet import changes, clock, queries
from cima_runc.fleet.schema import Enrolment, table_of
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.served_fleet import ServedFleet, eventually

HOSTILE = "<script>alert(1)</script>\"'--\x1b[2J\u202e{{7*7}}; DROP TABLE host;"


@dataclass(frozen=True)
class Planted:
    """What is there."""

    host: FleetHost
    ak: str
    uid: str
    """The container that ran what it should not."""
    image: str
    digest: str
    """Of the file that it ran."""
    owner: str
    sealed: str
    """A container of an owner that the service does not read."""


def plant(fleet: ServedFleet) -> Planted:
    """Put it there."""
    with TemporaryDirectory() as root:
        reference = image(Path(root))
    fleet.write(changes.add_policy, "default", POLICY + "\n# <b>&amp;</b>\n")
    fleet.write(changes.add_reference, "app", reference_file(reference))
    fleet.write(changes.assign, "default", {"label": {"zone": "a"}}, mode="observe")
    fleet.write(
        changes.add_webhook,
        "https://127.0.0.1:1/" + "x" * 200,
        kinds=[],
        tenant=None,
        allow_private=True,
    )
    host, owner = FleetHost(), new_owner()
    fleet.enrol(host, HOSTILE, zone="a")
    good = start(host, "good", reference)
    bad = start(host, "bad", reference)
    host.start("sealed", (owner,))
    host.run(bad, HOSTILE.encode())
    fleet.sync(host)
    eventually(lambda: fleet.container("good")["verdict"] == "TRUSTED")
    found = eventually(lambda: fleet.container("bad"))
    assert found["verdict"] == "UNTRUSTED", found
    assert good != bad
    now = clock.now()
    with fleet.service.database.write() as connection:
        connection.execute(
            insert(table_of(Enrolment)).values(
                uid="ab" * 24,
                ak_name="000b" + "c" * 64,
                ak_public=b"",
                tpm=b"{}",
                ek_digest="d" * 64,
                hardware="",
                name="waits-there",
                secret=b"",
                state="waiting",
                token=None,
                reason=HOSTILE,
                created=now,
                expires=now + 3_600_000,
            )
        )
    rows = fleet.query(queries.find, path=HOSTILE)
    return Planted(
        host=host,
        ak=host.tpm.ak_name.hex(),
        uid=found["uid"],
        image=found["image"],
        digest=rows[0]["digest"],
        owner=owner,
        sealed=fleet.container("sealed")["uid"],
    )


def new_owner() -> str:
    """Return a new owner's public key."""
    return owners.public_text(owners.generate()[1])
