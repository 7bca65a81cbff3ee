"""Tests of the software GPU's driver API, without a worker between."""
