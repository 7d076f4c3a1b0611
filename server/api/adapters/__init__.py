"""The endpoints for models and adapters: list, pin, analyse, import, export."""
