"""Examples for each command's help, its manual page and the site: one table, tried by the tests."""

from typing import Any

EXAMPLES = {
    "ps": (
        "cima ps",
        "cima ps --all --json | jq -r '.[].id'",
        "cima ps --watch",
    ),
    "log": (
        "cima log web",
        "cima log web --follow",
        "cima log 3fd2 --format cel-json > web.cel.json",
    ),
    "show": (
        "cima show web",
        "cima show web --json | jq .config.capabilities",
    ),
    "status": (
        "cima status",
        "cima status --json | jq .trouble",
    ),
    "reload": ("cima reload",),
    "doctor": (
        "cima doctor",
        "cima doctor --json | jq '.[] | select(.state != \"ok\")'",
    ),
    "configure": (
        "cima configure docker --dry-run",
        "cima configure containerd --set-as-default",
        "cima configure docker --remove",
        "cima configure fleet --url https://fleet.example --join-token-file /etc/cima/fleet-token",
    ),
    "enroll": (),
    "enroll open": ("cima enroll open --minutes 5",),
    "enroll close": ("cima enroll close",),
    "enroll request": (
        "cima enroll request -o host.json",
        "cima enroll request --url https://host:8443 --ca ca.pem -o host.json",
    ),
    "enroll challenge": (
        "cima enroll challenge host.json --ek-ca manufacturers.pem -o challenge.json",
        "cima enroll challenge host.json --any-ek",
    ),
    "enroll activate": ("cima enroll activate challenge.json -o answer.json",),
    "enroll accept": ("cima enroll accept answer.json --label host-1 -o ak.pem",),
    "attest": (
        "cima attest web --nonce $(openssl rand -hex 32) -o evidence.json",
        "cima attest 3fd2... --nonce $NONCE --url https://host:8443 --ca ca.pem --state seen",
    ),
    "verify": (
        "cima verify evidence.json --nonce $NONCE --ak ak.pem --reference app.json",
        "cima verify evidence.json --nonce $NONCE --ak ak.pem --reference app.json"
        " --owner-key alice.key --state seen --json",
    ),
    "appraise": (
        "cima appraise web --reference app.json",
        "cima appraise web --reference app.json --reference host.json --policy policy.toml",
    ),
    "reference": (),
    "reference image": (
        "cima reference image app.tar -o app.json",
        "cima reference image layout --platform linux/amd64 --sign-key signer.pem -o app.json",
    ),
    "reference host": (
        "cima reference host -o host.json",
        "cima reference host --from-keylime policy.json -o host.json",
    ),
    "reference verify": ("cima reference verify signed.json --key signer.pub -o app.json",),
    "reference convert": ("cima reference convert app.json --to-keylime policy.json",),
    "policy": (),
    "policy suggest": ("cima policy suggest web --reference app.json -o policy.toml",),
    "policy check": ("cima policy check policy.toml",),
    "fleet": (),
    "fleet overview": ("cima fleet overview",),
    "fleet hosts": (
        "cima fleet hosts",
        "cima fleet hosts --json | jq -r '.[] | select(.freshness != \"fresh\").ak_name'",
    ),
    "fleet containers": (
        "cima fleet containers --verdict UNTRUSTED",
        "cima fleet containers --namespace shop --all --json",
    ),
    "fleet show": ("cima fleet show 3fd2",),
    "fleet records": ("cima fleet records 01ab23cd45ef --since 100 --json",),
    "fleet find": (
        "cima fleet find /usr/bin/nc",
        "cima fleet find sha256:$DIGEST --json",
    ),
    "fleet events": ("cima fleet events --kind container.verdict",),
    "fleet enrolments": ("cima fleet enrolments",),
    "fleet approve": ("cima fleet approve 01ab23cd45ef --label zone=a",),
    "fleet reject": ("cima fleet reject 01ab23cd45ef",),
    "fleet label": ("cima fleet label $AK --label zone=b",),
    "fleet remove": ("cima fleet remove $AK",),
    "fleet references": ("cima fleet references",),
    "fleet references add": ("cima fleet references add app app.json",),
    "fleet references retire": ("cima fleet references retire app",),
    "fleet policies": ("cima fleet policies",),
    "fleet policies add": ("cima fleet policies add strict policy.toml",),
    "fleet policies diff": ("cima fleet policies diff strict policy.toml",),
    "fleet policies assign": (
        "cima fleet policies assign strict --namespace shop --mode observe",
        "cima fleet policies assign strict --label zone=a --image-reference app",
    ),
    "fleet policies assignments": ("cima fleet policies assignments",),
    "fleet policies unassign": ("cima fleet policies unassign 01ab23cd45ef",),
    "fleet audit": ("cima fleet audit",),
    "fleet audit verify": ("cima fleet audit verify --head $KEPT",),
    "fleet tokens": ("cima fleet tokens",),
    "fleet tokens add": ("cima fleet tokens add alice --role operator --days 90",),
    "fleet tokens revoke": ("cima fleet tokens revoke 01ab23cd45ef",),
    "fleet join-tokens": ("cima fleet join-tokens",),
    "fleet join-tokens add": ("cima fleet join-tokens add --label zone=a",),
    "fleet join-tokens void": ("cima fleet join-tokens void 01ab23cd45ef",),
    "fleet tenants": ("cima fleet tenants",),
    "fleet tenants add": ("cima fleet tenants add shop --key $(cat alice.pub)",),
    "fleet grants": ("cima fleet grants",),
    "fleet grants add": ("cima fleet grants add web https://vault.example --tenant shop",),
    "fleet grants remove": ("cima fleet grants remove 01ab23cd45ef",),
    "fleet token": ("cima fleet token 01ab23cd45ef --audience https://vault.example",),
    "fleet webhooks": ("cima fleet webhooks",),
    "fleet webhooks add": (
        "cima fleet webhooks add https://example.org/hook --kind container.verdict",
    ),
    "fleet webhooks remove": ("cima fleet webhooks remove 01ab23cd45ef",),
    "fleet webhooks failed": ("cima fleet webhooks failed",),
    "keygen": ("cima keygen alice",),
    "completion": (
        "cima completion bash > /etc/bash_completion.d/cima",
        "cima completion fish > ~/.config/fish/completions/cima.fish",
    ),
    "version": ("cima version --json",),
}
"""By the words of a command; one that only holds others has none of its own."""


def give(command: Any, words: tuple[str, ...]) -> None:
    """Put the examples of a command, and of those in it, below their help."""
    lines = EXAMPLES[" ".join(words)]
    if lines:
        # \b: click wraps no lines of this paragraph.
        command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
    for name, inner in getattr(command, "commands", {}).items():
        give(inner, (*words, name))
