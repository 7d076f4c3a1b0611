"""Run by Alembic: migrate over the connection that `server.db.session` hands over."""

from alembic import context

from server.db.tables import TableBase

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=TableBase.metadata,
    transactional_ddl=True,  # SQLite too: a migration happens wholly or not at all
)
with context.begin_transaction():
    context.run_migrations()
