"""Run by Alembic: migrate over the connection that `server.db.session` hands over."""

from alembic import context

from server.db.tenancy_tables import OwnerRow

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=OwnerRow.metadata,  # of all tables: this import brings both modules of them
    transactional_ddl=True,  # SQLite too: a migration happens wholly or not at all
)
with context.begin_transaction():
    context.run_migrations()
