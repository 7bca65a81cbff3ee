"""How the controller is asked."""
