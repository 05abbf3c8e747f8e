"""PostgreSQL's row-level security: what each scope sees, for all tables.

A transaction whose ``cima.scope`` is ``service`` sees and changes all; ``tenant:N`` sees what is
tenant N's and changes nothing; any other sees nothing. Fleet, section 5.
"""

from collections.abc import Iterator

_SCOPE = "current_setting('cima.scope', true)"
_SERVICE = f"{_SCOPE} = 'service'"

TENANTS_SEE = {
    "tenant": f"'tenant:' || tenant.id = {_SCOPE}",
    "tenant_key": f"'tenant:' || tenant_key.tenant = {_SCOPE}",
    "owner": "EXISTS (SELECT 1 FROM tenant_key k WHERE k.key = owner.key)",
    "container": "EXISTS (SELECT 1 FROM owner o WHERE o.container = container.id)",
    "host": "EXISTS (SELECT 1 FROM container c WHERE c.host = host.id)",
    "record": "EXISTS (SELECT 1 FROM container c WHERE c.id = record.container)",
    "appraisal": "EXISTS (SELECT 1 FROM container c WHERE c.id = appraisal.container)",
    "finding": "EXISTS (SELECT 1 FROM container c WHERE c.id = finding.container)",
    "verdict": "EXISTS (SELECT 1 FROM container c WHERE c.id = verdict.container)",
    "event": "EXISTS (SELECT 1 FROM container c WHERE c.id = event.container)",
    "webhook": f"'tenant:' || webhook.tenant = {_SCOPE}",
    "token_grant": f"'tenant:' || token_grant.tenant = {_SCOPE}",
    "issued_token": f"'tenant:' || issued_token.tenant = {_SCOPE}",
    "delivery": "EXISTS (SELECT 1 FROM webhook w WHERE w.id = delivery.webhook)",
}
"""Which rows are a tenant's. What these conditions look at is itself under row-level security: an
``owner`` row is seen by the tenant whose key it names, and so is the container that it is of."""


def statements(tables: Iterator[str]) -> Iterator[str]:
    """Yield what turns it on for ``tables``, for their owner too."""
    for table in tables:
        yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
        yield f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
        yield f"CREATE POLICY service ON {table} USING ({_SERVICE}) WITH CHECK ({_SERVICE})"
        if table in TENANTS_SEE:
            yield f"CREATE POLICY tenants ON {table} FOR SELECT USING ({TENANTS_SEE[table]})"
