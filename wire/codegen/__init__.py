"""Generates both ends of every driver function from cuda.h and the rows in wire/api."""
