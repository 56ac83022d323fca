"""Clients of model servers: each hides one server's protocol and turns its failures into ours."""
