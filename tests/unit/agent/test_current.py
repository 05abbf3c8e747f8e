from typing import Any

import pytest

from cima_runc.agent.current import TAKEN_UP, CurrentSettings, _flat, compare
from cima_runc.config import Settings, parse_settings
from cima_runc.runtime.shim_settings import SettingsError

TAKES_A_RESTART = {
    *("socket", "state_dir"),
    *("ima.required", "ima.directory", "ima.host_pcr", "ima.container_pcr"),
    *("sensor.required", "sensor.ring_mib", "sensor.measure_reads", "limits.mib_per_second"),
    *("enforcement.enforce", "enforcement.references", "enforcement.unknown_images"),
    *("enforcement.allow", "enforcement.files", "sensor.largest_file_mib"),
    *("tpm.required", "tpm.tcti", "tpm.pcr"),
    *("attestation.ak_handle", "attestation.ak_certificate", "attestation.boot_pcrs"),
    *("attestation.event_log", "attestation.https.enabled", "attestation.https.address"),
    *("attestation.https.port", "attestation.https.certificate", "attestation.https.key"),
    *("attestation.https.client_ca", "attestation.https.requests_per_minute"),
    *("attestation.https.redacted", "binding.slots"),
    *("fleet.url", "fleet.ca", "fleet.join_token_file", "fleet.name", "fleet.service_key"),
    *("fleet.host_log", "fleet.interval", "fleet.min_interval", "fleet.tenants_may_enrol"),
    "metrics.port",
}


def test_of_each_setting_it_is_said_when_it_is_taken_up() -> None:
    assert set(_flat(Settings())) == TAKES_A_RESTART | set(TAKEN_UP)


@pytest.mark.parametrize(
    ("values", "in_force", "take_a_restart"),
    [
        ({}, [], []),
        ({"hook_timeout_seconds": 9}, ["hook_timeout_seconds"], []),
        ({"runtimes": ["crun"]}, ["runtimes"], []),
        (
            {"storage": {"quota_mib": 7, "keep_days": 1}},
            ["storage.keep_days", "storage.quota_mib"],
            [],
        ),
        ({"users": {"group": "staff"}}, ["users.group"], []),
        ({"tpm": {"pcr": 13}}, [], ["tpm.pcr"]),
        (
            {"limits": {"records": 500, "mib_per_second": 9}, "socket": "/run/other"},
            ["limits.records"],
            ["limits.mib_per_second", "socket"],
        ),
        ({"attestation": {"https": {"port": 1}}}, [], ["attestation.https.port"]),
    ],
)
def test_what_can_be_is_taken_up_and_the_rest_is_named(
    values: dict[str, Any], in_force: list[str], take_a_restart: list[str]
) -> None:
    before = parse_settings({"binding": {"mode": "sync"}})
    read = parse_settings({"binding": {"mode": "sync"}, **values})
    found = compare(before, read)
    assert found.shown() == {"in_force": in_force, "take_a_restart": take_a_restart}
    now, wanted, was = _flat(found.settings), _flat(read), _flat(before)
    assert all(now[key] == wanted[key] for key in in_force)
    assert {key: now[key] for key in now if key not in in_force} == {
        key: was[key] for key in now if key not in in_force
    }
    assert compare(found.settings, read).taken_up == ()


def test_what_is_not_allowed_together_changes_nothing() -> None:
    now = parse_settings({"enforcement": {"enforce": True}})
    read = parse_settings({"rootfs": {"mode": "off"}})
    with pytest.raises(SettingsError, match="takes rootfs"):
        compare(now, read)


def test_every_reader_sees_what_is_in_force() -> None:
    current = CurrentSettings(Settings())
    current.replace(parse_settings({"storage": {"quota_mib": 5}}))
    assert current.value.storage.quota_mib == 5
