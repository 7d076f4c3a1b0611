"""A database of an older version becomes the default owner's."""

from pathlib import Path

from alembic import command
from sqlalchemy import create_engine, select, text

from server.db.session import Database, migrations
from server.db.tables import FileRow
from server.db.tenancy_tables import OwnerRow, TenancyRow

OWNER = "INSERT INTO owners (id, created_at) VALUES ('default', 7)"
FILE = (
    "INSERT INTO files (id, owner, created_at, filename, purpose, bytes, sha256) "
    "VALUES ('file-1', 'default', 8, 'a', 'fine-tune', 1, 'x')"
)


def test_what_was_there_stays_the_default_owners(url: str) -> None:
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir()
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        command.upgrade(migrations(connection), "0005")
        connection.execute(text(OWNER))
        connection.execute(text(FILE))
    engine.dispose()
    database = Database(url)
    database.migrate()
    with database.reading() as session:
        owner = session.scalars(select(OwnerRow)).one()
        assert (owner.id, owner.name, owner.folded) == ("default", "default", "default")
        assert (owner.status, owner.created_at, owner.archived_at) == ("active", 7, None)
        assert session.scalars(select(FileRow.owner)).all() == ["default"]
        assert len(session.scalars(select(TenancyRow.seal)).one()) == 64
    database.close()
