"""The REST interface, `/api/v1`: one router a noun."""
