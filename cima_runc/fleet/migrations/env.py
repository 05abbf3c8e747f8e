"""Runs the steps over the connection that :mod:`cima_runc.fleet.migrate` has opened."""

from alembic import context

from cima_runc.fleet.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
