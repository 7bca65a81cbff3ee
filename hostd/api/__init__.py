"""The two doors of hostd: `greeter` for clients, `admin` for the command line."""
