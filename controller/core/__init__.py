"""Pure decisions: no database, no network, no clock of its own."""
