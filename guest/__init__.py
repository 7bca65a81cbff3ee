"""The guest side. `runtime/` is C++; Python parts of the guest agent come here."""
